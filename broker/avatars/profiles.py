"""Followers' profiles: asked for in hundreds and kept for a while.

When there are too many, the longest unused are forgotten first.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from broker.avatars.circuit_breaker import CircuitBreaker
from broker.avatars.errors import AvatarError, unreachable
from broker.avatars.listing import PATIENCE_S
from broker.avatars.single_flight import SingleFlight
from broker.avatars.wechat_api import BATCH, DataApi, Profile

MOST: Final = 20_000  # some 12 MB
AT_ONCE: Final = 4


class _Known(NamedTuple):
    at: float
    profile: Profile


@dataclass(frozen=True, slots=True)
class Shown:
    """Profiles in the order asked for.

    `age_s` is that of the oldest; `trouble`: why something older than its time had to do.
    """

    profiles: list[Profile]
    age_s: float
    trouble: AvatarError | None


class Profiles:
    """Profiles by openid."""

    def __init__(
        self,
        api: DataApi,
        ttl_s: float,
        clock: Callable[[], float],
        breaker: CircuitBreaker,
        most: int = MOST,
    ) -> None:
        self._api = api
        self._ttl_s = ttl_s
        self._clock = clock
        self._breaker = breaker
        self._most = most
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._flights: SingleFlight[dict[str, _Known]] = SingleFlight()
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def of(self, openids: Sequence[str], patience_s: float = PATIENCE_S) -> Shown:
        """The profiles of these.

        Raises AvatarError where WeChat has to be asked for one and cannot be.

        Where old ones would do, new ones are waited for no longer than `patience_s`.
        """
        known = {openid: self._known[openid] for openid in openids if openid in self._known}
        due = [
            openid
            for openid in openids
            if openid not in known or self._clock() - known[openid].at >= self._ttl_s
        ]
        trouble = None
        if due:
            flights = self._flying(due)
            _, late = await asyncio.wait(
                flights, timeout=patience_s if len(known) == len(set(openids)) else None
            )
            landed = flights - late
            trouble = unreachable("late") if late else None
            for flight in landed:
                error = flight.exception()
                if error is None:
                    known |= flight.result()
                elif isinstance(error, AvatarError):
                    trouble = error
                else:
                    raise error
        if trouble and any(openid not in known for openid in openids):
            raise trouble
        return self._shown([known[openid] for openid in openids], trouble)

    def peek(self, openid: str) -> Profile | None:
        """What is known, without asking."""
        return self._known[openid].profile if openid in self._known else None

    async def close(self) -> None:
        """End what is under way."""
        await self._flights.close()

    def _shown(self, found: list[_Known], trouble: AvatarError | None) -> Shown:
        age_s = max((self._clock() - one.at for one in found), default=0.0)
        return Shown([one.profile for one in found], age_s, trouble)

    def _flying(self, due: Iterable[str]) -> "set[asyncio.Task[dict[str, _Known]]]":
        """The flights that bring these, started where there are none, a hundred openids each."""
        flights, grounded = set(), []
        for openid in dict.fromkeys(due):
            if flight := self._flights.get(openid):
                flights.add(flight)
            else:
                grounded.append(openid)
        for first in range(0, len(grounded), BATCH):
            batch = tuple(grounded[first : first + BATCH])
            flights.add(self._flights.start(batch, partial(self._fetch, batch)))
        return flights

    async def _fetch(self, openids: tuple[str, ...]) -> dict[str, _Known]:
        async with self._slots, self._breaker.calling():
            profiles = await self._api.profiles(openids)
        at = self._clock()
        found = {openid: _Known(at, profile) for openid, profile in profiles.items()}
        for openid, one in found.items():
            self._known[openid] = one
            self._known.move_to_end(openid)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        return found
