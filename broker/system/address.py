"""Where somebody listens or is asked: host and port, a Unix socket, or the origin of a URL.

Errors are ValueErrors that say what is meant and never quote what was written: a secret may stand
in the wrong place.
"""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Literal
from urllib.parse import urlsplit

MEANT: Final = 'an address is "host:port", "[::1]:port" or "unix:/path"'
LONGEST_SOCKET_PATH: Final = 107  # bytes: what sun_path holds beside its NUL (unix(7))
HIGHEST_PORT: Final = 65535

_HOST_NAME: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})*\.?")
_TCP: Final = re.compile(r"(?:\[(?P<six>[^\[\]]*)\]|(?P<host>[^\[\]:/]*)):(?P<port>[0-9]{1,5})")
_UNIX: Final = re.compile(r"unix:(?://)?(?P<path>/[^\x00-\x1f\x7f]*[^\x00-\x1f\x7f/])")
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Address:
    """Somewhere to listen.

    For "tcp" `host` (an IP address without brackets, or a name) and `port`; for "unix" `path`.
    """

    kind: Literal["tcp", "unix"]
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it.

        A name other than `localhost` may mean anything, so it is not.
        """
        return self.kind == "unix" or is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host is `localhost` or a loopback IP address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def parse_address(text: object) -> Address:
    """Read an address to listen on.

    Host names and IP addresses come out in their one canonical form.
    """
    if not isinstance(text, str):
        # Pydantic collects ValueErrors only
        raise ValueError(f"must be a string: {MEANT}")  # noqa: TRY004
    if text.startswith("unix:"):
        return _unix(text)
    match = _TCP.fullmatch(text)
    if not match:
        six = re.fullmatch(r"[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*", text)
        raise ValueError("an IPv6 address goes in brackets: [::1]:8765" if six else MEANT)
    port = int(match["port"])
    if port > HIGHEST_PORT:
        raise ValueError(f"a port is at most {HIGHEST_PORT}")
    return Address("tcp", _host(match), port)


def _unix(text: str) -> Address:
    match = _UNIX.fullmatch(text)
    if not match:
        raise ValueError('a Unix socket has an absolute path: "unix:/run/token-broker/broker.sock"')
    if len(match["path"].encode()) > LONGEST_SOCKET_PATH:
        raise ValueError(f"the path of a Unix socket has at most {LONGEST_SOCKET_PATH} bytes")
    return Address("unix", path=match["path"])


def _host(match: re.Match[str]) -> str:
    host = match["host"] if match["six"] is None else match["six"]
    if host in ("", "*"):
        raise ValueError(
            "which interface? 127.0.0.1:port for this machine only, 0.0.0.0:port for every"
            " interface"
        )
    try:
        address = ip_address(host)
    except ValueError:
        return host_name(host)
    if (address.version == 6) != (match["six"] is not None):  # noqa: PLR2004 -- IPv6
        raise ValueError(MEANT)
    return str(address)


def host_name(text: str) -> str:
    """Return a host name in lower case.

    An IP address that is none (`999.1.1.1`) is no name either.
    """
    name = text.lower()
    if not _HOST_NAME.fullmatch(name) or name.rstrip(".").rpartition(".")[2].isdigit():
        raise ValueError("is no host name or IP address")
    return name


def parse_origin(text: str, *, plain_http: bool) -> str:
    """Read `scheme://host[:port]`, without the slash at its end.

    `http` beyond loopback only where `plain_http` is true. No path, query, fragment, user or
    password.
    """
    try:
        url = urlsplit(text)
        host, port = url.hostname or "", url.port
    except ValueError:
        raise ValueError("is no URL") from None
    if not _VISIBLE.fullmatch(text) or url.scheme not in ("http", "https") or not host or port == 0:
        raise ValueError("must be a URL such as https://api.weixin.qq.com")
    if "@" in url.netloc:
        raise ValueError("must not hold a user name or password")
    if url.path not in ("", "/") or "?" in text or "#" in text:
        raise ValueError("must end after the host and port: no path, no query")
    if url.scheme == "http" and not plain_http and not is_loopback(host):
        raise ValueError(
            "must be https: the AppSecret goes there (http only for 127.0.0.1, [::1] and localhost)"
        )
    return f"{url.scheme}://{url.netloc.lower()}"


def parse_broker(text: str) -> str:
    """Read where the companion finds the daemon: a URL's origin or `unix:/path`."""
    return str(_unix(text)) if text.startswith("unix:") else parse_origin(text, plain_http=True)
