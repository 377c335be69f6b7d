"""What may be written in the configuration: every key with its kind, range and default.

sources.py reads it, and load.py knows what keys mean together. Complaints never quote a value.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from pathlib import PurePosixPath
from typing import Annotated, Final, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator
from pydantic_settings import NoDecode

from broker.core.credential import Endpoint, Policy
from broker.core.interfaces import REFUSED
from broker.system.address import (
    Address,
    own_host,
    parse_address,
    parse_base,
    parse_broker,
    parse_network,
    parse_proxy,
)

DEFAULT: Final = Policy()
ENVIRONMENT: Final = "environment"  # the value of wechat.proxy that means HTTPS_PROXY and NO_PROXY
LONGEST_STORE_NAME: Final = 200  # bytes; SQLite and we append up to 50 to it, 255 is the limit
LONGEST_STORE_PATH: Final = 4000
WHY_A_GAP: Final = "two calls at once would kill each other's token"
WHY_SERVE: Final = "a token of the stable endpoint is replaced with 240 to 270 seconds left"

# --- the kinds of values --------------------------------------------------------------------------


class EnvText(str):
    """A value from the environment, where everything is text. In TOML a number is not."""

    __slots__ = ()


def number(value: object) -> object:
    """Return the number that a text from the environment means, and anything else unchanged."""
    if not isinstance(value, EnvText):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def flag(value: object) -> bool:
    """Return true or false from a TOML value, or from the words in the environment."""
    meant = {"true": True, "false": False}.get(value) if isinstance(value, EnvText) else value
    if not isinstance(meant, bool):
        # A ValueError, because Pydantic collects only those.
        raise ValueError("must be true or false")  # noqa: TRY004
    return meant


def _named(pattern: str, meant: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(meant)
        return value

    return AfterValidator(check)


def _plain(broker: str) -> str:
    if broker.startswith("https:"):
        raise ValueError(
            "the daemon speaks http: http://127.0.0.1:8765 or unix:/run/token-broker/broker.sock"
        )
    return broker


def _distinct(addresses: tuple[Address, ...]) -> tuple[Address, ...]:
    for address in addresses:
        if addresses.count(address) > 1:
            raise ValueError(f"{address} is listed twice")
    return addresses


def _network(text: object) -> IPv4Network | IPv6Network:
    if not isinstance(text, str):
        # A ValueError, because Pydantic collects only those.
        raise ValueError("must be a string")  # noqa: TRY004
    return parse_network(text)


def _proxy(text: str) -> str:
    return text if text in ("", ENVIRONMENT) else parse_proxy(text, with_password=False)


WholeNumber = Annotated[int, Field(strict=True), BeforeValidator(number)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False), BeforeValidator(number)]
Flag = Annotated[bool, PlainValidator(flag)]
Name = Annotated[
    str,
    _named(
        r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}",
        "a name is 1 to 64 letters, digits, '-', '_', '.', and begins with a letter or digit",
    ),
]
AppId = Annotated[
    str,
    _named(
        r"w[wxp][0-9A-Za-z_-]{1,62}",
        "an AppID looks like wx0123456789abcdef, a corpid of WeCom like ww0123456789abcdef",
    ),
]
# A bare word is refused: it could be the secret itself, written to the wrong key. What passes here
# may be shown in errors.
FilePath = Annotated[
    str,
    _named(
        r"\.{0,2}/[^\x00-\x1f\x7f]+", "must be a path that begins with / or ./ (beside this file)"
    ),
]
Sha256 = Annotated[
    str,
    _named(r"[0-9A-Fa-f]{64}", "must be 64 hex digits: printf %s KEY | sha256sum"),
    AfterValidator(str.lower),
]
ListenAddress = Annotated[Address, PlainValidator(parse_address), NoDecode]
OwnHost = Annotated[str, AfterValidator(own_host)]
NetworkText = Annotated[IPv4Network | IPv6Network, PlainValidator(_network), NoDecode]
ApiBase = Annotated[str, AfterValidator(parse_base)]
ProxyUrl = Annotated[str, AfterValidator(_proxy)]
Broker = Annotated[str, AfterValidator(parse_broker), AfterValidator(_plain)]


# Paths of the broker itself, and /sns/, which takes users' tokens.
OURS: Final = {"v1", "static", "sns"}


def _prefix(prefix: str) -> str:
    if prefix.split("/")[1] in OURS:
        raise ValueError(
            "must not be a path of the broker's own, nor /sns/, which takes tokens of users"
        )
    return prefix


Prefix = Annotated[
    str,
    _named(r"/(?:[A-Za-z0-9_-]+/)+", "must look like /cgi-bin/: names between slashes"),
    AfterValidator(_prefix),
]


def _refused(path: str) -> str:
    if path not in REFUSED:
        raise ValueError(f"must be one of those refused by default: {', '.join(REFUSED)}")
    return path


Refused = Annotated[str, AfterValidator(_refused)]


def _store_url(url: str) -> str:
    if re.match(r"postgres(ql)?://", url):
        return _postgres_url(url)
    path = url.removeprefix("sqlite:///")
    if (
        path == url
        or path.endswith("/")
        or not re.fullmatch(r"/?[^/?#:\x00-\x1f\x7f][^?#:\x00-\x1f\x7f]*", path)
    ):
        cure = "sqlite:///var/lib/token-broker/broker.db; or postgresql://role@host/database"
        raise ValueError(f'must be "sqlite:///" and an absolute path: {cure}')
    if len(path.encode()) > LONGEST_STORE_PATH or any(
        len(part.encode()) > LONGEST_STORE_NAME for part in path.split("/")
    ):
        raise ValueError(
            f"is too long: a name in it has at most {LONGEST_STORE_NAME} bytes, the whole path"
            f" {LONGEST_STORE_PATH}"
        )
    return f"sqlite://{PurePosixPath('/', path)}"


def _postgres_url(url: str) -> str:
    """Check a URL that libpq will read.

    A password in it is refused: more people read and copy the configuration than a passfile.
    """
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ValueError("holds blanks or control characters")
    there = urlsplit(url)
    if ":" in there.netloc.rpartition("@")[0] or {"password", "sslpassword"} & {
        name for name, _ in parse_qsl(there.query)
    }:
        raise ValueError(
            "holds a password: put it into a passfile, mode 600 (PGPASSFILE, or ?passfile=/path in"
            " the URL)"
        )
    return url


# --- the tables -----------------------------------------------------------------------------------


class Table(BaseModel):
    """A table of the configuration.

    The `description` of a field is added to complaints about it: a reason or a cure.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ServerTable(Table):
    """[server]."""

    listen: Annotated[tuple[ListenAddress, ...], AfterValidator(_distinct)] = (
        Address("tcp", "127.0.0.1", 8765),
    )
    allowed_hosts: tuple[OwnHost, ...] = ()
    trusted_proxies: tuple[NetworkText, ...] = ()
    express_lane: Flag = True


