"""The configuration as the daemon uses it: checked, frozen, with secrets in hand."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from broker.config.schema import LoginsTable, ProxyTable, SinkFormat
from broker.core.credential import Account, Policy
from broker.core.secret import Secret
from broker.system.address import Address


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where the daemon listens, and which names it answers to beside loopback and the bound addresses (lower case).

    With `express_lane`, a request like one before it is answered without being parsed, while
    nothing has changed.
    """

    listen: tuple[Address, ...]
    allowed_hosts: tuple[str, ...]
    express_lane: bool = True


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where state is kept: an absolute path, or, where that is None, a shared database, in which we are called `node`.

    Tokens are sealed with `encryption_key` where there is one. `previous_encryption_key` reads
    those that were sealed before a rotation, and writes none.
    """

    url: str
    path: Path | None
    encryption_key: Secret | None = None
    node: str = ""
    previous_encryption_key: Secret | None = None


@dataclass(frozen=True, slots=True)
class WeChatSettings:
    """Where WeChat and WeCom are (`scheme://host[:port]`, no slash at its end), and the seconds a whole call may take."""

    api_base: str
    timeout: float
    wecom_base: str


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Who may ask: the SHA-256 of its bearer key in lower-case hex, the names of its apps, and its scopes."""

    name: str
    key_sha256: str = field(repr=False)
    apps: frozenset[str]
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class AvatarsSettings:
    """The companion's own, and what it shares with the daemon: where WeChat is, and the names both answer to.

    `key` is read by :func:`load_avatars` only; `broker` is a URL's origin or `unix:/path`.
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
    """All of it, checked, with secrets in hand. Nothing in it can be changed."""

    path: Path
    server: ServerSettings
    store: StoreSettings
    wechat: WeChatSettings
    policy: Policy
    apps: Mapping[str, Account]
    clients: Mapping[str, ClientSettings]
    avatars: AvatarsSettings | None
    compat: bool = False  # whether WeChat's own token paths are answered
    proxy: ProxyTable = field(default_factory=ProxyTable)
    logins: LoginsTable = field(default_factory=LoginsTable)
    notify: NotifySettings = field(default_factory=NotifySettings)
    sinks: Mapping[str, tuple[SinkSettings, ...]] = field(default_factory=dict)  # by app
