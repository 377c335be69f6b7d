"""What is an avatar's URL, and in which sizes it can be had.

Pure; the facts are WECHAT.md W47 to W49.
"""

from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit, urlunsplit

SIZES: Final = (0, 46, 64, 96, 132)  # the side in pixels; 0 means 640
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
    """Whether a URL's host is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def is_qlogo(url: str) -> bool:
    """Return True if the URL is on one of WeChat's avatar hosts, on a default port."""
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return (
        (parts.hostname or "").endswith(".qlogo.cn")
        and "@" not in parts.netloc
        and parts.port in {None, default}
    )


def _is_web(text: str) -> bool:
    try:
        parts = urlsplit(text)
        well_formed = parts.port != 0 and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        return False
    visible = text.isascii() and text.isprintable() and not set(text) & set(" \"'<>\\^`{|}")
    return visible and well_formed and parts.scheme in {"http", "https"}
