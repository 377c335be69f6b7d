"""How many requests of one client may wait at a time, and who stops waiting when that is exceeded.

A request that waits holds a connection, and with it an open file, for up to five minutes. Without a
bound one client could hold all of them. The client that waits longest is answered early, which it
cannot tell from the end of its time: it asks again.
"""

import asyncio
from typing import Final, Protocol

from broker.web.connection.holdings import Holdings

# A wait is not cut shorter than this. A client that asks again at once would otherwise be answered
# as fast as it can ask.
SHORTEST_S: Final = 1.0


class Waiter(Protocol):
    """A request that waits."""

    def cut_short(self, since: float, *, close: bool = False) -> None:
        """Answer early, if this is still the wait that began at `since` (loop time).

        With `close` the connection ends with the answer.
        """


class Waits:
    """Everybody who waits, by client; at most `most_per_client` of each, but for SHORTEST_S."""

    def __init__(self, most_per_client: int) -> None:
        self._most_per_client = most_per_client
        self._held: Holdings[Waiter] = Holdings()

    def count(self, client: str) -> int:
        """Return how many requests of a client wait."""
        return self._held.count(client)

    def enter(self, client: str, waiter: Waiter, since: float) -> None:
        """Enter one that waits since then (loop time). One too many, and the longest is cut."""
        self._held.add(client, waiter, since)
        if self._held.count(client) > self._most_per_client:
            longest, began = self._held.pop_oldest(client)
            asyncio.get_running_loop().call_at(began + SHORTEST_S, longest.cut_short, began)

    def leave(self, client: str, waiter: Waiter) -> None:
        """Remove one that waits no longer."""
        self._held.remove(client, waiter)

    def give_way(self) -> Waiter | None:
        """Cut the longest wait of the client that has most, and return it. Its connection ends."""
        if (found := self._held.pop_from_largest()) is None:
            return None
        waiter, since = found
        waiter.cut_short(since, close=True)
        return waiter


class Closable(Protocol):
    """A connection that can end with its next answer."""

    def close_after_answer(self) -> None:
        """Close the connection once its request is answered."""


class HandlerWait:
    """A request that waits in its handler, inside of `scope`. Its connection may not be ours."""

    def __init__(self, scope: asyncio.Timeout, connection: Closable | None) -> None:
        self.connection = connection
        self._scope = scope
        self._is_over = False

    def cut_short(self, since: float, *, close: bool = False) -> None:  # noqa: ARG002
        """End the scope now. A request waits once, so it is always the wait that is meant."""
        if self._is_over:
            return
        self._scope.reschedule(asyncio.get_running_loop().time())
        if close and self.connection is not None:
            self.connection.close_after_answer()

    def end(self) -> None:
        """Take note that the request waits no longer."""
        self._is_over = True
