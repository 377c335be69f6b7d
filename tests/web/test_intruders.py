"""Malformed HTTP, slow peers and crowds of connections, over raw sockets against a real daemon."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import cast

import pytest

from broker.tokens.registry import Registry
from broker.web.connection.connection import Connection
from broker.web.connection.connections import IDLE_S, Connections
from broker.web.connection.fast_path import ResponseCache
from broker.web.connection.lifecycle import accepting, answering
from broker.web.gate import Gate
from tests.harness.doubles import ACCOUNT, CANARY, Bench
from tests.harness.wiring import Wired

GOOD = b"GET /v1/tokens/main HTTP/1.1\r\nHost: localhost\r\nX-Token-Broker: 1\r\n\r\n"
POST = b"POST /v1/tokens/main/report HTTP/1.1\r\nHost: localhost\r\nX-Token-Broker: 1\r\n"
LAST = GOOD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@pytest.fixture
def connections() -> Connections:
    return Connections(50, most_per_peer=10, head_deadline_s=0.2)


@pytest.fixture
async def port(bench: Bench, connections: Connections) -> AsyncIterator[int]:
    registry = Registry([ACCOUNT], await bench.dependencies())
    await registry.start()
    registry.tick()
    await registry.drain()
    cache = ResponseCache(connections)
    app = Wired(registry, bench.clock, cache, Gate({}, [])).application()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        async with answering(app) as runner, accepting(runner, [sock], cache):
            yield sock.getsockname()[1]
            registry.stop()


async def said(port: int, raw: bytes) -> bytes:
    """Everything the daemon answers until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(raw)
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize(
    "raw",
    [
        (b"GET /v1/tokens/main HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n"
         b"X-Token-Broker: 1\r\n\r\n"),
        (b"GET http://evil.example/v1/tokens/main HTTP/1.1\r\nHost: localhost\r\n"
         b"X-Token-Broker: 1\r\n\r\n"),
        b"GET /v1/tokens/main HTTP/1.1\r\nHost: localhost\r\nX-Token-Broker: 1\r\nA: \x00\r\n\r\n",
        b"GET /v1/tokens/ma\x00in HTTP/1.1\r\nHost: localhost\r\nX-Token-Broker: 1\r\n\r\n",
        b"GET /v1/tokens/main HTTP/1.1\nHost: localhost\nX-Token-Broker: 1\n\n",
        b"GET /v1/tokens/main HTTP/1.1\r\nHost: localhost\r\nX-Token-Broker: 1\r\nBig: "
        + b"x" * 2**20 + b"\r\n\r\n",
        b"GET /v1/tokens/main HTTP/1.1\r\n"
        + b"".join(b"H%d: 1\r\n" % n for n in range(1000)) + b"\r\n",
        b"GET /" + b"x" * 2**20 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\n{}",
        POST + b"Content-Length: -1\r\n\r\n",
        (b"GET /v1/tokens/main HTTP/1.1\r\nHost: localhost\r\nX-Token-Broker: 1\r\n"
         b" folded: 1\r\n\r\n"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 300,
    ],
    ids=[
        "two hosts", "absolute uri", "NUL in a header", "NUL in the path", "bare LF",
        "a header of 1 MB", "1000 headers", "a path of 1 MB", "TE and CL", "two CL", "negative CL",
        "folded header", "a TLS hello",
    ],
)  # fmt: skip
async def test_malformed_requests_are_400_and_closed_without_a_token(port: int, raw: bytes) -> None:
    answer = await said(port, raw)
    assert CANARY.encode() not in answer
    assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0]
    assert b" 200 " in (await said(port, LAST)).split(b"\r\n")[0]


async def test_a_smuggled_second_request_is_a_request_of_its_own(port: int) -> None:
    smuggled = (
        b"POST /v1/tokens/main/report HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nabcde"
        + LAST
    )
    answer = await said(port, smuggled)
    assert answer.count(b"HTTP/1.1 ") == 2
    assert b" 403 " in answer.split(b"\r\n")[0]


@pytest.mark.parametrize(
    "silence",
    [b"", b"G", GOOD[:-2], b"\r\n\r\n"],
    ids=["nothing", "a byte", "all but the end", "blank lines"],
)
async def test_a_peer_that_does_not_ask_is_hung_up_on_at_the_deadline(
    port: int, connections: Connections, silence: bytes
) -> None:
    assert await said(port, silence) == b""
    assert (connections.open, connections.too_slow) == (0, 1)


