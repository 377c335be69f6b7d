"""Which URLs are passed on to WeChat, and how.

The path must be a plain one that is no token call. The query goes on as it came.
"""

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, unquote, unquote_plus

from broker.core.interfaces import at_or_under

# These hand out tokens and tickets, each call counted: they are the drop-in's (compat.py) or
# nobody's.
TOKEN_PATHS: Final = (
    "/cgi-bin/token",
    "/cgi-bin/stable_token",
    "/cgi-bin/gettoken",
    "/cgi-bin/ticket/getticket",
    "/cgi-bin/ticket/get",
    "/cgi-bin/get_jsapi_ticket",
)
OTHER_TOKENS: Final = "/sns/"
UNUSUAL: Final = (
    "(token-broker: this path has more in it than letters, digits, - and _ between single slashes)"
)
PARAMETER: Final = "access_token"
# WeChat's interfaces are named so, all of them. Whatever else servers may take for the same path
# (%74oken, ./token, x/../token, token;x, token/, Token) does not get as far as being compared.
_PLAIN: Final = re.compile(r"/+((?:[A-Za-z0-9_-]+/)+[A-Za-z0-9_-]+)")
# Names that other servers take for the token's: in another case, escaped twice, with what they
# strip, blanks or brackets.
_LIKE_IT: Final = re.compile(r"[\W_]*access[\W_]*token[\W_]*(?:\[.*)?", re.IGNORECASE | re.DOTALL)
_NEEDS_NO_ESCAPE: Final = re.compile(r"[A-Za-z0-9_-]+")
_OTHER_JOINTS: Final = re.compile("[;?,]")
_TOKEN_PATH: Final = at_or_under(TOKEN_PATHS)
_VISIBLE: Final = "".join(map(chr, range(0x21, 0x7F))).replace("#", "")


def pattern(prefixes: Iterable[str]) -> str:
    """Return a route for everything under the prefixes and /sns/.

    Any number of slashes may stand before it, as SDKs send (WECHAT.md W88).
    """
    names = "|".join(re.escape(prefix.strip("/")) for prefix in (*prefixes, OTHER_TOKENS))
    return "/{proxied:/*(?:" + names + ")/.*}"


def plain(raw: str) -> str | None:
    """Return the path with one slash before it; None if it has anything unusual in it."""
    found = _PLAIN.fullmatch(raw)
    return f"/{found[1]}" if found else None


def is_token_path(path: str) -> bool:
    """Return True if a server may take a plain path for a token call, in whatever case."""
    return _TOKEN_PATH.fullmatch(path) is not None


def presented(query: str) -> list[str]:
    """The values of access_token in a raw query; the name may be escaped."""
    if not _may_name_it(query):
        return []
    parts = query.split("&")
    return [unquote_plus(part.partition("=")[2]) for part in parts if _is_token(part)]


def is_doubtful(query: str) -> bool:
    """Return True if a server may take another parameter of a raw query for the token.

    The proxy would not replace the value of such a parameter.
    """
    if not _may_name_it(query):
        return False
    for part in query.split("&"):
        first, *behind = (one.partition("=")[0] for one in _OTHER_JOINTS.split(part))
        if any(_is_like_it(name) for name in behind) or (
            not _is_token(part) and _is_like_it(first)
        ):
            return True
    return False


def with_token(query: str, token: str) -> str:
    """Return the same query, byte by byte, with this token in the place of the client's.

    Where the query has none, the token is added at its end.
    """
    said = f"{PARAMETER}={token if _NEEDS_NO_ESCAPE.fullmatch(token) else quote(token, safe='')}"
    if _may_name_it(query):
        parts = query.split("&")
        if any(map(_is_token, parts)):
            return "&".join(said if _is_token(part) else part for part in parts)
    return f"{query}&{said}" if query else said


def visible(query: str) -> str:
    """Return a query as it may stand in a request line.

    Bytes that may not stand there are escaped, the others stay as they are.
    """
    return (
        query
        if query.isascii() and query.isprintable() and "#" not in query
        else quote(query, _VISIBLE, errors="replace")
    )


def _may_name_it(text: str) -> bool:
    """Return False if nobody can read the parameter's name in a text, however often unescaped."""
    if "%" in text:
        text = unquote(unquote(unquote(text)))
    return "token" in text.casefold()


def _is_like_it(name: str) -> bool:
    if not _may_name_it(name):
        return False
    for _ in range(3):
        name = unquote_plus(name)
    return _LIKE_IT.fullmatch(name) is not None


def _is_token(part: str) -> bool:
    name = part.partition("=")[0]
    return name == PARAMETER or ("%" in name and unquote_plus(name) == PARAMETER)
