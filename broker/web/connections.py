"""Who may hold a connection, and for how long without asking anything.

aiohttp has no deadline for the first request's head, one of an hour for the next, and no cap on connections: a thousand
silent peers would sit there for ever. Every connection passes through here first; what a peer sends goes on to aiohttp
untouched (or is answered from what aiohttp said a moment ago, see express.py).
"""

import asyncio
import heapq
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, cast

from aiohttp import web

from broker.core.credential import NEVER
from broker.web.refusals import protocol

HEAD_DEADLINE_S: Final = 10.0  # from connecting to the end of the first request's head
IDLE_S: Final = 600.0  # a connection that sends no whole request for so long is closed
MOST: Final = 16_384
MOST_PER_PEER: Final = 1024  # of one address beyond loopback
SPARE_FILES: Final = 64  # for the store, calls to WeChat, and what libraries open
BACKLOG: Final = 1024
AT_ONCE: Final = 8


def most_connections() -> int:
    """How many connections the limit on open files allows, so that a refresh always finds a descriptor."""
    return max(16, min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES))


class Connections:
    """All connections of a daemon, on the clock `now` (steady seconds).

    Where they are too many, those go first that never asked anything, then those that asked least recently.
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
        self._open: dict[asyncio.Protocol, Guarded] = {}  # by aiohttp's protocol
        self._silent: dict[Guarded, asyncio.TimerHandle] = {}  # oldest first
        self._peers: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """How many there are."""
        return len(self._open)

    def of(self, inner: asyncio.Protocol) -> "Guarded | None":
        """The connection that an aiohttp protocol serves."""
        return self._open.get(inner)

    def admit(self, guarded: "Guarded", transport: asyncio.Transport) -> bool:
        """Take a connection, or say that it must be closed."""
        peer = _peer(transport)
        if (peer and self._peers[peer] >= self.most_per_peer) or (self.open >= self.most and not self._make_room()):
            self.refused += 1
            return False
        self._open[guarded.inner] = guarded
        if peer:
            self._peers[peer] += 1
        loop = asyncio.get_running_loop()
        self._silent[guarded] = loop.call_later(self.head_deadline_s, self._first_look, guarded)
        return True

    def forget(self, guarded: "Guarded", transport: asyncio.Transport) -> None:
        """A connection that was admitted is closed."""
        self._is_heard(guarded)
        del self._open[guarded.inner]
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

    def _idle(self) -> "list[Guarded]":
        """Those that asked once, and wait for no answer."""
        return [guarded for guarded in self._open.values() if guarded.heard_at > NEVER and not guarded.is_answering]

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
                guarded.abort()
                return True
        # Some at once: to find them takes a look at all.
        longest_idle = heapq.nsmallest(max(1, self.most // 64), self._idle(), key=lambda guarded: guarded.heard_at)
        for guarded in longest_idle:
            guarded.abort()
        return bool(longest_idle)

    def _is_heard(self, guarded: "Guarded") -> None:
        if deadline := self._silent.pop(guarded, None):
            deadline.cancel()


class Guarded(asyncio.Protocol):
    """One connection: counted from open to close, and otherwise aiohttp's. `heard_at`: when the last whole request came."""

    def __init__(self, connections: Connections, inner: asyncio.Protocol) -> None:
        self.inner = inner
        self.heard_at = NEVER
        self._connections = connections
        self.transport: asyncio.Transport | None = None
        # The hot path, bound once: a method of ours in between would cost every request.
        self.data_received = inner.data_received  # type: ignore[method-assign]
        self.pause_writing = inner.pause_writing  # type: ignore[method-assign]
        self.resume_writing = inner.resume_writing  # type: ignore[method-assign]
        self.eof_received = inner.eof_received  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it, or close it without a word."""
        stream = cast("asyncio.Transport", transport)
        if self._connections.admit(self, stream):
            self.transport = stream
            self.inner.connection_made(stream)
        else:
            stream.abort()
            self.data_received = _deaf  # type: ignore[method-assign,assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """Let it go."""
        if self.transport is not None:
            self._connections.forget(self, self.transport)
            self.inner.connection_lost(exc)

    def abort(self) -> None:
        """Close it without a word."""
        if self.transport is not None:
            self.transport.abort()

    @property
    def is_answering(self) -> bool:
        """Whether aiohttp has a request that it has not answered yet. What we lean on of its inside (a test pins it)."""
        return bool(self.inner._request_in_progress)  # type: ignore[attr-defined] # noqa: SLF001


class GuardedSite(web.BaseSite):
    """A listening socket whose connections are guarded."""

    def __init__(self, runner: web.BaseRunner, sock: socket.socket, guard: Callable[[asyncio.Protocol], Guarded]) -> None:
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
        # asyncio accepts as many at once as its backlog says: more than there are spare files would leave a refresh none.
        self._server = await loop.create_server(lambda: self._guard(protocol(server)), sock=self._sock, backlog=AT_ONCE)
        self._sock.listen(BACKLOG)


def _deaf(_data: bytes) -> None:
    """What a refused connection still sends goes nowhere."""


def _peer(transport: asyncio.Transport) -> str:
    """The address of a peer beyond loopback; empty for loopback and Unix sockets, where all services share one."""
    name = transport.get_extra_info("peername")
    host = str(name[0]) if isinstance(name, tuple) else ""
    return "" if host.startswith("127.") or host in {"::1", ""} else host
