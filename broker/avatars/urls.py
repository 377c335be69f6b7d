"""What is an avatar's URL, and in which sizes it can be had.

Pure; the facts are WECHAT.md W47 to W49.
"""

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit, urlunsplit

SIZES: Final = (0, 46, 64, 96, 132)  # the side in pixels; 0 means 640
LONGEST: Final = 1024  # characters; WeChat's have some 150
_SEGMENTS: Final = frozenset(map(str, SIZES))


def avatar_url(headimgurl: object) -> str | None:
    """Return the URL that WeChat gave, or None where it withholds the avatar.

    Withheld are `""`, `"/0"`, null, a missing key, and what is no URL at all.
    """
    if not isinstance(headimgurl, str) or not _is_web(headimgurl):
        return None
    return headimgurl


def sized(url: str, size: int) -> str:
    """Return the URL of the same picture in another size.

    The last segment of the path is replaced if it is a size; otherwise the URL stays as it is.
    """
    parts = urlsplit(url)
    head, _, last = parts.path.rpartition("/")
    return urlunsplit(parts._replace(path=f"{head}/{size}")) if last in _SEGMENTS else url


def origin(url: str) -> str:
    """`scheme://host[:port]` of a URL that is one."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def is_loopback(url: str) -> bool:
    """Return True if a URL's host is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class PictureHosts:
    """Where pictures may be.

    A host that begins with a dot stands for all hosts below it. `sandbox` is an origin on this
    machine that pictures may come from too.
    """

    hosts: tuple[str, ...] = (".qlogo.cn",)
    sandbox: str | None = None

    def accept(self, url: str) -> bool:
        """Return True if this is the URL of a picture in one of these places."""
        if len(url) > LONGEST or avatar_url(url) is None:
            return False
        return self.are_public(url) or origin(url) == self.sandbox

    def are_public(self, url: str) -> bool:
        """Return True if the URL is on one of the hosts, by its parsed host, on a default port."""
        parts = urlsplit(url)
        default = {"http": 80, "https": 443}.get(parts.scheme)
        host = parts.hostname or ""
        return (
            any(host.endswith(one) if one[0] == "." else host == one for one in self.hosts)
            and "@" not in parts.netloc
            and parts.port in {None, default}
        )

    def sources(self) -> tuple[str, ...]:
        """Return these places as a Content-Security-Policy names them."""
        names = [f"*{host}" if host.startswith(".") else host for host in self.hosts]
        public = tuple(f"{scheme}://{name}" for name in names for scheme in ("http", "https"))
        return public if self.sandbox is None else (*public, self.sandbox)


def _is_web(text: str) -> bool:
    try:
        parts = urlsplit(text)
        well_formed = parts.port != 0 and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        return False
    visible = text.isascii() and text.isprintable() and not set(text) & set(" \"'<>\\^`{|}")
    return visible and well_formed and parts.scheme in {"http", "https"}
