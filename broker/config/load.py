"""Turns the configuration into frozen settings, and tells all that is wrong with it at once.

:func:`load` is for the daemon and the commands beside it. :func:`load_avatars` is for the
companion, which reads no secret of an app. schema.py has the keys, sources.py reads them, and
secret_files.py reads secrets.
"""

import hashlib
import os
import socket
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

from pydantic import ValidationError

from broker.config.complaints import ConfigError, Problems, suggestion
from broker.config.consent import consent_settings
from broker.config.reach import notify_settings, sink_settings
from broker.config.schema import (
    ENVIRONMENT,
    AvatarsTable,
    ClientTable,
    ConfigDocument,
    StoreTable,
)
from broker.config.secret_reader import SecretReader
from broker.config.settings import (
    AvatarsSettings,
    ClientSettings,
    ServerSettings,
    Settings,
    StoreSettings,
    WeChatSettings,
)
from broker.config.sources import (
    DEFAULT_PATH,
    WHERE_ELSE,
    Names,
    find_path,
    is_in_environment,
    read_document,
)
from broker.core.credential import Account, Endpoint, Policy
from broker.core.decision import JITTER, LIFETIME
from broker.core.quota import calls_per_day
from broker.core.secret import Secret
from broker.http.way_out import WayOut
from broker.system.address import Address, is_plaintext, parse_proxy

T = TypeVar("T")
SHORTEST_KEY: Final = 16  # characters of store.encryption_key_file
OR_ENVIRONMENT: Final = "or set keys in the environment: TOKEN_BROKER_APPS__MAIN__APPID=wx…"
LONGEST_NODE: Final = 64

