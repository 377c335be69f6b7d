"""Many clients at once, from one event loop: raw connections that ask, wait, drip, or say nothing.

`python -m tests.harness.crowd HOST:PORT COUNT` is a crowd of bad ones in a process of its own,
until it is killed: half of them silent, half dripping. Whoever is hung up on comes again.
"""

import asyncio
import contextlib
import itertools
import re
import resource
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tests.harness.processes import PATIENCE_S, Process

AT_ONCE: Final = 200  # connections that are being made, fewer than any backlog
DRIP_S: Final = 1.0
LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
ETAG: Final = re.compile(rb"\r\netag: (\S+)\r\n", re.IGNORECASE)


class Answer(NamedTuple):
    """An answer, and when it was there (the event loop's time)."""

    status: int
    head: bytes
    body: bytes
    at: float

    @property
    def etag(self) -> str:
        found = ETAG.search(self.head)
        assert found, self.head
        return found[1].decode()


class Peer(asyncio.Protocol):
    """A connection that asks, and is answered in order.

    `surplus`: answers that nobody asked for.
    """

    def __init__(self) -> None:
        self.surplus = 0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting: deque[asyncio.Future[Answer]] = deque()
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)
        for answer in self._waiting:
            if not answer.done():
                answer.set_exception(ConnectionResetError(f"hung up on: {exc}"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n") + 4) >= 4:
            head = self._buffer[:end]
            status = int(head[9:12])
            length = LENGTH.search(head)
            whole = end + (int(length[1]) if length and status != 304 else 0)
            if len(self._buffer) < whole:
                return
            self._take(
                Answer(status, head, self._buffer[end:whole], asyncio.get_running_loop().time())
            )
            self._buffer = self._buffer[whole:]

    def _take(self, answer: Answer) -> None:
        if self._waiting:
            self._waiting.popleft().set_result(answer)
        else:
            self.surplus += 1

    def say(self, raw: bytes) -> None:
        if self._transport is not None:
            self._transport.write(raw)

    def ask(self, request: bytes) -> "asyncio.Future[Answer]":
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if self.closed.done():
            answer.set_exception(ConnectionResetError("hung up on before it asked"))
            return answer
        self._waiting.append(answer)
        self.say(request)
        return answer

    def leave(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def connect(base: str) -> Peer:
    """One connection to `http://host:port`."""
    host, _, port = base.removeprefix("http://").rpartition(":")
    _, peer = await asyncio.get_running_loop().create_connection(Peer, host, int(port))
    return peer


@asynccontextmanager
async def crowd(base: str, count: int) -> AsyncIterator[Sequence[Peer]]:
    """So many connections; gone at the end."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def come() -> Peer:
        async with slots:
            return await connect(base)

    peers = await asyncio.gather(*(come() for _ in range(count)))
    try:
        yield peers
    finally:
        for peer in peers:
            peer.leave()
        await asyncio.gather(*(peer.closed for peer in peers))


def request(target: str, method: str = "GET", body: bytes = b"", **headers: str) -> bytes:
    """A request with the proof of intent, as bytes."""
    kinds = {"Content-Type": "application/json", "Content-Length": str(len(body))} if body else {}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in {**kinds, **headers}.items()]
    return (
        "\r\n".join(
            [f"{method} {target} HTTP/1.1", "Host: localhost", "X-Token-Broker: 1", *lines, "", ""]
        ).encode()
        + body
    )


async def everyone(peers: Sequence[Peer], requests: Iterable[bytes]) -> list[Answer]:
    """Deal the requests out among the peers, pipelined; all answers, in no order."""
    dealt = [peer.ask(asked) for peer, asked in zip(itertools.cycle(peers), requests, strict=False)]
    async with asyncio.timeout(PATIENCE_S * 2):
        return await asyncio.gather(*dealt)


@contextmanager
def open_files(most: int = 16_384) -> Iterator[int]:
    """Raise what this process and those it starts may have open, as far as it goes; how far."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    try:
        yield max(soft, allowed)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident_kb(process: Process) -> int:
    """Resident memory of a process."""
    status = Path(f"/proc/{process.popen.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


# --- bad ones -------------------------------------------------------------------------------------


async def bad_peers(base: str, count: int, say: Callable[[str], None] = print) -> None:
    """So many that never ask a whole question, for ever; says once that all are there."""
    here = asyncio.Semaphore(0)

    async def one(number: int) -> None:
        while True:
            with contextlib.suppress(OSError):
                peer = await connect(base)
                here.release()
                await (peer.closed if number % 2 else _drip(peer))

    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(one(number))
        for _ in range(count):
            await here.acquire()
        say("all here")


async def _drip(peer: Peer) -> None:
    peer.say(b"GET /v1/tokens/main HTTP/1.1\r\nX: ")
    while not peer.closed.done():
        peer.say(b"x")
        await asyncio.wait({peer.closed}, timeout=DRIP_S)


if __name__ == "__main__":
    with open_files():
        asyncio.run(bad_peers(sys.argv[1], int(sys.argv[2]), lambda line: print(line, flush=True)))
