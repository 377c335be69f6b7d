"""One proxied call on the wire: the body on its way up, and the answer on its way down.

Nothing is kept but the beginning of an upload, for a second try, and that of an answer, to see
whether it is a refusal.
"""

import asyncio
import re
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self

import aiohttp
from aiohttp import hdrs, web

from broker.core.answer import verdict
from broker.core.ports import Verdict
from broker.web.proxy import headers as hops
from broker.web.proxy.masking import MASKED, PACKED, unpack

LOOKED_AT: Final = 8192  # bytes of a refusal; WeChat's have a few hundred
TEXT: Final = b"{[<"  # what JSON and error pages begin with
AT_ONCE: Final = 64 * 1024  # a body that is no longer is read whole, and sent in one piece
GRAIN: Final = (
    0.1  # the part of a deadline by which it may come early: it is not moved for every byte
)
_REFUSAL: Final = re.compile(rb"4(?:0001|0014|2001)")


class IdleDeadline:
    """The deadline of an exchange: how long no byte may move, and how long all of it may take.

    As a context it raises TimeoutError. Calling it says that a byte has come or gone.
    """

    def __init__(self, idle_s: float, total_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle_s = idle_s
        self._moved_at = self._loop.time()
        self._end = self._moved_at + total_s
        self._limit = asyncio.timeout_at(min(self._moved_at + idle_s, self._end))
        self._is_on = False

    async def __aenter__(self) -> Self:
        await self._limit.__aenter__()
        self._is_on = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_on = False
        await self._limit.__aexit__(kind, error, trace)

    def __call__(self, beyond_s: float = 0.0) -> None:
        """A byte moved; what comes next may take `beyond_s` longer than a byte may."""
        now = self._loop.time()
        if (
            self._is_on
            and not self._limit.expired()
            and (beyond_s or abs(now - self._moved_at) > GRAIN * self._idle_s)
        ):
            self._moved_at = now + beyond_s
            self._limit.reschedule(min(self._moved_at + self._idle_s, self._end))


class TooLarge(Exception):  # noqa: N818 -- an answer, raised
    """The request's body is larger than it may be."""


class Upload:
    """A request's body: read once, sent once or, where all that was read is still kept, twice."""

    def __init__(self, request: web.Request, most: int, most_kept: int, pace: IdleDeadline) -> None:
        self._content = request.content
        self._most, self._most_kept, self._pace = most, most_kept, pace
        self.length = hops.length(request.headers)
        self.exists = request.body_exists
        self.is_too_large = (self.length or 0) > most
        self._seen = 0
        self._kept: bytearray | None = bytearray() if (self.length or 0) <= most_kept else None
        self._reading = (
            asyncio.Lock()
        )  # a try that is given up may not have let go yet when the next begins

    @property
    def can_be_sent_again(self) -> bool:
        """True if nothing of it is lost. What is unread yet is read when it is sent again."""
        return not self.exists or self._kept is not None

    async def data(self) -> bytes | AsyncIterator[bytes] | None:
        """The body for one try. Raises TooLarge, here or while it is sent."""
        if self.is_too_large:
            raise TooLarge
        if not self.exists:
            return None
        if self.length is None or self.length > min(AT_ONCE, self._most_kept):
            return self._pieces()
        while await self._next():
            pass
        return bytes(self._kept or b"")

    async def _pieces(self) -> AsyncIterator[bytes]:
        if self._kept:
            yield bytes(self._kept)
        while piece := await self._next():
            yield piece

    async def _next(self) -> bytes:
        async with self._reading:
            piece = await self._content.readany()
            self._seen += len(piece)
            if self._seen > self._most:
                self.is_too_large = True
                raise TooLarge
            if self._kept is not None:
                self._kept += piece
                if len(self._kept) > self._most_kept:
                    self._kept = None
            self._pace()
            return piece


@dataclass(frozen=True, slots=True)
class Peek:
    """What was seen of an answer: its beginning, and whether that is all."""

    head: bytes
    whole: bool
    coding: str
    is_refusal: bool  # WeChat says that the token will not do


async def look(answer: aiohttp.ClientResponse, pace: IdleDeadline) -> Peek:
    """Read as much of an answer as may refuse the token or quote it.

    What is neither text nor packed, as a picture, does neither. Content types lie, bytes do not.
    """
    coding = answer.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower()
    content, head = answer.content, b""
    while not content.at_eof() and len(head) <= MASKED:
        head += await content.readany()
        pace()
        if coding not in PACKED and (begins := head.lstrip()[:1]) and begins not in TEXT:
            break
    whole = content.at_eof()
    may_refuse = whole and len(head) <= LOOKED_AT and answer.status == HTTPStatus.OK
    return Peek(head, whole, coding, is_refusal=may_refuse and _refuses(head, coding))


async def pass_on(
    response: web.StreamResponse,
    request: web.Request,
    answer: aiohttp.ClientResponse,
    head: bytes,
    pace: IdleDeadline,
) -> None:
    """Write the head of an answer, and the rest as it comes, no faster than the client reads."""
    await response.prepare(request)
    if head:
        await response.write(head)
    while piece := await answer.content.readany():
        pace()
        await response.write(piece)
        pace()
    await response.write_eof()


def cut(request: web.Request) -> None:
    """End the connection in the middle of an answer.

    The client then does not take what has come for all of it.
    """
    if request.transport is not None:
        request.transport.abort()


def _refuses(body: bytes, coding: str) -> bool:
    if coding in PACKED:
        try:
            body = unpack(body)[0][:LOOKED_AT]
        except zlib.error:
            return False
    return _REFUSAL.search(body) is not None and verdict(body) is Verdict.DEAD