__all__ = [
    "Address",
    "AvatarsSettings",
    "ClientSettings",
    "ConfigError",
    "Settings",
    "load",
    "load_avatars",
    "load_server",
]


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the whole configuration and the secrets it names.

    `path` is the file; without it, :func:`broker.config.sources.find_path` tells where it is.
    Without any file the environment has to hold the configuration. Raises ConfigError with
    everything that is wrong.
    """
    path = find_path(path, environ)
    if path is None and not is_in_environment(environ):
        raise ConfigError(
            [f"configuration: {DEFAULT_PATH} does not exist{WHERE_ELSE}; {OR_ENVIRONMENT}"]
        )
    problems = Problems()
    document, names = read_document(path, environ, problems)
    policy = _policy(document, problems)
    reader = SecretReader(_home(path), environ, problems)
    settings = Settings(
        path=path,
        server=_server(document, names, problems),
        store=_store(document.store, environ, reader),
        wechat=_wechat(document, reader),
        policy=policy,
        apps=MappingProxyType(_apps(document, names, policy, reader)),
        clients=MappingProxyType(_clients(document, names, reader)),
        avatars=_avatars(document.avatars, document, names, reader) if document.avatars else None,
        compat=document.compat.enabled,
        proxy=document.proxy,
        logins=document.logins,
        notify=notify_settings(document.notify, reader),
        sinks=MappingProxyType(sink_settings(document, reader)),
        secret_files=MappingProxyType(reader.secret_files),
    )
    problems.raise_any()
    return settings


def load_server(
    path: Path | None = None, environ: Mapping[str, str] = os.environ
) -> ServerSettings:
    """Read where the daemon listens, for those who only ask it. No secret is read.

    Without any file the defaults hold. Wrong values outside of [server] are ignored, but unknown
    keys are refused everywhere. Raises ConfigError.
    """
    problems = Problems()
    settings = _server(
        *read_document(find_path(path, environ), environ, problems, only="server"), problems
    )
    problems.raise_any()
    return settings


def load_stores(
    path: Path | None, urls: tuple[str, str], environ: Mapping[str, str] = os.environ
) -> list[StoreSettings]:
    """Return the settings of two stores that are named by their URLs.

    What else [store] says (its encryption key) holds for both. Raises ConfigError.
    """
    problems = Problems()
    path = find_path(path, environ)
    document = read_document(path, environ, problems, only="store")[0]
    found = []
    for name, url in zip(("--from", "--to"), urls, strict=True):
        try:
            table = StoreTable.model_validate({**document.store.model_dump(), "url": url})
            found.append(_store(table, environ, SecretReader(_home(path), environ, problems)))
        except ValidationError as error:
            problems.add((name,), error.errors()[0]["msg"].removeprefix("Value error, "))
    if len(found) == len(urls):
        source, target = found
        if source.path is not None and not source.path.exists():
            problems.add(("--from",), f"there is no such file: {source.path}")
        if source.url == target.url:
            problems.add(("--to",), "is the store to leave")
    problems.raise_any()
    return found


def load_avatars(
    path: Path | None = None, environ: Mapping[str, str] = os.environ
) -> AvatarsSettings:
    """Read what the companion needs: [avatars], [wechat], [server], and its key.

    Without [avatars] its defaults hold. Wrong values elsewhere are ignored, but unknown keys are
    refused everywhere. Raises ConfigError.
    """
    path = find_path(path, environ)
    problems = Problems()
    for section in ("server", "wechat", "avatars"):
        document, names = read_document(path, environ, problems, only=section)
    reader = SecretReader(_home(path), environ, problems)
    settings = _avatars(document.avatars or AvatarsTable(), document, names, reader, with_key=True)
    problems.raise_any()
    return settings


def _home(path: Path | None) -> Path:
    """Return the directory that relative paths in the configuration begin at."""
    return Path.cwd() if path is None else path.parent


def _server(document: ConfigDocument, names: Names, problems: Problems) -> ServerSettings:
    listen = document.server.listen
    if not listen and not problems.about("server", "listen"):
        problems.add(("server", "listen"), "needs at least one address")
    if not names.clients and not all(address.is_loopback for address in listen):
        problems.add(
            ("server", "listen"),
            "an address beyond loopback needs [clients], or anybody who reaches it gets tokens",
        )
    return ServerSettings(
        listen,
        document.server.allowed_hosts,
        document.server.express_lane,
        document.server.trusted_proxies,
    )


def _policy(document: ConfigDocument, problems: Problems) -> Policy:
    policy = Policy(**document.policy.model_dump())
    if policy.max_backoff < policy.min_gap and not problems.about("policy", "min_gap"):
        problems.add(
            ("policy", "max_backoff"), f"must be at least policy.min_gap ({policy.min_gap:g})"
        )
    most = (1 - policy.min_serve / LIFETIME) / (1 + JITTER)
    if policy.refresh_fraction >= most and not problems.about("policy", "min_serve"):
        problems.add(
            ("policy", "refresh_fraction"),
            f"must be less than {most:.3f}: jitter and min_serve would leave a gap",
        )
    return policy


def _store(table: StoreTable, environ: Mapping[str, str], reader: SecretReader) -> StoreSettings:
    url = table.url
    if url is None:
        # systemd may name several directories; the first is ours.
        directory = environ.get("STATE_DIRECTORY", "").partition(":")[0]
        url = f"sqlite://{Path(directory, 'broker.db').absolute()}"
    key = _encryption_key("encryption_key_file", table.encryption_key_file, reader)
    name = "previous_encryption_key_file"
    previous = _encryption_key(name, table.previous_encryption_key_file, reader)
    if table.previous_encryption_key_file is not None and table.encryption_key_file is None:
        reader.problems.add(("store", name), "needs encryption_key_file: the key that writes")
    if url.startswith("sqlite:"):
        path = Path(url.removeprefix("sqlite://"))
        return StoreSettings(url, path, key, previous_encryption_key=previous)
    if find_spec("psycopg") is None:
        reader.problems.add(
            ("store", "url"),
            "needs the package psycopg: pip install 'wechat-token-broker[postgres]'",
        )
    node = table.node or socket.gethostname()[:LONGEST_NODE]
    return StoreSettings(url, None, key, node, previous)


def _encryption_key(name: str, file: str | None, reader: SecretReader) -> Secret | None:
    if file is None:
        return None
    key = reader.file(("store", name), file)
    if find_spec("cryptography") is None:
        why = "needs the package cryptography: pip install 'wechat-token-broker[encryption]'"
        reader.problems.add(("store", name), why)
    elif key is not None and len(key.reveal()) < SHORTEST_KEY:
        why = f"a key has at least {SHORTEST_KEY} characters: openssl rand -base64 32"
        reader.problems.add(("store", name), why)
    return key


def _apps(
    document: ConfigDocument, names: Names, policy: Policy, reader: SecretReader
) -> dict[str, Account]:
    problems, accounts = reader.problems, {}
    owners: dict[str, str] = {}
    if not names.apps:
        problems.add(
            ("apps",), "at least one app is needed: [apps.main] with its appid and secret_file"
        )
    for name, app in document.apps.items():
        endpoint = Endpoint(app.endpoint)
        needed = calls_per_day(endpoint, policy)
        if needed > app.daily_quota and not problems.about("apps", name, "daily_quota"):
            cure = "raise it or policy.refresh_fraction, or use endpoint stable_token"
            problems.add(
                ("apps", name, "daily_quota"),
                f"a day needs up to {needed} calls, it is {app.daily_quota}; {cure}",
            )
        secret = reader.app_secret(name, app)
        if app.appid is None:
            problems.add(("apps", name, "appid"), "is needed")
            continue
        if not app.appid.startswith("wx") and endpoint is not Endpoint.WECOM:
            problems.add(
                ("apps", name, "appid"), 'is a corpid: an app of WeCom\'s has endpoint = "wecom"'
            )
        first = owners.setdefault(app.appid, name)
        both = {endpoint, Endpoint(document.apps[first].endpoint)}
        # A corpid of WeCom has several apps, each with a secret of its own.
        if first != name and both != {Endpoint.WECOM}:
            problems.add(
                ("apps", name, "appid"),
                f"is the AppID of apps.{first} too; one app can serve many clients",
            )
        if secret is not None:
            accounts[name] = Account(name, app.appid, secret, endpoint, app.daily_quota)
    for name in sorted(owners.keys() & document.apps.keys()):
        if owners[name] != name:
            problems.add(
                ("apps", name),
                f"is named like the AppID of apps.{owners[name]}: services could not tell them"
                " apart",
            )
    return accounts


def _clients(
    document: ConfigDocument, names: Names, reader: SecretReader
) -> dict[str, ClientSettings]:
    problems, clients = reader.problems, {}
    owners: dict[str, str] = {}
    for name, client in document.clients.items():
        for place, app in enumerate(client.apps or ()):
            if names.apps and app not in names.apps:
                problems.add(
                    ("clients", name, "apps", place), f"names no app{suggestion(app, names.apps)}"
                )
        digest = _key_digest(name, client, reader)
        if digest is None:
            continue
        if (first := owners.setdefault(digest, name)) != name:
            problems.add(
                ("clients", name), f"has the same key as clients.{first}: give each its own"
            )
        apps = frozenset(client.apps) if client.apps is not None else names.apps
        clients[name] = ClientSettings(name, digest, apps, frozenset(client.scopes))
    return clients


def _key_digest(name: str, client: ClientTable, reader: SecretReader) -> str | None:
    """Return the SHA-256 of a client's key, or None after a complaint."""
    key = ("clients", name, "key_sha256")
    if reader.problems.about(*key) or reader.problems.about("clients", name, "key_file"):
        return None
    if (client.key_sha256 is None) == (client.key_file is None):
        reader.problems.add(key, "exactly one of this and key_file is needed")
    if client.key_file is None:
        return client.key_sha256
    secret = reader.file(("clients", name, "key_file"), client.key_file)
    return None if secret is None else hashlib.sha256(secret.reveal().encode()).hexdigest()