class StoreTable(Table):
    """[store]."""

    url: Annotated[str, AfterValidator(_store_url)] | None = None
    node: Name | None = None
    encryption_key_file: FilePath | None = None
    previous_encryption_key_file: FilePath | None = None


class WeChatTable(Table):
    """[wechat]."""

    api_base: ApiBase = "https://api.weixin.qq.com"
    timeout: Annotated[Number, Field(gt=0, le=300)] = 10
    proxy: ProxyUrl = ""
    proxy_file: FilePath | None = None
    ca_file: FilePath | None = None
    allow_plaintext: Flag = False


class WeComTable(Table):
    """[wecom]."""

    api_base: ApiBase = "https://qyapi.weixin.qq.com"


class CompatTable(Table):
    """[compat]."""

    enabled: Flag = False


class ProxyTable(Table):
    """[proxy]: bodies are in bytes, `rate` is in requests a second of one client.

    `allow` names interfaces that are refused by default and pass all the same. `max_concurrency` is
    calls under way of one app, `client_concurrency` of one of [clients], whatever apps they are
    for.
    """

    enabled: Flag = False
    prefixes: Annotated[tuple[Prefix, ...], Field(min_length=1)] = (
        "/cgi-bin/",
        "/wxa/",
        "/customservice/",
        "/card/",
        "/datacube/",
    )
    allow: tuple[Refused, ...] = ()
    client_concurrency: Annotated[WholeNumber, Field(ge=1, le=200)] = 56
    max_concurrency: Annotated[WholeNumber, Field(ge=1, le=200)] = 64
    rate: Annotated[Number, Field(gt=0, le=1_000_000)] = 100
    burst: Annotated[WholeNumber, Field(ge=1, le=1_000_000)] = 200
    max_body: Annotated[WholeNumber, Field(ge=0, le=16 * 1024**3)] = 100 * 1024**2
    max_retry_body: Annotated[WholeNumber, Field(ge=0, le=64 * 1024**2)] = 1024**2
    connect_timeout: Annotated[Number, Field(gt=0, le=300)] = 10
    idle_timeout: Annotated[Number, Field(gt=0, le=3600)] = 30
    total_timeout: Annotated[Number, Field(gt=0, le=86400)] = 3600


