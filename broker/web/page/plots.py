"""The plots of all apps, each read from the ledger again only when the ledger has changed."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final

from broker.core.credential import Account
from broker.core.ports import Clock, StoreError
from broker.tokens.keeper import Keeper
from broker.web.page.plot import HOUR, HOURS, Plot, plot

History = Callable[[float, Account], Awaitable[list[dict[str, Any]]]]

# A plot has at most nine bars for each of 48 hours, which is some 100 KB; most have one bar.
MOST_KEPT: Final = 64


class Plots:
    """Draws an app's plot, and keeps those that were looked at last.

    `history` returns the calls of an account since a wall time; it raises StoreError.
    """

    def __init__(self, history: History, clock: Clock) -> None:
        self._history = history
        self._clock = clock
        self._kept: OrderedDict[str, tuple[object, Plot]] = OrderedDict()

    async def of(self, keeper: Keeper) -> Plot | None:
        """Return two days of an app's calls, or None if the ledger cannot be read.

        The store's thread has tokens to write: it is not asked again for what is known.
        """
        name, wall = keeper.account.name, self._clock.wall()
        key = (keeper.credential, keeper.usage(), keeper.store_error, wall // HOUR)
        kept = self._kept.pop(name, None)
        if kept is None or kept[0] != key:
            try:
                calls = await self._history(wall - (HOURS + 1) * HOUR, keeper.account)
            except StoreError:
                return None
            kept = key, await asyncio.to_thread(plot, calls, wall)
        self._kept[name] = kept  # the last one is the one that was looked at last
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return kept[1]
