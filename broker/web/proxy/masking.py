"""What no answer tells a client of the proxy: the app's tokens and its AppSecret.

Some of WeChat's interfaces, and the error pages of servers between, quote the request with its
token (WECHAT.md W134). A client with a handle must not learn the token in that way.
"""

import json
import re
import zlib
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, unquote

from broker.core.credential import Credential
from broker.core.secret import Secret
from broker.core.serving import Served
from broker.tokens.keeper import Keeper

MASKED: Final = 64 * 1024  # bytes at the beginning of an answer in which they are masked
SHORTEST: Final = 8  # characters; anything shorter could be a word of the answer's own
PACKED: Final = frozenset({"gzip", "x-gzip", "deflate"})
MOST_KNOWN: Final = 4096
_ESCAPE: Final = re.compile("%..")


class WithheldError(Exception):
    """An answer quotes a secret and is packed in a way that does not allow masking it."""


class Mask:
    """Hides some secrets in bytes, in every spelling that URLs and JSON have for them."""

    def __init__(self, secrets: Iterable[Secret]) -> None:
        texts = {secret.reveal() for secret in secrets}
        self._texts = [text for text in texts if len(text) >= SHORTEST]
        spellings = {
            spelling
            for text in self._texts
            for escaped in [json.dumps(text)[1:-1]]
            for quoted in [quote(text, safe="")]
            for spelling in (
                text,
                quoted,
                _ESCAPE.sub(lambda found: found[0].lower(), quoted),
                escaped,
                escaped.replace("/", r"\/"),
            )
        }
        self._spellings = [spelling.encode() for spelling in spellings]

    def is_in(self, body: bytes) -> bool:
        """Return True if any of the secrets is in the bytes."""
        return any(spelling in body for spelling in self._spellings)

    def is_in_header(self, value: str) -> bool:
        """Return True if any of the secrets is in a header's value, escaped or not."""
        plain = unquote(value) if "%" in value else value
        return any(text in value or text in plain for text in self._texts)

    def cover(self, body: bytes) -> bytes:
        """Return the bytes with asterisks in the place of the secrets; the length stays."""
        for spelling in self._spellings:
            body = body.replace(spelling, b"*" * len(spelling))
        return body


class Masks:
    """The mask of each app: for the token in force, the one before it and the AppSecret."""

    def __init__(self) -> None:
        self._by_app: dict[str, tuple[Keeper, Credential, Secret, Mask]] = {}

    def of(self, keeper: Keeper, sent: Served) -> Mask:
        """Return the mask of a keeper's app, which also hides the token that was sent."""
        name = keeper.account.name
        found = self._by_app.get(name)
        credential, secret = keeper.credential, keeper.account.secret
        is_known = found and found[0] is keeper and found[1] is credential and found[2] is secret
        if found and is_known and sent.credential is credential:
            return found[3]
        held = (credential.token, keeper.previous, sent.token)
        mask = Mask([secret, *(token.value for token in held if token is not None)])
        if len(self._by_app) >= MOST_KNOWN:
            self._by_app.clear()  # apps come from the configuration, which may be read often
        self._by_app[name] = keeper, credential, secret, mask
        return mask


def unpack(body: bytes) -> tuple[bytes, bool]:
    """Return the beginning of a packed body, at most `MASKED` bytes, and True if that is all.

    Raises zlib.error.
    """
    unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    plain = unpacking.decompress(body, MASKED)
    return plain, unpacking.eof and not unpacking.unused_data


def masked(mask: Mask, head: bytes, coding: str, *, whole: bool) -> tuple[bytes, str]:
    """Return the beginning of an answer with its secrets masked, and its coding.

    `whole` says that `head` is all of the answer. A packed answer that quotes a secret is unpacked.
    Raises WithheldError where that is not possible.
    """
    if coding not in PACKED:
        return mask.cover(head), coding
    try:
        plain, complete = unpack(head)
    except zlib.error:
        return head, coding
    if not mask.is_in(plain):
        return head, coding
    if not (whole and complete):
        raise WithheldError
    return mask.cover(plain), "identity"