def _avatars(
    table: AvatarsTable,
    document: ConfigDocument,
    names: Names,
    reader: SecretReader,
    *,
    with_key: bool = False,
) -> AvatarsSettings:
    if names.apps and table.app not in names.apps and not reader.problems.about("avatars", "app"):
        reader.problems.add(("avatars", "app"), f"names no app{suggestion(table.app, names.apps)}")
    file = None if table.key_file is None else reader.home / table.key_file
    key = reader.file(("avatars", "key_file"), file) if file and with_key else None
    return AvatarsSettings(
        listen=table.listen,
        broker=table.broker,
        app=table.app,
        cache_ttl=table.cache_ttl,
        key_file=file,
        proxy_images=table.proxy_images,
        wechat=_wechat(document, reader),
        allowed_hosts=document.server.allowed_hosts,
        key=key,
        consent=consent_settings(table, document, reader, with_secrets=with_key),
        trusted_proxies=document.server.trusted_proxies,
    )


def _wechat(document: ConfigDocument, reader: SecretReader) -> WeChatSettings:
    table, problems = document.wechat, reader.problems
    for section, base in (("wechat", table.api_base), ("wecom", document.wecom.api_base)):
        if is_plaintext(base) and not table.allow_plaintext:
            problems.add(
                (section, "api_base"),
                "must be https: the AppSecret goes there (http only for 127.0.0.1, [::1] and"
                " localhost, or with wechat.allow_plaintext = true)",
            )
    return WeChatSettings(
        table.api_base, table.timeout, document.wecom.api_base, _way_out(document, reader)
    )


def _way_out(document: ConfigDocument, reader: SecretReader) -> WayOut:
    table, problems = document.wechat, reader.problems
    ca_file = (
        None if table.ca_file is None else reader.certificates(("wechat", "ca_file"), table.ca_file)
    )
    if table.proxy_file is not None:
        key = ("wechat", "proxy_file")
        if table.proxy:
            problems.add(key, "there is `proxy` as well: keep one of them")
        proxy = reader.file(key, table.proxy_file)
        try:
            return WayOut() if proxy is None else WayOut.through(_proxy(proxy), ca_file)
        except ValueError as why:
            problems.add(key, f"the word in it {why}")
    if table.proxy == ENVIRONMENT:
        return _way_out_of_environment(reader, ca_file)
    if table.proxy:
        return WayOut.through(Secret(table.proxy), ca_file)
    return WayOut(ca_file=ca_file)


def _way_out_of_environment(reader: SecretReader, ca_file: Path | None) -> WayOut:
    way_out = WayOut.of_environment(reader.environ, ca_file)
    for proxy in way_out.proxies.values():
        try:
            _proxy(proxy)
        except ValueError as why:
            reader.problems.add(("wechat", "proxy"), f"HTTPS_PROXY, HTTP_PROXY or ALL_PROXY {why}")
    return way_out


def _proxy(url: Secret) -> Secret:
    """Check the URL of a proxy. Raises ValueError without quoting it: it may hold a password."""
    return Secret(parse_proxy(url.reveal(), with_password=True))
