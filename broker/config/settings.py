"""The configuration as the daemon uses it: checked, frozen, and with the secrets read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from broker.config.schema import LoginsTable, ProxyTable, SinkFormat
from broker.core.credential import Account, Policy
from broker.core.secret import Secret
from broker.http.way_out import DIRECT, WayOut
from broker.system.address import Address


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where the daemon listens, and whom it answers.

    `allowed_hosts` are accepted in `Host` beside loopback's names and the bound addresses; they are
    in lower case. Requests from `trusted_proxies` may be forwarded ones. With `express_lane`, a
    request that is equal to an earlier one is answered without being parsed, as long as nothing has
    changed.
    """

    listen: tuple[Address, ...]
    allowed_hosts: tuple[str, ...]
    express_lane: bool = True
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where state is kept: in the file `path`, or in a shared database where that is None.

    In a shared database this broker is called `node`. Tokens are encrypted with `encryption_key` if
    there is one. `previous_encryption_key` reads those that were encrypted before a rotation, and
    writes none.
    """

    url: str
    path: Path | None
    encryption_key: Secret | None = None
    node: str = ""
    previous_encryption_key: Secret | None = None


@dataclass(frozen=True, slots=True)
class WeChatSettings:
    """Where WeChat and WeCom are, how requests get there, and how many seconds a call may take.

    `api_base` and `wecom_base` are `scheme://host[:port][/path]` without a slash at the end.
    """

    api_base: str
    timeout: float
    wecom_base: str
    way_out: WayOut = DIRECT


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """A program that may ask for tokens, for which apps, and with which scopes.

    `key_sha256` is the SHA-256 of its bearer key in lower-case hex.
    """

    name: str
    key_sha256: str = field(repr=False)
    apps: frozenset[str]
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class ConsentSettings:
    """The page on which people agree that their avatar is shown.

    `public_url` is the origin that people reach the page at. `operator_en` and `purpose_en` are
    what the English page says. A picture host that begins with a dot stands for all hosts below it.
    The secrets are only read by :func:`load_avatars`.
    """

    operator: str
    purpose: str
    keep_days: int
    contact: str
    public_url: str
    listen: Address
    operator_en: str
    purpose_en: str
    appid: str
    store: Path
    renew: bool = False
    verification_file: str | None = None
    picture_hosts: tuple[str, ...] = (".qlogo.cn",)
    authorize_url: str = "https://open.weixin.qq.com/connect/oauth2/authorize"
    encryption_key: Secret | None = None
    previous_encryption_key: Secret | None = None
    message_token: Secret | None = None
    message_key: Secret | None = None


@dataclass(frozen=True, slots=True)
class AvatarsSettings:
    """What the companion is configured with.

    It shares `wechat` and `allowed_hosts` with the daemon. `broker` is the origin of a URL or
    `unix:/path`. `key` is only read by :func:`load_avatars`.
    """

    listen: Address
    broker: str
    app: str
    cache_ttl: float
    key_file: Path | None
    proxy_images: bool
    wechat: WeChatSettings
    allowed_hosts: tuple[str, ...]
    key: Secret | None = None
    consent: ConsentSettings | None = None
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()


@dataclass(frozen=True, slots=True)
class NotifySettings:
    """Who is told when a person is needed.

    `urls` has the number of its line beside each URL; a URL is a secret. `hold` and `remind` are
    seconds.
    """

    hook: Path | None = None
    urls: tuple[tuple[int, Secret], ...] = ()
    hold: float = 300
    remind: float = 86400
    language: str = "en"


@dataclass(frozen=True, slots=True)
class FileSinkSettings:
    """A file that holds an app's token; `group` is a number, None for the daemon's own."""

    path: Path
    format: SinkFormat
    mode: int
    group: int | None


@dataclass(frozen=True, slots=True)
class RedisSinkSettings:
    """A key of Redis that holds an app's token; the URL may hold a password."""

    url: Secret
    key: str
    format: SinkFormat


SinkSettings = FileSinkSettings | RedisSinkSettings


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole configuration, frozen.

    `path` is None if there was no file and the environment held all of it. `secret_files` are the
    files that apps' secrets were read from, by the name of the app. With `compat`, WeChat's own
    token paths are answered.
    """

    path: Path | None
    server: ServerSettings
    store: StoreSettings
    wechat: WeChatSettings
    policy: Policy
    apps: Mapping[str, Account]
    clients: Mapping[str, ClientSettings]
    avatars: AvatarsSettings | None
    compat: bool = False
    proxy: ProxyTable = field(default_factory=ProxyTable)
    logins: LoginsTable = field(default_factory=LoginsTable)
    notify: NotifySettings = field(default_factory=NotifySettings)
    sinks: Mapping[str, tuple[SinkSettings, ...]] = field(default_factory=dict)  # by app
    secret_files: Mapping[str, Path] = field(default_factory=dict)