async def test_a_dripping_peer_does_not_win_time_by_its_drops(
    port: int, connections: Connections
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    ended = asyncio.create_task(reader.read())
    writer.write(b"GET /")
    while not ended.done() and not writer.is_closing():
        writer.write(b"x")
        await asyncio.wait({ended}, timeout=0.01)
    with contextlib.suppress(ConnectionError):
        assert await ended == b""
    writer.close()
    assert (connections.open, connections.too_slow) == (0, 1)


async def test_a_watcher_is_not_a_silent_peer(port: int, connections: Connections) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GOOD)
    head = await reader.readuntil(b"\r\n\r\n")
    etag = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"etag"))[6:]
    writer.write(
        GOOD.replace(b"main HTTP", b"main?wait=0.5 HTTP").replace(
            b"\r\n\r\n", b"\r\nIf-None-Match: " + etag + b"\r\n\r\n"
        )
    )
    await reader.readuntil(b"}")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 304 ")
    writer.close()
    assert connections.too_slow == 0


async def test_silent_peers_make_room_for_honest_ones(port: int, connections: Connections) -> None:
    connections.head_deadline_s = 60.0
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
    for _ in range(20):
        assert b" 200 " in (await said(port, LAST)).split(b"\r\n")[0]
    assert connections.open <= 50
    assert connections.too_slow >= 150
    for _, writer in silent:
        writer.close()


async def _inside(
    port: int, chunk: bytes = GOOD
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A peer that asked, and stays."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(chunk)
    if chunk is GOOD:
        await reader.readuntil(b"}")
    return reader, writer


async def test_in_a_full_house_who_asked_least_recently_makes_room(
    port: int, connections: Connections
) -> None:
    connections.head_deadline_s = 60.0
    eldest, *others = [await _inside(port) for _ in range(50)]
    assert b" 200 " in (await said(port, LAST)).split(b"\r\n")[0]
    assert await eldest[0].read() == b""
    others[0][1].write(GOOD)
    assert b" 200 " in await others[0][0].readuntil(b"\r\n")
    for _, writer in (eldest, *others):
        writer.close()


async def test_many_newcomers_at_once_are_never_more_than_there_is_room_for() -> None:
    house = Connections(8, head_deadline_s=60)
    for _ in range(8):
        guest = _arrives(house, "127.0.0.1")
        assert guest is not None
        guest.heard_at = house.now()
    for _ in range(
        8
    ):  # within one turn of the loop: nobody has heard yet that those before are closed
        assert _arrives(house, "127.0.0.1")
        assert house.open <= 8


class _Peer(asyncio.Transport):
    """A transport of a peer somewhere."""

    def __init__(self, host: str) -> None:
        super().__init__({"peername": (host, 1)})
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
def strangers() -> Connections:
    return Connections(50, most_per_peer=10, head_deadline_s=60)


def _arrives(connections: Connections, host: str) -> Connection | None:
    """A connection from there, unless it is turned away."""
    peer, connection = _Peer(host), Connection(connections, _Handler)
    connection.connection_made(peer)
    return None if peer.aborted else connection


class _Handler(asyncio.Protocol):
    _request_in_progress = False

    def __init__(self, connection: object) -> None:
        self.connection = connection

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


async def test_one_address_beyond_loopback_has_its_own_cap_and_loopback_has_none(
    strangers: Connections,
) -> None:
    first, *others = [_arrives(strangers, "203.0.113.7") for _ in range(11)]
    assert first is not None
    assert [other is not None for other in others] == [True] * 9 + [False]
    assert _arrives(strangers, "203.0.113.8")
    first.connection_lost(None)
    assert _arrives(strangers, "203.0.113.7")
    assert not _arrives(strangers, "203.0.113.7")
    assert all(_arrives(strangers, "127.0.0.1") for _ in range(30))


async def test_a_connection_that_asks_nothing_for_long_is_closed_and_one_that_asks_is_not(
    strangers: Connections,
) -> None:
    idle, busy, answering = (_arrives(strangers, "127.0.0.1") for _ in range(3))
    assert idle is not None
    assert busy is not None
    assert answering is not None
    cast("_Handler", answering.wake())._request_in_progress = True
    idle.heard_at = busy.heard_at = answering.heard_at = strangers.now() - IDLE_S - 1
    busy.heard_at = strangers.now()
    strangers.close_idle()
    assert [cast("_Peer", one.transport).aborted for one in (idle, busy, answering)] == [
        True,
        False,
        False,
    ]


async def test_a_body_that_does_not_come_ends_with_408(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.web.connection.connections.BODY_DEADLINE_S", 0.1)
    head = (
        b"POST /v1/tokens/main/report HTTP/1.1\r\nHost: localhost\r\nX-Token-Broker:"
        b" 1\r\nContent-Type: application/json\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    assert b" 408 " in await reader.readline()
    writer.close()
