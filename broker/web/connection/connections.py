"""Who may hold a connection, and for how long without asking anything.

aiohttp has no deadline for the first request's head, one of an hour for the next, and no cap on
connections: a thousand silent peers would stay for ever. Where there are too many, these go first,
of each kind the oldest:

1. connections that have not sent a whole request,
2. connections that have sent a head but not its body, of the peer that has most of them,
3. connections that are idle,
4. requests that wait for the next version, of the client that has most of them; these are answered.

What still finds no room is admitted on probation if it can be a probe, up to RESERVED at a time,
or because it came by the Unix socket: `token-broker get` and the watchdog come that way.
"""

import asyncio
import heapq
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from aiohttp import web

from broker.core.credential import NEVER
from broker.web.connection.connection import Connection, State, connection_of
from broker.web.connection.holdings import Holdings
from broker.web.connection.waits import HandlerWait, Waits

HEAD_DEADLINE_S: Final = 10.0  # from connecting to the end of the first request's head
BODY_DEADLINE_S: Final = 5.0  # from the end of a head to the end of its body
IDLE_S: Final = 600.0  # a connection that sends no whole request for so long is closed
MOST: Final = 16_384
MOST_PER_PEER: Final = 1024  # of one address beyond loopback
MOST_BODIES_PER_PEER: Final = 8  # requests of one address beyond loopback whose body is missing
RESERVED: Final = 16  # connections beyond the cap, for probes and for the Unix socket
SPARE_FILES: Final = 64  # for the store, calls to WeChat, and what libraries open


def most_connections(others: int = 0) -> int:
    """Return how many connections the limit on open files allows.

    `others` is how many files are needed besides, so that a refresh always finds a descriptor.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(MOST, files - SPARE_FILES - RESERVED - others))


class Connections:
    """All connections of a daemon, on the clock `now` (steady seconds); at most `most` of them.

    `refused` counts those that were turned away, `too_slow` those that were closed before they had
    sent a whole request.
    """

    def __init__(
        self,
        most: int,
        now: Callable[[], float] = time.monotonic,
        most_per_peer: int = MOST_PER_PEER,
        head_deadline_s: float = HEAD_DEADLINE_S,
    ) -> None:
        self.now = now
        self.most = most
        self.most_per_peer = most_per_peer
        self.head_deadline_s = head_deadline_s
        self.refused = 0
        self.too_slow = 0
        # Half of them is for everybody else.
        self.waits = Waits(max(1, most // 2))
        self._peak = 0  # the most that were open at once since the last call of `left`
        self._open: set[Connection] = set()
        self._silent: dict[Connection, asyncio.TimerHandle] = {}  # oldest first
        self._bodies: Holdings[Connection] = Holdings()  # by peer, those whose body is missing
        self._peers: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """How many connections there are."""
        return len(self._open)

    def left(self) -> int:
        """Return how many fewer connections there are than at their peak since the last call."""
        peak, self._peak = self._peak, self.open
        return peak - self.open

    def admit(self, connection: Connection) -> State:
        """Return the state that a new connection begins in, CLOSED to turn it away."""
        state, peer = self._admitted(connection), connection.peer
        if state is State.CLOSED:
            self.refused += 1
            return state
        self._open.add(connection)
        self._peak = max(self._peak, self.open)
        if peer:
            self._peers[peer] += 1
        loop = asyncio.get_running_loop()
        self._silent[connection] = loop.call_later(
            self.head_deadline_s, self._close_silent, connection
        )
        return state

    def forget(self, connection: Connection) -> None:
        """Take note that a connection which was admitted is closed."""
        self._stop_head_deadline(connection)
        self._open.discard(connection)
        if peer := connection.peer:
            self._peers[peer] -= 1
            if not self._peers[peer]:
                del self._peers[peer]

    @contextmanager
    def body_missing(self, connection: Connection) -> Iterator[None]:
        """While this lasts, the body of a request on that connection has not come.

        A peer with too many such connections loses the one that has been so for longest.
        """
        peer = connection.peer
        # Services of this host share one name, and may all report a dead token at once.
        most = MOST_BODIES_PER_PEER if peer else max(MOST_BODIES_PER_PEER, self.most // 8)
        self._bodies.add(peer, connection, self.now())
        if self._bodies.count(peer) > most:
            self._bodies.pop_oldest(peer)[0].abort()
        try:
            yield
        finally:
            self._bodies.remove(peer, connection)

    def close_idle(self) -> None:
        """Close the connections that have sent no whole request for IDLE_S. For a timer."""
        before = self.now() - IDLE_S
        for connection in self._idle():
            if connection.heard_at < before:
                connection.abort()

    def close_the_rest(self) -> None:
        """Close the connections that aiohttp has never seen, and so does not close itself."""
        for connection in self._open:
            if connection.handler is None and connection.transport is not None:
                connection.transport.close()

    def _admitted(self, connection: Connection) -> State:
        if connection.peer and self._peers[connection.peer] >= self.most_per_peer:
            return State.CLOSED
        if self.open >= self.most:
            self._make_room()
        if self.open < self.most:
            return State.IDLE
        if self.open >= self.most + RESERVED:
            return State.CLOSED
        return State.IDLE if connection.is_unix else State.PROBATION

    def _idle(self) -> list[Connection]:
        """Return the connections that have asked, and wait for no answer."""
        return [one for one in self._open if one.heard_at > NEVER and not one.is_answering]

    def _close_silent(self, connection: Connection) -> None:
        del self._silent[connection]
        if connection.heard_at == NEVER:
            self.too_slow += 1
            connection.abort()

    def _make_room(self) -> None:
        """Close a connection, in the order that the module's docstring gives."""
        for connection in list(self._silent):
            self._stop_head_deadline(connection)
            if connection.heard_at == NEVER:
                self.too_slow += 1
                self._give_up(connection)
                return
        if (slowest := self._bodies.pop_from_largest()) is not None:
            self._give_up(slowest[0])
            return
        # Some at once: to find them takes a look at all.
        longest_idle = heapq.nsmallest(
            max(1, self.most // 64), self._idle(), key=lambda connection: connection.heard_at
        )
        for connection in longest_idle:
            self._give_up(connection)
        if not longest_idle:
            self._end_longest_wait()

    def _end_longest_wait(self) -> None:
        waiter = self.waits.give_way()
        connection = waiter.connection if isinstance(waiter, HandlerWait) else waiter
        if isinstance(connection, Connection):
            self._open.discard(connection)

    def _give_up(self, connection: Connection) -> None:
        """Close a connection, and count it as closed now: the loop reports its end only later."""
        self._open.discard(connection)
        connection.abort()

    def _stop_head_deadline(self, connection: Connection) -> None:
        if deadline := self._silent.pop(connection, None):
            deadline.cancel()


async def read_body(request: web.Request) -> bytes:
    """Return a request's body. Raises TimeoutError if it does not come within BODY_DEADLINE_S."""
    async with asyncio.timeout(BODY_DEADLINE_S):
        connection = connection_of(request)
        if request.content.is_eof() or connection is None:
            return await request.read()
        with connection.admission.body_missing(connection):
            return await request.read()