class LoginsTable(Table):
    """[logins]: `rate` is logins a second, all three are of one client with one app."""

    max_concurrency: Annotated[WholeNumber, Field(ge=1, le=200)] = 64
    rate: Annotated[Number, Field(gt=0, le=1_000_000)] = 100
    burst: Annotated[WholeNumber, Field(ge=1, le=1_000_000)] = 200


class PolicyTable(Table):
    """[policy]: the fields of :class:`Policy`."""

    tick: Annotated[Number, Field(gt=0, le=300)] = DEFAULT.tick
    refresh_fraction: Annotated[Number, Field(ge=0.01, lt=1)] = DEFAULT.refresh_fraction
    overlap: Annotated[Number, Field(ge=0, le=3600)] = DEFAULT.overlap
    min_gap: Annotated[Number, Field(gt=0, le=3600, description=WHY_A_GAP)] = DEFAULT.min_gap
    max_backoff: Annotated[Number, Field(gt=0, le=86400)] = DEFAULT.max_backoff
    min_serve: Annotated[Number, Field(ge=0, le=240, description=WHY_SERVE)] = DEFAULT.min_serve
    verify_gap: Annotated[Number, Field(gt=0, le=3600)] = DEFAULT.verify_gap
    verify_quota: Annotated[WholeNumber, Field(ge=0)] = DEFAULT.verify_quota
    report_quota: Annotated[WholeNumber, Field(ge=0)] = DEFAULT.report_quota


class NotifyTable(Table):
    """[notify]: who is told when a person is needed."""

    hook: FilePath | None = None
    urls_file: FilePath | None = None
    hold: Annotated[Number, Field(ge=0, le=86400)] = 300
    remind: Annotated[Number, Field(ge=0, le=7 * 86400)] = 86400
    language: Literal["en", "zh-CN"] = "en"


class SinkFormat(StrEnum):
    """How a token is written where a program reads it.

    `json` and `token` are formats of files, the last five are formats of Redis.
    """

    JSON = "json"
    TOKEN = "token"  # noqa: S105 -- the format's name
    TEXT = "text"
    WECHATPY = "wechatpy"
    WXJAVA = "wxjava"
    SILENCEPER = "silenceper"
    EASYWECHAT = "easywechat"


