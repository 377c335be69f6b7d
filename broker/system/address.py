"""Where somebody listens or is asked: host and port, a Unix socket, or the origin of a URL.

Errors are ValueErrors that say what is meant and never quote what was written: a secret may be in
the wrong place.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final, Literal
from urllib.parse import urlsplit

MEANT: Final = 'an address is "host:port", "[::1]:port" or "unix:/path"'
LONGEST_SOCKET_PATH: Final = 107  # bytes: what sun_path holds beside its NUL (unix(7))
HIGHEST_PORT: Final = 65535

# With `_`, which DNS allows and services of Docker Compose have in their names.
_HOST_NAME: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?")
_BASE_PATH: Final = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)*/?")
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
        """Return True if only this machine can reach it.

        A name other than `localhost` may mean anything, so it counts as reachable.
        """
        return self.kind == "unix" or is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Return True if a host is `localhost` or a loopback IP address."""
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

    What looks like an IP address but is none (`999.1.1.1`) is no name either.
    """
    name = text.lower()
    if not _HOST_NAME.fullmatch(name) or name.rstrip(".").rpartition(".")[2].isdigit():
        raise ValueError("is no host name or IP address")
    return name


def own_host(text: str) -> str:
    """Return a name or IP address that a `Host` header may hold, in its canonical form.

    An IPv6 address may be written with brackets; they are not part of the result.
    """
    try:
        return str(ip_address(text.removeprefix("[").removesuffix("]")))
    except ValueError:
        return host_name(text)


def parse_network(text: str) -> IPv4Network | IPv6Network:
    """Read a network such as `10.0.0.0/8`, or a single IP address."""
    try:
        return ip_network(text)
    except ValueError:
        raise ValueError(
            "must be a network such as 10.0.0.0/8 or fd00::/8, without bits set behind its mask, or"
            " an IP address"
        ) from None


def parse_base(text: str) -> str:
    """Read the URL that paths are appended to: `scheme://host[:port][/path]`.

    The result has no slash at its end. Query, fragment, user and password are refused.
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
    if "?" in text or "#" in text:
        raise ValueError("must not hold a query")
    if not _BASE_PATH.fullmatch(url.path):
        raise ValueError("has a path that is not made of plain names between single slashes")
    return f"{url.scheme}://{url.netloc.lower()}{url.path.rstrip('/')}"


def parse_origin(text: str) -> str:
    """Read `scheme://host[:port]`; the result has no slash at its end."""
    base = parse_base(text)
    if urlsplit(base).path:
        raise ValueError("must end after the host and port: no path, no query")
    return base


def is_plaintext(url: str) -> bool:
    """Return True if what is sent to this URL crosses a network without TLS."""
    there = urlsplit(url)
    return there.scheme == "http" and not is_loopback(there.hostname or "")


def parse_proxy(text: str, *, with_password: bool) -> str:
    """Read the URL of an HTTP proxy: `http://[user:password@]host:port`."""
    meant = "must be the URL of an HTTP proxy, such as http://proxy.example:3128"
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        raise ValueError(meant) from None
    if not _VISIBLE.fullmatch(text) or url.scheme != "http" or not host or not port:
        raise ValueError(meant)
    if url.path not in ("", "/") or "?" in text or "#" in text:
        raise ValueError(f"{meant}: no path, no query")
    if "@" in url.netloc and not with_password:
        raise ValueError(
            "must not hold a user name or password: put the whole URL into a file, mode 600, and"
            " name it in proxy_file"
        )
    return text.removesuffix("/")


def parse_broker(text: str) -> str:
    """Read where the companion finds the daemon: a URL's origin or `unix:/path`."""
    return str(_unix(text)) if text.startswith("unix:") else parse_origin(text)
