"""Who may hold a connection, and for how long without asking anything.

aiohttp has no deadline for the first request's head, one of an hour for the next, and no cap on
connections: a thousand silent peers would sit there for ever. Every connection passes through here
first; what a peer sends goes on to aiohttp untouched (or is answered from what aiohttp said a
moment ago, see fast_path.py).
"""

import asyncio
import heapq
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

from aiohttp import web

from broker.core.credential import NEVER
from broker.web.connection.malformed import protocol

HEAD_DEADLINE_S: Final = 10.0  # from connecting to the end of the first request's head
IDLE_S: Final = 600.0  # a connection that sends no whole request for so long is closed
MOST: Final = 16_384
MOST_PER_PEER: Final = 1024  # of one address beyond loopback
SPARE_FILES: Final = 64  # for the store, calls to WeChat, and what libraries open
BACKLOG: Final = 1024
AT_ONCE: Final = 8


def most_connections(others: int = 0) -> int:
    """How many connections the limit on open files allows beside `others`, so that a refresh always finds a descriptor."""
    return max(16, min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES - others))


class Connections:
    """All connections of a daemon, on the clock `now` (steady seconds).

    Where they are too many, those go first that never asked anything, then those that asked least
    recently.
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
        self._peak = 0  # the most that were open at once since the last time that somebody asked
        self._open: set[Guarded] = set()
        self._awake: dict[
            asyncio.Protocol, Guarded
        ] = {}  # by aiohttp's protocol, those that have one
        self._silent: dict[Guarded, asyncio.TimerHandle] = {}  # oldest first
        self._peers: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """How many there are."""
        return len(self._open)

    def left(self) -> int:
        """How many fewer there are than the most there were since the last time."""
        peak, self._peak = self._peak, self.open
        return peak - self.open

    def of(self, inner: asyncio.Protocol) -> "Guarded | None":
        """The connection that an aiohttp protocol serves."""
        return self._awake.get(inner)

    def attach(self, guarded: "Guarded", inner: asyncio.Protocol) -> None:
        """A connection has been handed to aiohttp."""
        self._awake[inner] = guarded

    def admit(self, guarded: "Guarded", transport: asyncio.Transport) -> bool:
        """Take a connection, or say that it must be closed."""
        peer = _peer(transport)
        if (peer and self._peers[peer] >= self.most_per_peer) or (
            self.open >= self.most and not self._make_room()
        ):
            self.refused += 1
            return False
        self._open.add(guarded)
        self._peak = max(self._peak, len(self._open))
        if peer:
            self._peers[peer] += 1
        loop = asyncio.get_running_loop()
        self._silent[guarded] = loop.call_later(self.head_deadline_s, self._first_look, guarded)
        return True

    def forget(self, guarded: "Guarded", transport: asyncio.Transport) -> None:
        """A connection that was admitted is closed."""
        self._is_heard(guarded)
        self._open.discard(guarded)
        if guarded.inner is not None:
            self._awake.pop(guarded.inner, None)
        if peer := _peer(transport):
            self._peers[peer] -= 1
            if not self._peers[peer]:
                del self._peers[peer]

    def close_idle(self) -> None:
        """Close those that have sent no whole request for IDLE_S. For a timer."""
        before = self.now() - IDLE_S
        for guarded in self._idle():
            if guarded.heard_at < before:
                guarded.abort()

    def close_the_rest(self) -> None:
        """Close those that aiohttp knows nothing of."""
        for guarded in [
            one for one in self._open if one.inner is None and one.transport is not None
        ]:
            guarded.transport.close()  # type: ignore[union-attr] # looked at above

    def _idle(self) -> "list[Guarded]":
        """Those that asked once, and wait for no answer."""
        return [
            guarded
            for guarded in self._open
            if guarded.heard_at > NEVER and not guarded.is_answering
        ]

    def _first_look(self, guarded: "Guarded") -> None:
        del self._silent[guarded]
        if guarded.heard_at == NEVER:
            self.too_slow += 1
            guarded.abort()

    def _make_room(self) -> bool:
        for guarded in list(self._silent):
            self._is_heard(guarded)
            if guarded.heard_at == NEVER:
                self.too_slow += 1
                self._give_up(guarded)
                return True
        # Some at once: to find them takes a look at all.
        longest_idle = heapq.nsmallest(
            max(1, self.most // 64), self._idle(), key=lambda guarded: guarded.heard_at
        )
        for guarded in longest_idle:
            self._give_up(guarded)
        return bool(longest_idle)

    def _give_up(self, guarded: "Guarded") -> None:
        """Close it, and count it as closed: the loop tells of that later, and more may come before."""
        self._open.discard(guarded)
        guarded.abort()

    def _is_heard(self, guarded: "Guarded") -> None:
        if deadline := self._silent.pop(guarded, None):
            deadline.cancel()


class Guarded(asyncio.Protocol):
    """One connection: counted from open to close, and otherwise aiohttp's, whose protocol is made when it is needed first.

    A crowd that connects and says nothing costs no more than this. `heard_at`: when the last whole
    request came.
    """

    __slots__ = ("_connections", "_make", "heard_at", "inner", "transport")

    def __init__(self, connections: Connections, make: Callable[[], asyncio.Protocol]) -> None:
        self.heard_at = NEVER
        self.inner: asyncio.Protocol | None = None
        self.transport: asyncio.Transport | None = None
        self._connections = connections
        self._make = make

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it, or close it without a word."""
        stream = cast("asyncio.Transport", transport)
        if self._connections.admit(self, stream):
            self.transport = stream
        else:
            stream.abort()

    def data_received(self, data: bytes) -> None:
        """Hand it to aiohttp; what a refused connection still sends goes nowhere."""
        if self.transport is not None:
            (self.inner or self.wake()).data_received(data)

    def wake(self) -> asyncio.Protocol:
        """Have aiohttp take the connection over."""
        inner = self.inner = self._make()
        self._connections.attach(self, inner)
        if self.transport is not None:
            inner.connection_made(self.transport)
        return inner

    def pause_writing(self) -> None:
        """Pass it on."""
        if self.inner is not None:
            self.inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        if self.inner is not None:
            self.inner.resume_writing()

    def eof_received(self) -> bool | None:
        """Pass it on; without aiohttp there is nothing to finish."""
        return None if self.inner is None else self.inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let it go."""
        if self.transport is not None:
            self._connections.forget(self, self.transport)
            if self.inner is not None:
                self.inner.connection_lost(exc)

    def abort(self) -> None:
        """Close it without a word."""
        if self.transport is not None:
            self.transport.abort()

    @property
    def is_answering(self) -> bool:
        """Whether aiohttp has a request that it has not answered yet.

        What we lean on of its inside (a test pins it).
        """
        inner: Any = self.inner
        return inner is not None and bool(inner._request_in_progress)  # noqa: SLF001


Guard = Callable[[Callable[[], asyncio.Protocol]], Guarded]


class GuardedSite(web.BaseSite):
    """A listening socket whose connections are guarded."""

    def __init__(self, runner: web.BaseRunner, sock: socket.socket, guard: Guard) -> None:
        super().__init__(runner, backlog=BACKLOG)
        self._sock = sock
        self._guard = guard

    @property
    def name(self) -> str:
        """What aiohttp prints of it."""
        return str(self._sock)

    async def start(self) -> None:
        """Accept from now on."""
        await super().start()
        server = self._runner.server
        if server is None:
            raise RuntimeError("the runner is not set up")
        loop = asyncio.get_running_loop()
        # asyncio accepts as many at once as its backlog says: more than there are spare files would
        # leave a refresh none.
        make = partial(protocol, server)
        self._server = await loop.create_server(
            lambda: self._guard(make), sock=self._sock, backlog=AT_ONCE
        )
        self._sock.listen(BACKLOG)


def _peer(transport: asyncio.Transport) -> str:
    """The address of a peer beyond loopback; empty for loopback and Unix sockets, where all services share one."""
    name = transport.get_extra_info("peername")
    host = str(name[0]) if isinstance(name, tuple) else ""
    return "" if host.startswith("127.") or host in {"::1", ""} else host
