"""Who may hold a connection, and for how long without asking anything.

aiohttp has no deadline for the first request's head and no cap on connections: a thousand silent peers would sit there
for ever. Every connection passes through here first; what a peer sends goes on to aiohttp untouched.
"""

import asyncio
import resource
import socket
from collections import Counter
from typing import Final, cast

from aiohttp import web

HEAD_DEADLINE_S: Final = 10.0  # from connecting to the end of the first request's head; aiohttp bounds the later ones
MOST: Final = 16_384
MOST_PER_PEER: Final = 1024  # of one address beyond loopback
SPARE_FILES: Final = 64  # for the store, calls to WeChat, and what libraries open
BACKLOG: Final = 1024


def most_connections() -> int:
    """How many connections the limit on open files allows, so that a refresh always finds a descriptor."""
    return max(16, min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES))


class Connections:
    """All connections of a daemon. Where they are too many, the ones that never asked anything go first."""

    def __init__(self, most: int, most_per_peer: int = MOST_PER_PEER, head_deadline_s: float = HEAD_DEADLINE_S) -> None:
        self.most = most
        self.most_per_peer = most_per_peer
        self.head_deadline_s = head_deadline_s
        self.open = 0
        self.refused = 0
        self.too_slow = 0
        self._silent: dict[asyncio.Transport, asyncio.TimerHandle] = {}  # oldest first
        self._peers: Counter[str] = Counter()

    def guard(self, inner: asyncio.Protocol) -> "Guarded":
        """Wrap a server's protocol for one connection."""
        return Guarded(self, inner)

    def asked(self, transport: asyncio.Transport | None) -> None:
        """A whole request has come in: the connection is no longer silent."""
        if transport is not None and (silent := self._silent.pop(transport, None)):
            silent.cancel()

    def admit(self, transport: asyncio.Transport) -> bool:
        """Take a connection, or say that it must be closed."""
        peer = _peer(transport)
        if (peer and self._peers[peer] >= self.most_per_peer) or (self.open >= self.most and not self._make_room()):
            self.refused += 1
            return False
        self.open += 1
        if peer:
            self._peers[peer] += 1
        loop = asyncio.get_running_loop()
        self._silent[transport] = loop.call_later(self.head_deadline_s, self._give_up, transport)
        return True

    def forget(self, transport: asyncio.Transport) -> None:
        """A connection that was admitted is closed."""
        self.asked(transport)
        self.open -= 1
        if peer := _peer(transport):
            self._peers[peer] -= 1
            if not self._peers[peer]:
                del self._peers[peer]

    def _make_room(self) -> bool:
        oldest = next(iter(self._silent), None)
        if oldest is None:
            return False
        self._give_up(oldest)
        return True

    def _give_up(self, transport: asyncio.Transport) -> None:
        self.asked(transport)
        self.too_slow += 1
        transport.abort()


class Guarded(asyncio.Protocol):
    """One connection: counted from open to close, and otherwise aiohttp's."""

    def __init__(self, connections: Connections, inner: asyncio.Protocol) -> None:
        self._connections = connections
        self._inner = inner
        self._transport: asyncio.Transport | None = None
        # The hot path, bound once: a method of ours in between would cost every request.
        self.data_received = inner.data_received  # type: ignore[method-assign]
        self.pause_writing = inner.pause_writing  # type: ignore[method-assign]
        self.resume_writing = inner.resume_writing  # type: ignore[method-assign]
        self.eof_received = inner.eof_received  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it, or close it without a word."""
        stream = cast("asyncio.Transport", transport)
        if self._connections.admit(stream):
            self._transport = stream
            self._inner.connection_made(stream)
        else:
            stream.abort()
            self.data_received = _deaf  # type: ignore[method-assign,assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """Let it go."""
        if self._transport is not None:
            self._connections.forget(self._transport)
            self._inner.connection_lost(exc)


class GuardedSite(web.BaseSite):
    """A listening socket whose connections are guarded."""

    def __init__(self, runner: web.BaseRunner, sock: socket.socket, connections: Connections) -> None:
        super().__init__(runner, backlog=BACKLOG)
        self._sock = sock
        self._connections = connections

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
        self._server = await loop.create_server(lambda: self._connections.guard(server()), sock=self._sock, backlog=BACKLOG)


def _deaf(_data: bytes) -> None:
    """What a refused connection still sends goes nowhere."""


def _peer(transport: asyncio.Transport) -> str:
    """The address of a peer beyond loopback; empty for loopback and Unix sockets, where all services share one."""
    name = transport.get_extra_info("peername")
    host = str(name[0]) if isinstance(name, tuple) else ""
    return "" if host.startswith("127.") or host in {"::1", ""} else host
