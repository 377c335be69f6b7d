"""Pages that take long to make are made once for everybody who asks at the time, on a thread.

With a thousand apps, the status page, `/v1/status` and `/metrics` take up to a tenth of a second.
However many read them, the loop and the interpreter must be free for those who ask for tokens.
"""

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from aiohttp import hdrs, web

T = TypeVar("T")

MOST_BYTES: Final = 16 * 2**20
LONGEST_S: Final = 1.0
# A page is kept for so many times the time that it took to make: making a page again and again then
# takes a twentieth of the interpreter, and a page that is quickly made is as good as never kept.
TIMES_KEPT: Final = 20
WORTH_PACKING: Final = 1024  # bytes
GZIP: Final = zlib.MAX_WBITS | 16


@dataclass(frozen=True, slots=True)
class SharedPage:
    """A page that was made, plain and packed with gzip.

    `headers` are those beside the headers of its content.
    """

    body: bytes
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    packed: bytes = b""

    def response(self, request: web.Request) -> web.Response:
        """Build the answer, packed if the client takes that."""
        headers = {**self.headers, hdrs.CONTENT_TYPE: self.content_type}
        if not self.packed:
            return web.Response(body=self.body, status=self.status, headers=headers)
        headers[hdrs.VARY] = ", ".join(filter(None, [headers.get(hdrs.VARY), "Accept-Encoding"]))
        if "gzip" not in request.headers.get(hdrs.ACCEPT_ENCODING, "").lower():
            return web.Response(body=self.body, status=self.status, headers=headers)
        headers[hdrs.CONTENT_ENCODING] = "gzip"
        return web.Response(body=self.packed, status=self.status, headers=headers)


class SharedPages:
    """The pages made within the last second.

    `now` gives steady seconds. At most `most_bytes` are kept; those that were made first go first.
    """

    def __init__(
        self,
        now: Callable[[], float] = time.monotonic,
        *,
        longest_s: float = LONGEST_S,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._now = now
        self._longest_s = longest_s
        self._most_bytes = most_bytes
        self._kept: dict[str, tuple[float, SharedPage]] = {}  # until when, in the order of making
        self._bytes = 0
        self._under_way: dict[str, asyncio.Task[SharedPage]] = {}
        self._one_at_a_time = asyncio.Semaphore(1)

    async def get(self, key: str, make: Callable[[], Awaitable[SharedPage]]) -> SharedPage:
        """Return the page of that key: the one that is kept, the one being made, or a new one.

        Raises what `make` raises, to everybody who waits for it.
        """
        until, page = self._kept.get(key, (0.0, None))
        if page is not None and self._now() < until:
            return page
        if (task := self._under_way.get(key)) is None:
            # A task of its own: whoever asked first may hang up, and others wait for it as well.
            task = self._under_way[key] = asyncio.create_task(self._make(key, make))
        await asyncio.wait({task})
        return task.result()

    async def on_thread(self, work: Callable[[], T]) -> T:
        """Run a computation on a thread; one at a time, so that they do not take turns."""
        async with self._one_at_a_time:
            return await asyncio.to_thread(work)

    async def _make(self, key: str, make: Callable[[], Awaitable[SharedPage]]) -> SharedPage:
        began = self._now()
        try:
            page = await make()
        finally:
            del self._under_way[key]
        took = self._now() - began
        self._keep(key, page, self._now() + min(self._longest_s, TIMES_KEPT * took))
        return page

    def _keep(self, key: str, page: SharedPage, until: float) -> None:
        self._forget(key)
        self._kept[key] = until, page
        self._bytes += _size(key, page)
        for older in [other for other, (end, _) in self._kept.items() if end <= self._now()]:
            self._forget(older)
        while self._bytes > self._most_bytes:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: str) -> None:
        if (found := self._kept.pop(key, None)) is not None:
            self._bytes -= _size(key, found[1])


def _size(key: str, page: SharedPage) -> int:
    return len(key) + len(page.body) + len(page.packed)


def shared_page(
    body: bytes, content_type: str, headers: Mapping[str, str], status: int = 200
) -> SharedPage:
    """Pack a page where that is worth it. Takes time: call it on the thread that made the body."""
    packed = b""
    if len(body) >= WORTH_PACKING:
        packing = zlib.compressobj(level=1, wbits=GZIP)
        packed = packing.compress(body) + packing.flush()
    return SharedPage(body, content_type, headers, status, packed)
