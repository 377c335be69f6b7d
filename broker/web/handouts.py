"""Counts who was handed which token version.

The counts are kept in memory and written to the store every few seconds, so that no answer waits
for the store.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from broker.core.handouts import KEPT_DAYS, MOST_KEPT, Handout, HandoutStore
from broker.core.ports import StoreError
from broker.core.quota import DAY
from broker.web.handed import Handed

FLUSH_S: Final = 10.0
PRUNE_S: Final = 3600.0
MOST_PENDING: Final = 4096  # rows between two writes: more are not written
MOST_SHOWN: Final = 1000


class Handouts:
    """What was seen since the last write, and the store behind it.

    `now` is the clock of the times that :meth:`record` is given; `wall` is unix time.
    """

    def __init__(
        self, store: HandoutStore, now: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        self._store = store
        self._now = now
        self._wall = wall
        self._pending: dict[tuple[str, str, str], Handout] = {}
        self._pruned_at = float("-inf")
        self.last_error: str | None = None
        self.dropped = 0  # rows that found no room

    def record(self, client: str, handed: Handed, status: int, number: int, at: float) -> None:
        """Count answers of one kind; `at` is when the last of them was given. No I/O."""
        wall = self._wall() - (self._now() - at)
        if status == 200 and handed.version is not None:  # noqa: PLR2004 -- OK
            self._add(Handout(client, handed.account, handed.version, number, wall, wall))
        for version in handed.held:
            self._add(Handout(client, handed.account, version, held=number, held_at=wall))

    def _add(self, one: Handout) -> None:
        known = self._pending.get(one.key)
        if known is None and len(self._pending) >= MOST_PENDING:
            self.dropped += 1
            return
        self._pending[one.key] = one if known is None else known.plus(one)

    async def flush(self) -> None:
        """Write what is pending; where the store refuses, it stays pending. Raises StoreError."""
        pending, self._pending = self._pending, {}
        try:
            if pending:
                await self._store.add_handouts(list(pending.values()))
            if self._now() >= self._pruned_at + PRUNE_S:
                pending = {}
                await self._store.drop_handouts(self._wall() - KEPT_DAYS * DAY, MOST_KEPT)
                self._pruned_at = self._now()
        except StoreError as error:
            self.last_error = str(error)
            for one in pending.values():
                self._add(one)
            raise
        self.last_error = None

    async def of(self, account: str, most: int = MOST_SHOWN) -> list[Handout]:
        """Return an account's rows with what is pending, the last seen first. Raises StoreError."""
        await self.flush()
        return await self._store.handouts(account, most)

    @asynccontextmanager
    async def kept(self, account: Callable[[], None]) -> AsyncIterator[None]:
        """Write every few seconds, and at the end; `account` is called before each write."""

        async def flush() -> None:
            account()
            with contextlib.suppress(StoreError):
                await self.flush()

        async def forever() -> None:
            while True:
                await asyncio.sleep(FLUSH_S)
                await flush()

        task = asyncio.create_task(forever(), name="handouts")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await flush()