class SinkTable(Table):
    """[[apps.NAME.sinks]]: a file or a key of Redis."""

    kind: Literal["file", "redis"]
    path: FilePath | None = None
    mode: Annotated[
        str, _named(r"0[0-7]{3}", 'must be four octal digits in quotes, such as "0640"')
    ] = "0640"
    group: (
        Annotated[str, _named(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}", "must be a group's name")] | None
    ) = None
    url: str | None = None
    url_file: FilePath | None = None
    key: (
        Annotated[str, _named(r"[!-~]{1,256}", "must be 1 to 256 visible ASCII characters")] | None
    ) = None
    format: SinkFormat | None = None


class AppEndpoint(StrEnum):
    """The endpoints of the core that an app may have."""

    TOKEN = Endpoint.TOKEN.value
    STABLE = Endpoint.STABLE.value
    WECOM = Endpoint.WECOM.value
    NONE = Endpoint.NONE.value


class AppTable(Table):
    """[apps.NAME]."""

    appid: AppId | None = None
    secret_file: FilePath | None = None
    secret: str | None = None
    endpoint: AppEndpoint = AppEndpoint.TOKEN
    daily_quota: Annotated[WholeNumber, Field(ge=1, le=10_000_000)] = 2000
    sinks: tuple[SinkTable, ...] = ()


class ClientTable(Table):
    """[clients.NAME]."""

    key_sha256: Sha256 | None = None
    key_file: FilePath | None = None
    apps: tuple[str, ...] | None = None
    scopes: tuple[Literal["read", "report", "login", "proxy", "admin"], ...] = ("read", "report")


ShownText = Annotated[
    str,
    AfterValidator(str.strip),
    _named(r"[^\x00-\x1f\x7f]{1,300}", "must be a text of 1 to 300 characters on one line"),
]
PictureHost = Annotated[
    str,
    AfterValidator(str.lower),
    _named(
        r"\.?(?:[a-z0-9-]{1,63}\.)+[a-z]{2,63}",
        'must be a host such as wx.qlogo.cn, or with a dot before it (".qlogo.cn") all below it',
    ),
]


class ConsentTable(Table):
    """[avatars.consent]: the page on which people agree that their avatar is shown.

    The first six must be given; consent.py complains about those that are missing.
    """

    operator: ShownText | None = None
    purpose: ShownText | None = None
    keep_days: Annotated[WholeNumber, Field(ge=1, le=3650)] | None = None
    contact: ShownText | None = None
    public_url: str | None = None
    listen: Annotated[Address | None, PlainValidator(parse_address), NoDecode] = None
    operator_en: ShownText | None = None
    purpose_en: ShownText | None = None
    appid: AppId | None = None
    store: FilePath | None = None
    encryption_key_file: FilePath | None = None
    previous_encryption_key_file: FilePath | None = None
    renew: Flag = False
    verification_file: (
        Annotated[
            str,
            _named(
                r"MP_verify_[A-Za-z0-9]{1,64}\.txt",
                "must be the name of the file, such as MP_verify_AbCdEf0123456789.txt",
            ),
        ]
        | None
    ) = None
    picture_hosts: Annotated[tuple[PictureHost, ...], Field(min_length=1)] = (".qlogo.cn",)
    message_token_file: FilePath | None = None
    message_key_file: FilePath | None = None
    authorize_url: ApiBase = "https://open.weixin.qq.com/connect/oauth2/authorize"


class AvatarsTable(Table):
    """[avatars]."""

    listen: ListenAddress = Address("tcp", "127.0.0.1", 8766)
    broker: Broker = "http://127.0.0.1:8765"
    app: str = "main"
    key_file: FilePath | None = None
    cache_ttl: Annotated[Number, Field(ge=0, le=86400)] = 600
    proxy_images: Flag = False
    consent: ConsentTable | None = None


class ConfigDocument(Table):
    """The whole configuration.

    A key that must be given is None where it is missing; load.py complains about it.
    """

    server: ServerTable = ServerTable()
    store: StoreTable = StoreTable()
    wechat: WeChatTable = WeChatTable()
    wecom: WeComTable = WeComTable()
    policy: PolicyTable = PolicyTable()
    compat: CompatTable = CompatTable()
    proxy: ProxyTable = ProxyTable()
    logins: LoginsTable = LoginsTable()
    apps: dict[Name, AppTable] = {}
    clients: dict[Name, ClientTable] = {}
    avatars: AvatarsTable | None = None
    notify: NotifyTable = NotifyTable()


TABLES: Final[Mapping[str, type[Table]]] = {
    "server": ServerTable,
    "store": StoreTable,
    "wechat": WeChatTable,
    "wecom": WeComTable,
    "policy": PolicyTable,
    "compat": CompatTable,
    "proxy": ProxyTable,
    "logins": LoginsTable,
    "apps": AppTable,
    "clients": ClientTable,
    "avatars": AvatarsTable,
    "notify": NotifyTable,
}
