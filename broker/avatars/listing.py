"""The list of followers, page by page of `user/get`.

A page is asked for when somebody wants it, and once per `ttl_s` at most.

WeChat allows 500 such calls a day, so the first screen of a large account costs one call, not one
per ten thousand followers. A page is kept beyond its time: where WeChat or the daemon cannot be
asked, yesterday's page is shown.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from broker.avatars.circuit_breaker import CircuitBreaker, TokenBucket
from broker.avatars.errors import AvatarError, unreachable
from broker.avatars.openids import ListPage, Openids
from broker.avatars.single_flight import SingleFlight
from broker.avatars.wechat_api import DataApi

PATIENCE_S: Final = 2.0  # with a new answer, where an old one can be shown


class Cursor(NamedTuple):
    """Where a window begins: after `anchor`, or, if that one has left, at `position`."""

    position: int = 0
    anchor: str = ""


@dataclass(frozen=True, slots=True)
class ListWindow:
    """Some followers in order, from `start` on. `age_s` is that of the oldest page looked at."""

    openids: list[str]
    start: int
    total: int
    is_end: bool
    age_s: float = 0.0
    trouble: AvatarError | None = None  # why something older than `ttl_s` had to do


@dataclass(frozen=True, slots=True)
class _Found:
    page: ListPage
    base: int  # followers on the pages before
    trouble: AvatarError | None = None
    is_new: bool = False


class Listing:
    """Pages of openids, packed, in memory: 3.3 MB for 100 000 followers."""

    def __init__(
        self,
        api: DataApi,
        ttl_s: float,
        clock: Callable[[], float],
        bucket: TokenBucket,
        breaker: CircuitBreaker,
    ) -> None:
        self._api = api
        self._ttl_s = ttl_s
        self._clock = clock
        self._bucket = bucket
        self._breaker = breaker
        self._pages_held: list[ListPage] = []
        self._flights: SingleFlight[ListPage] = SingleFlight()

    @property
    def is_known(self) -> bool:
        """True if there is anything to show without asking."""
        return bool(self._pages_held)

    async def window(self, cursor: Cursor, limit: int) -> ListWindow:
        """Up to `limit` followers.

        Raises AvatarError where a page is needed that neither WeChat nor memory has.
        """
        openids: list[str] = []
        start, total, oldest, trouble, is_end = cursor.position, 0, self._clock(), None, True
        async for found in self._pages(cursor):
            page, first = found.page, start + len(openids) - found.base
            if not openids and cursor.anchor:
                first = self._after(cursor, found)
                start = found.base + first
            openids += page.openids.slice(first, first + limit - len(openids))
            total, oldest, trouble = page.total, min(oldest, page.at), trouble or found.trouble
            is_end = page.is_last and start + len(openids) >= found.base + len(page.openids)
            if len(openids) >= limit:
                break
        return ListWindow(openids, start, total, is_end, self._clock() - oldest, trouble)

    async def close(self) -> None:
        """End what is under way."""
        await self._flights.close()

    async def _pages(self, cursor: Cursor) -> AsyncIterator[_Found]:
        """The pages from that of the cursor on.

        Those before it need only be there, however old they are.
        """
        base, number, after = 0, 0, ""
        while True:
            found = await self._page(number, base, after)
            if found.page.is_last or base + len(found.page.openids) > cursor.position:
                found = found if found.is_new else await self._page(number, base, after, fresh=True)
                yield found
            if found.page.is_last:
                return
            base, number, after = base + len(found.page.openids), number + 1, found.page.end

    @staticmethod
    def _after(cursor: Cursor, found: _Found) -> int:
        """Return where on its page a window begins.

        The list may have changed since the cursor was given.
        """
        at = cursor.position - found.base
        if found.page.openids.slice(at - 1, at) == [cursor.anchor] or cursor.position <= found.base:
            return max(at, 0)
        where = found.page.openids.find(cursor.anchor)
        return at if where is None else where + 1

    async def _page(self, number: int, base: int, after: str, *, fresh: bool = False) -> _Found:
        """One page: from memory where it will do, else WeChat's, else memory's all the same."""
        held = self._pages_held[number] if number < len(self._pages_held) else None
        if held and held.after == after and not (fresh and self._clock() - held.at >= self._ttl_s):
            return _Found(held, base)
        flight = self._flights.join(number, lambda: self._fetch(number, after, base))
        done, _ = await asyncio.wait({flight}, timeout=PATIENCE_S if held else None)
        if not done and held:
            return _Found(held, base, unreachable("late"))
        try:
            return _Found(flight.result(), base, is_new=True)
        except AvatarError as trouble:
            if held is None:
                raise
            return _Found(held, base, trouble)

    async def _fetch(self, number: int, after: str, base: int) -> ListPage:
        async with self._breaker.calling():
            self._bucket.spend()
            listed = await self._api.followers(after)
        # The real last page has a next_openid as well (WECHAT.md W39): the total tells, or a page
        # that leads nowhere.
        is_last = (
            not listed.openids
            or listed.next_openid in {"", after}
            or base + len(listed.openids) >= listed.total
        )
        page = ListPage(after, Openids(listed.openids), listed.total, is_last, self._clock())
        self._pages_held[number:] = [page] if is_last else [page, *self._pages_held[number + 1 :]]
        return page
