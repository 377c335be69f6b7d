"""The list of followers, page by page of `user/get`: each asked for when somebody wants it, and once per `ttl_s` at most.

WeChat allows 500 such calls a day, so the first screen of a large account costs one call, not one per ten thousand
followers. What a page knows outlives its time: where WeChat or the daemon cannot be asked, yesterday's page is shown.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from broker.avatars.circuit_breaker import Allowance, Brake
from broker.avatars.errors import Trouble, unreachable
from broker.avatars.openids import Roll, Sheet
from broker.avatars.single_flight import Flights
from broker.avatars.wechat_api import DataApi

PATIENCE_S: Final = 2.0  # with a new answer, where an old one can be shown


class Place(NamedTuple):
    """Where a window begins: after `anchor`, or, if that one has left, at `position`."""

    position: int = 0
    anchor: str = ""


@dataclass(frozen=True, slots=True)
class Window:
    """Some followers in order, from `start` on. `age_s` is that of the oldest page looked at."""

    openids: list[str]
    start: int
    total: int
    is_end: bool
    age_s: float = 0.0
    trouble: Trouble | None = None  # why something older than `ttl_s` had to do


@dataclass(frozen=True, slots=True)
class _Found:
    sheet: Sheet
    base: int  # followers on the pages before
    trouble: Trouble | None = None
    is_new: bool = False


class Listing:
    """Pages of openids, packed, in memory: 3.3 MB for 100 000 followers."""

    def __init__(self, api: DataApi, ttl_s: float, clock: Callable[[], float], allowance: Allowance, brake: Brake) -> None:
        self._api = api
        self._ttl_s = ttl_s
        self._clock = clock
        self._allowance = allowance
        self._brake = brake
        self._sheets: list[Sheet] = []
        self._flights: Flights[Sheet] = Flights()

    @property
    def is_known(self) -> bool:
        """Whether there is anything to show without asking."""
        return bool(self._sheets)

    async def window(self, place: Place, limit: int) -> Window:
        """Up to `limit` followers. Raises Trouble where a page is needed that neither WeChat nor memory has."""
        openids: list[str] = []
        start, total, oldest, trouble, is_end = place.position, 0, self._clock(), None, True
        async for found in self._pages(place):
            sheet, first = found.sheet, start + len(openids) - found.base
            if not openids and place.anchor:
                first = self._after(place, found)
                start = found.base + first
            openids += sheet.roll.slice(first, first + limit - len(openids))
            total, oldest, trouble = sheet.total, min(oldest, sheet.at), trouble or found.trouble
            is_end = sheet.is_last and start + len(openids) >= found.base + len(sheet.roll)
            if len(openids) >= limit:
                break
        return Window(openids, start, total, is_end, self._clock() - oldest, trouble)

    async def close(self) -> None:
        """End what is under way."""
        await self._flights.close()

    async def _pages(self, place: Place) -> AsyncIterator[_Found]:
        """The pages from that of the place on. Those before it need only be there, however old they are."""
        base, number, after = 0, 0, ""
        while True:
            found = await self._page(number, base, after)
            if found.sheet.is_last or base + len(found.sheet.roll) > place.position:
                found = found if found.is_new else await self._page(number, base, after, fresh=True)
                yield found
            if found.sheet.is_last:
                return
            base, number, after = base + len(found.sheet.roll), number + 1, found.sheet.end

    @staticmethod
    def _after(place: Place, found: _Found) -> int:
        """Where on its page a window begins: the list may have changed since the cursor was given."""
        at = place.position - found.base
        if found.sheet.roll.slice(at - 1, at) == [place.anchor] or place.position <= found.base:
            return max(at, 0)
        where = found.sheet.roll.find(place.anchor)
        return at if where is None else where + 1

    async def _page(self, number: int, base: int, after: str, *, fresh: bool = False) -> _Found:
        """One page: from memory where it will do, else WeChat's, else memory's all the same."""
        held = self._sheets[number] if number < len(self._sheets) else None
        if held and held.after == after and not (fresh and self._clock() - held.at >= self._ttl_s):
            return _Found(held, base)
        flight = self._flights.join(number, lambda: self._fetch(number, after, base))
        done, _ = await asyncio.wait({flight}, timeout=PATIENCE_S if held else None)
        if not done and held:
            return _Found(held, base, unreachable("late"))
        try:
            return _Found(flight.result(), base, is_new=True)
        except Trouble as trouble:
            if held is None:
                raise
            return _Found(held, base, trouble)

    async def _fetch(self, number: int, after: str, base: int) -> Sheet:
        async with self._brake.calling():
            self._allowance.spend()
            listed = await self._api.followers(after)
        # The real last page has a next_openid as well (wechat.md §3): the total tells, or a page that leads nowhere.
        is_last = not listed.openids or listed.next_openid in {"", after} or base + len(listed.openids) >= listed.total
        sheet = Sheet(after, Roll(listed.openids), listed.total, is_last, self._clock())
        self._sheets[number:] = [sheet] if is_last else [sheet, *self._sheets[number + 1 :]]
        return sheet
