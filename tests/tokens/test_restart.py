"""Zero-gap restart: a daemon is restarted under load, and no request fails.

Whoever holds its listening sockets can do that.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from aiohttp import web

from broker.core.serving import Served
from broker.web.connection.connections import Connections
from broker.web.connection.fast_path import ResponseCache
from broker.web.connection.lifecycle import FAREWELL_S, accepting, answering
from tests.harness import invariants
from tests.harness.doubles import APPID, Bench
from tests.harness.fake_systemd import Ear, handing_over, held
from tests.harness.processes import PATIENCE_S, House, until

Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]

RATE = 200  # requests per second, over all clients
GET = b"GET /v1/tokens/main HTTP/1.1\r\nHost: localhost\r\nX-Token-Broker: 1\r\n"
ONCE = b"Connection: close\r\n"


@dataclass
class Supervised:
    """A daemon whose listening sockets, one Unix and one TCP, are held by the test.

    systemd would hold them in the same way.
    """

    house: House
    sockets: list[socket.socket]
    ear: Ear
    popen: "subprocess.Popen[bytes]" = field(init=False)

    def start(self) -> None:
        command = [sys.executable, "-m", "broker", "serve", "--config", str(self.house.config)]
        with (self.house.home / "daemon.log").open("a") as log:
            self.popen = subprocess.Popen(
                handing_over(self.sockets, command),
                pass_fds=[sock.fileno() for sock in self.sockets],
                env={**os.environ, "NOTIFY_SOCKET": self.ear.address},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def stop(self) -> float:
        """SIGTERM, as `systemctl restart` sends it; the seconds until it is gone."""
        began = time.monotonic()
        self.popen.send_signal(signal.SIGTERM)
        assert self.popen.wait(PATIENCE_S) == 0, (self.house.home / "daemon.log").read_text()
        return time.monotonic() - began

    def restart(self) -> None:
        self.stop()
        self.start()
        self.ear.until("READY")


@contextmanager
def supervised(house: House) -> Iterator[Supervised]:
    unix, tcp = held(house.home / "held.sock")
    ear = Ear(str(house.home / "notify"))
    with unix, tcp:
        daemon = Supervised(house, [unix, tcp], ear)
        daemon.start()
        house.daemon = f"http://127.0.0.1:{tcp.getsockname()[1]}"
        try:
            ear.until("READY")
            yield daemon
        finally:
            daemon.popen.kill()
            daemon.popen.wait()
            ear.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    with house.sandboxed():
        house.configure(policy="min_gap = 0.5\nmax_backoff = 1\nmin_serve = 1")
        yield house


# --- clients that never try twice -----------------------------------------------------------------


@dataclass
class Load:
    """What the clients have seen."""

    daemon: Supervised
    over: asyncio.Event = field(default_factory=asyncio.Event)
    answered: int = 0
    slowest: float = 0
    failures: list[str] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)

    async def connect(self, number: int) -> Peer:
        name = self.daemon.sockets[number % 2].getsockname()
        return await (
            asyncio.open_unix_connection(name)
            if number % 2 == 0
            else asyncio.open_connection(*name)
        )

    async def ask_anew(self, number: int, pause: Callable[[], "asyncio.Future[None]"]) -> None:
        """A client that connects for each request."""
        while not self.over.is_set():
            await pause()
            reader, writer = await self.connect(number)
            await self.request(reader, writer, GET + ONCE + b"\r\n")
            writer.close()

    async def keep_asking(self, number: int, pause: Callable[[], "asyncio.Future[None]"]) -> None:
        """A client that keeps its connection.

        It connects again only after `Connection: close`, or if the connection was closed while
        idle.
        """
        reader, writer = await self.connect(number)
        while not self.over.is_set():
            await pause()
            if reader.at_eof():
                writer.close()
                reader, writer = await self.connect(number)
            if not await self.request(reader, writer, GET + b"\r\n"):
                writer.close()
                reader, writer = await self.connect(number)
        writer.close()

    async def watch(self, number: int) -> None:
        """A client that waits for the next token, time and again."""
        while not self.over.is_set():
            (version,) = self.versions or {"none"}
            reader, writer = await self.connect(number)
            head = (
                GET.replace(b"main", b"main?wait=1") + b'If-None-Match: "%s"\r\n' % version.encode()
            )
            await self.request(reader, writer, head + ONCE + b"\r\n", expected=(200, 304))
            writer.close()

    async def request(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        head: bytes,
        expected: tuple[int, ...] = (200,),
    ) -> bool:
        """One request and its answer; whether the connection may be used again."""
        began = time.monotonic()
        try:
            writer.write(head)
            async with asyncio.timeout(PATIENCE_S):
                answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            fields = dict(line.split(": ", 1) for line in answer.splitlines()[1:-1])
            body = await reader.readexactly(int(fields.get("content-length", 0)))
        except (OSError, EOFError, TimeoutError) as error:
            self.failures.append(f"{error!r} after {time.monotonic() - began:.3f} s")
            return False
        self.answered += 1
        if b"wait=" not in head:
            self.slowest = max(self.slowest, time.monotonic() - began)
        status = int(answer.split()[1])
        if status not in expected:
            self.failures.append(f"{status} {body.decode()}")
        self.versions.add(fields["etag"].strip('"'))
        return fields.get("connection") != "close"


def beats(per_second: float) -> Callable[[], "asyncio.Future[None]"]:
    """A pause until the next beat of a steady clock.

    The load does not get less when answers get slower.
    """
    loop = asyncio.get_running_loop()
    at = loop.time()

    def pause() -> "asyncio.Future[None]":
        nonlocal at
        at += 1 / per_second
        beat: asyncio.Future[None] = loop.create_future()
        loop.call_at(at, _strike, beat)
        return beat

    return pause


def _strike(beat: "asyncio.Future[None]") -> None:
    if not beat.done():
        beat.set_result(None)


async def test_two_restarts_under_load_fail_no_request(house: House) -> None:
    with supervised(house) as daemon:
        await asyncio.to_thread(until, lambda: house.get("/readyz")[0] == 200, "a token")
        load = Load(daemon)
        load.versions.add(house.get("/v1/tokens/main")[1]["version"])
        clients = 20
        async with asyncio.TaskGroup() as tasks:
            for number in range(clients // 2):
                tasks.create_task(load.ask_anew(number, beats(RATE / clients)))
                tasks.create_task(load.keep_asking(number, beats(RATE / clients)))
                tasks.create_task(load.watch(number))
            tasks.create_task(
                load.keep_asking(0, beats(1.3))
            )  # rarely enough to find its connection closed
            for _ in range(2):
                await served_more(load, RATE * 3 // 2)
                await asyncio.to_thread(daemon.restart)
            await served_more(load, RATE * 3 // 2)
            load.over.set()
    print(
        f"{load.answered} answered, {len(load.failures)} failed, the slowest took"
        f" {load.slowest:.2f} s"
    )
    assert load.failures == []
    assert len(load.versions) == 1
    assert len(house.calls()) == 1
    invariants.check(house)


async def served_more(load: Load, requests: int) -> None:
    """Wait until so many more are answered."""
    wanted = load.answered + requests
    async with asyncio.timeout(PATIENCE_S):
        pause = beats(50)
        while load.answered < wanted:
            await pause()


def test_who_waits_for_a_call_under_way_is_answered_by_its_end(house: House) -> None:
    house.control("/hold", {"appid": APPID})
    with (
        supervised(house) as daemon,
        socket.create_connection(daemon.sockets[1].getsockname(), PATIENCE_S) as peer,
    ):
        until(lambda: house.control("")["accounts"][APPID]["in_flight"], "the first call is held")
        peer.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert peer.recv(4096).startswith(
            b"HTTP/1.1 200 "
        )  # so it is not in the backlog, waiting for the next daemon
        peer.sendall(GET + b"\r\n")
        daemon.popen.send_signal(signal.SIGTERM)
        daemon.ear.until("STOPPING")
        house.control("/release", {"appid": APPID})
        answer = b"".join(iter(partial(peer.recv, 4096), b"")).decode()
        assert answer.startswith("HTTP/1.1 200 ")
        assert "Connection: close" in answer
        assert daemon.popen.wait(PATIENCE_S) == 0
        daemon.start()
        assert house.get("/v1/tokens/main")[1]["access_token"] in answer
    assert len(house.calls()) == 1
    invariants.check(house)


def test_a_call_under_way_is_awaited_and_its_answer_stored(house: House) -> None:
    house.control("/hold", {"appid": APPID})
    with supervised(house) as daemon:
        until(lambda: house.control("")["accounts"][APPID]["in_flight"], "the first call is held")
        daemon.popen.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.popen.wait(2 * FAREWELL_S)
        house.control("/release", {"appid": APPID})
        assert daemon.popen.wait(PATIENCE_S) == 0
        daemon.start()
        assert house.get("/v1/tokens/main")[1]["state"] == "fresh"
    assert len(house.calls()) == 1
    invariants.check(house)


def test_requests_wait_while_nobody_runs_and_the_next_daemon_answers_them(house: House) -> None:
    with supervised(house) as daemon:
        until(lambda: house.get("/readyz")[0] == 200, "a token")
        daemon.popen.kill()
        daemon.popen.wait()
        began = time.monotonic()
        answers = list[int]()
        waiting = [
            threading.Thread(target=lambda: answers.append(house.get("/v1/tokens/main")[0]))
            for _ in range(20)
        ]
        for thread in waiting:
            thread.start()
        daemon.start()
        for thread in waiting:
            thread.join(PATIENCE_S)
        print(f"from SIGKILL to the last of 20 answers: {time.monotonic() - began:.2f} s")
        assert answers == [200] * 20
    assert len(house.calls()) == 1
    invariants.check(house)


# --- the same, step by step -----------------------------------------------------------------------


async def test_who_asks_a_stopping_daemon_still_waits_for_the_call_under_way(bench: Bench) -> None:
    keeper = await bench.keeper()
    bench.wechat.gate.clear()
    keeper.tick()
    await bench.wechat.arrived.wait()
    keeper.stop()
    asking = asyncio.create_task(keeper.get(patience_s=PATIENCE_S))
    bench.wechat.gate.set()
    await keeper.drain()
    assert isinstance(await asking, Served)


@asynccontextmanager
async def connected(
    handler: Callable[[web.Request], Awaitable[web.Response]],
) -> AsyncIterator[Peer]:
    """A connection that has been answered once, to a daemon that then stops listening."""
    app = web.Application()
    app.add_routes([web.get("/", handler), web.get("/first", hello)])
    with socket.create_server(("127.0.0.1", 0)) as sock:
        async with (
            answering(app) as runner,
            accepting(runner, [sock], ResponseCache(Connections(10))),
        ):
            reader, writer = await asyncio.open_connection(*sock.getsockname())
            writer.write(b"GET /first HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 ")
            yield reader, writer


async def hello(_request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def test_a_request_that_arrives_on_a_kept_connection_while_the_door_closes_is_answered() -> (
    None
):
    async with connected(hello) as (reader, writer):
        asyncio.get_running_loop().call_later(
            FAREWELL_S / 5, writer.write, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_an_answer_under_way_is_finished_though_the_farewell_is_over() -> None:
    taken, enough = asyncio.Event(), asyncio.Event()

    async def slow(_request: web.Request) -> web.Response:
        taken.set()
        await enough.wait()
        return web.Response(text="done")

    async with connected(slow) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await taken.wait()
        asyncio.get_running_loop().call_later(FAREWELL_S * 1.2, enough.set)
    assert (await reader.read()).endswith(b"done")
    writer.close()


async def test_a_door_that_nobody_holds_open_closes_at_once() -> None:
    loop = asyncio.get_running_loop()
    async with connected(hello) as (_, writer):
        writer.close()
        began = loop.time()
    assert loop.time() - began < FAREWELL_S
