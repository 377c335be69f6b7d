"""The application on real sockets, and peers that send bytes to it."""

import asyncio
import hashlib
import re
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from broker.tokens.registry import Registry
from broker.tokens.tickets import Tickets
from broker.web.api.compat import Compat
from broker.web.api.metrics import Metrics
from broker.web.connection.connection import Connection
from broker.web.connection.connections import Connections
from broker.web.connection.fast_path import ResponseCache
from broker.web.connection.lifecycle import accepting, answering
from broker.web.connection.long_poll import PollGroup, PollGroups
from broker.web.gate import Client, Gate
from broker.web.handed import Handed
from broker.web.handouts import Handouts
from tests.harness.doubles import ACCOUNT, Bench
from tests.harness.wiring import PATIENCE_S, Wired

ASK = b"GET /v1/tokens/main HTTP/1.1\r\nHost: localhost\r\nX-Token-Broker: 1\r\n\r\n"
KEY, OTHER = "a key of some length", "another key of some length"


def request(path: str = "/v1/tokens/main", *headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", "X-Token-Broker: 1", *headers, "", ""]
    return "\r\n".join(lines).encode()


LONG = 60  # seconds; no test waits so long


@dataclass
class Peer:
    """A connection, and what came over it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, chunk: bytes = ASK) -> bytes:
        """Send a chunk in one piece; the answer, as it came."""
        self.writer.write(chunk)
        return await self.answer()

    async def answer(self) -> bytes:
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", head)
            return head + await self.reader.readexactly(
                int(length[1]) if length and b" 304 " not in head else 0
            )


@dataclass
class Daemon:
    """The application on TCP and a Unix socket, and how many answers aiohttp did not write."""

    registry: Registry
    cache: ResponseCache
    gate: Gate
    metrics: Metrics
    port: int
    path: Path
    handouts: Handouts
    sockets: Sequence[socket.socket] = ()
    peers: list[Peer] = field(default_factory=list)

    async def peer(self, *, unix: bool = False) -> Peer:
        opening = (
            asyncio.open_unix_connection(self.path)
            if unix
            else asyncio.open_connection("127.0.0.1", self.port)
        )
        self.peers.append(Peer(*await opening))
        return self.peers[-1]

    async def arrived(self, peer: Peer, how: Callable[[Connection], bool]) -> None:
        """Until the daemon has read what a peer wrote, as its connection shows."""
        name = peer.writer.get_extra_info("sockname")
        async with asyncio.timeout(10):
            while not any(
                how(one)
                for one in self.cache.connections._open
                if one.transport is not None and one.transport.get_extra_info("peername") == name
            ):
                await asyncio.sleep(0)

    @property
    def repeated(self) -> int:
        self.cache.account()
        return sum(self.counted)

    @property
    def groups(self) -> PollGroups:
        """The poll groups of the TCP socket."""
        return self.cache._paths[False].groups

    counted: list[int] = field(default_factory=list)


@asynccontextmanager
async def daemon_on(
    bench: Bench,
    keys: dict[str, Client] | None = None,
    *,
    enabled: bool = True,
    connections: Connections | None = None,
) -> AsyncIterator[Daemon]:
    counted: list[int] = []
    metrics = Metrics()

    def on_answered(
        resource: web.AbstractResource | None,
        client: Client | None,
        handed: Handed | None,
        status: int,
        number: int,
        last: float,
    ) -> None:
        counted.append(number)
        metrics.request(resource, status, number)
        if client is not None and handed is not None:
            handouts.record(client.name, handed, status, number, last)

    handouts = Handouts(await bench.open(), bench.clock.now, bench.clock.wall)
    connections = connections or Connections(100, bench.clock.now)
    cache = ResponseCache(connections, on_answered, enabled=enabled)
    dependencies = await bench.dependencies()
    dependencies.on_change = cache.drop
    registry = Registry([ACCOUNT], dependencies)
    await registry.start()
    registry.tick()
    await registry.drain()
    bench.clock.pass_(0.3)
    gate = Gate(keys or {}, [])
    tickets = Tickets(registry, dependencies, bench.wechat)
    compat = Compat(gate, registry, tickets, PATIENCE_S, bench.clock.now)
    wired = Wired(registry, bench.clock, cache, gate, tickets, metrics=metrics, handouts=handouts)
    app = wired.application(compat.routes())
    path = bench.path.parent / f"broker-{enabled}.sock"
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        unix.bind(str(path))
        async with answering(app) as runner, accepting(runner, [tcp, unix], cache):
            daemon = Daemon(
                registry,
                cache,
                gate,
                metrics,
                tcp.getsockname()[1],
                path,
                handouts,
                [tcp, unix],
                counted=counted,
            )
            try:
                yield daemon
            finally:
                for peer in daemon.peers:
                    peer.writer.close()
                registry.stop()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def without_date(answer: bytes) -> bytes:
    return re.sub(rb"Date: [^\r]*", b"Date: -", answer)


def connection_of(daemon: Daemon, peer: Peer) -> Connection:
    name = peer.writer.get_extra_info("sockname")
    (found,) = [
        one
        for one in daemon.cache.connections._open
        if one.transport is not None and one.transport.get_extra_info("peername") == name
    ]
    return found


def two_keys() -> dict[str, Client]:
    scopes = frozenset({"read"})
    named = {KEY: Client("one", scopes), OTHER: Client("two", scopes, frozenset({"shop"}))}
    return {hashlib.sha256(key.encode()).hexdigest(): client for key, client in named.items()}


# --- who waits for the next version ---------------------------------------------------------------


def held(daemon: Daemon) -> str:
    keeper = daemon.registry.find("main")
    assert keeper is not None
    assert keeper.credential.version is not None
    return keeper.credential.version


def watch(daemon: Daemon, wait: float = LONG, *more: str) -> bytes:
    return request(f"/v1/tokens/main?wait={wait}", f'If-None-Match: "{held(daemon)}"', *more)


async def rotate(bench: Bench, daemon: Daemon) -> str:
    """Another version; it."""
    bench.clock.pass_(40)
    keeper = daemon.registry.find("main")
    assert keeper is not None
    await keeper.refresh(5)
    return held(daemon)


async def first(daemon: Daemon, chunk: bytes, *, unix: bool = False) -> Peer:
    """Somebody who waits with aiohttp, and has opened a group for others."""
    peer = await daemon.peer(unix=unix)
    peer.writer.write(chunk)
    async with asyncio.timeout(10):
        while not is_open(daemon.cache._paths[unix].groups.find(chunk)):
            await asyncio.sleep(0)
    return peer


def is_open(group: PollGroup | None) -> bool:
    return group is not None and group.wait is not None


async def joined(daemon: Daemon, chunk: bytes) -> Peer:
    """Somebody who waits in the group of that request."""
    group = daemon.groups.find(chunk)
    assert group is not None
    before, peer = len(group.members), await daemon.peer()
    peer.writer.write(chunk)
    async with asyncio.timeout(10):
        while len(group.members) == before:
            await asyncio.sleep(0)
    return peer
