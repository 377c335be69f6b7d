"""Headers on their way through the proxy.

Those that concern one connection, or say who asks the broker, are not passed on.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from aiohttp import hdrs
from multidict import CIMultiDict, CIMultiDictProxy

from broker.web.proxy.masking import Mask

HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# Host is WeChat's; Expect was answered by us. Servers that heed a path or a method in a header
# would call something else than was looked at.
OURS: Final = HOP_BY_HOP | {
    "host",
    "expect",
    "cookie",
    "cookie2",
    "authorization",
    "accept-encoding",
    "x-original-url",
    "x-rewrite-url",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
}
THEIRS: Final = HOP_BY_HOP | {"set-cookie", "set-cookie2", "alt-svc"}
OUR_PREFIX: Final = "x-token-broker"
READABLE: Final = {"gzip", "deflate", "identity"}  # what relay.py can look into
_SENDABLE: Final = re.compile(
    r"[\t\x20-\x7e\x80-\ud7ff\ue000-\U0010ffff]*"
)  # neither control characters nor half ones

Headers = CIMultiDictProxy[str]


def onward(headers: Headers) -> CIMultiDict[str]:
    """The headers of a request, for WeChat."""
    # Where _ is taken for - in names, these would be what was left out, or another length. nginx
    # drops them, too.
    passed = _kept(headers, OURS, with_underscores=False)
    passed[hdrs.ACCEPT_ENCODING] = _codings(headers.getall(hdrs.ACCEPT_ENCODING, []))
    return passed


def back(headers: Headers, mask: Mask | None = None) -> CIMultiDict[str]:
    """Return the headers of an answer for the client.

    A header that quotes what the mask hides, as that of a redirect may, is left out.
    """
    passed = _kept(headers, THEIRS)
    if mask is not None:
        for name in {name for name, value in passed.items() if mask.is_in_header(value)}:
            passed.popall(name, None)
    return passed


def is_packed(headers: Headers) -> bool:
    """Return True if a request's body is in a coding besides chunks.

    aiohttp undoes some of these codings and cannot make them again.
    """
    transfer = {value.strip().lower() for value in headers.getall(hdrs.TRANSFER_ENCODING, [])}
    return headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity" or not transfer <= {
        "chunked"
    }


def _kept(
    headers: Headers, left: frozenset[str], *, with_underscores: bool = True
) -> CIMultiDict[str]:
    for value in headers.getall(hdrs.CONNECTION, ()):
        left = left | {name.strip().lower() for name in value.split(",")}
    kept: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        lowered = name.lower()
        if lowered in left or lowered.startswith(OUR_PREFIX):
            continue
        if "_" in name and not with_underscores:
            continue
        if (value.isascii() and value.isprintable()) or _SENDABLE.fullmatch(value):
            kept.add(name, value)
    return kept


def _codings(accepted: Iterable[str]) -> str:
    """Those of the client's codings that a refusal of WeChat's can be read in."""
    words = [word.strip() for value in accepted for word in value.split(",")]
    return (
        ", ".join(word for word in words if word.partition(";")[0].strip().lower() in READABLE)
        or "identity"
    )


def length(headers: Mapping[str, str]) -> int | None:
    """The Content-Length; None where there is none, or one that is no number."""
    said = headers.get(hdrs.CONTENT_LENGTH, "")
    return int(said) if said.isascii() and said.isdigit() else None
