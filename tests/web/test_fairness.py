"""One client, or one peer, does not take the connections of everybody else."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Final

import pytest

from broker.web.connection.connections import (
    MOST_BODIES_PER_PEER,
    RESERVED,
    Connections,
    most_connections,
)
from broker.web.connection.holdings import Holdings
from broker.web.connection.lifecycle import answers
from broker.web.connection.waits import SHORTEST_S, Waits
from broker.web.gate import SCOPES, Client
from tests.harness.doubles import Bench
from tests.harness.peers import Daemon, Peer, connection_of, daemon_on, request, status

MOST: Final = 40
EACH: Final = MOST // 2  # waits of one client
NAMES: Final = ("one", "two", "three")
KEYS: Final = {
    hashlib.sha256(f"the key of {name}".encode()).hexdigest(): Client(name, SCOPES)
    for name in NAMES
}


@pytest.fixture
async def daemon(bench: Bench) -> AsyncIterator[Daemon]:
    """A daemon with so few connections, and three clients with a key each."""
    connections = Connections(MOST, bench.clock.now)
    async with daemon_on(bench, KEYS, connections=connections) as daemon:
        yield daemon


def asked_by(client: str, path: str = "/v1/tokens/main", *more: str) -> bytes:
    return request(path, f"Authorization: Bearer the key of {client}", *more)


def wait(daemon: Daemon, client: str, *more: str) -> bytes:
    keeper = daemon.registry.find("main")
    assert keeper is not None
    match = f'If-None-Match: "{keeper.credential.version}"'
    return asked_by(client, "/v1/tokens/main?wait=60", match, *more)


async def asking(daemon: Daemon, chunk: bytes) -> Peer:
    """A peer that has asked, and whose request is not answered yet."""
    peer = await daemon.peer()
    peer.writer.write(chunk)
    await daemon.arrived(peer, lambda connection: connection.is_answering)
    return peer


def waits(daemon: Daemon) -> list[int]:
    return [daemon.cache.connections.waits.count(name) for name in NAMES]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0)


# --- waits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("waits_in", ["group", "handlers"])
async def test_a_client_that_waits_too_often_is_answered_early_and_another_waits_on(
    daemon: Daemon, waits_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.web.connection.waits.SHORTEST_S", 0)
    other = await asking(daemon, wait(daemon, "two"))
    peers = []
    for number in range(EACH + 2):
        note = f"X-Note: {number if waits_in == 'handlers' else '-'}"
        peers.append(await asking(daemon, wait(daemon, "one", note)))
        await until(lambda: sum(waits(daemon)) > 1)
    for longest in peers[:2]:
        assert status(await longest.answer()) == 304
        assert status(await longest.ask(asked_by("one"))) == 200, "its connection stays"
    assert waits(daemon) == [EACH, 1, 0]
    assert all(connection_of(daemon, peer).is_answering for peer in [other, *peers[2:]])


async def test_a_wait_for_a_first_token_is_bounded_too(
    bench: Bench, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.web.connection.waits.SHORTEST_S", 0)
    bench.clock.pass_(8000)
    bench.wechat.gate.clear()
    path = "/v1/tokens/main?wait=60"
    peers = [await asking(daemon, asked_by("one", path)) for _ in range(EACH + 1)]
    assert status(await peers[0].answer()) == 503
    assert waits(daemon) == [EACH, 0, 0]
    bench.wechat.gate.set()
    assert {status(await peer.answer()) for peer in peers[1:]} == {200}
    assert waits(daemon) == [0, 0, 0]


async def test_clients_that_hold_all_connections_by_waiting_give_way(daemon: Daemon) -> None:
    """The longest wait of the client that has most ends, and its connection with it."""
    few = [await asking(daemon, wait(daemon, "one")) for _ in range(EACH - 1)]
    many = [await asking(daemon, wait(daemon, "two")) for _ in range(EACH)]
    last = await asking(daemon, asked_by("three", "/v1/tokens/main?wait=60", "If-None-Match: *"))
    await until(lambda: sum(waits(daemon)) == MOST)
    assert daemon.cache.connections.open == MOST
    for _ in range(3):
        assert status(await (await daemon.peer()).ask(asked_by("three"))) == 200
        # A connection that is idle now would be the next to give way.
        daemon.peers[-1].writer.write(wait(daemon, "three", "X-Note: -"))
        await daemon.arrived(daemon.peers[-1], lambda connection: connection.is_answering)
    # The first of those with equal bytes waits in its handler, the others in a group.
    for longest in (many[0], few[0], many[1]):
        assert status(await longest.answer()) == 304
        assert await asyncio.wait_for(longest.reader.read(), 10) == b""
    stay = [*few[1:], *many[2:], last]
    assert all(connection_of(daemon, peer).is_answering for peer in stay)


class Waiting:
    """A wait that notes when it is cut short."""

    def __init__(self) -> None:
        self.cut: list[tuple[float, bool]] = []

    def cut_short(self, since: float, *, close: bool = False) -> None:
        self.cut.append((since, close))


async def test_no_wait_is_cut_before_it_has_lasted_a_moment() -> None:
    """Else a client that asks again at once would be answered as fast as it can ask."""
    loop, at_most_one = asyncio.get_running_loop(), Waits(1)
    calls: list[float] = []
    loop_at = loop.call_at
    loop.call_at = lambda when, *_: calls.append(when)  # type: ignore[method-assign,assignment]
    try:
        for since in (5.0, 6.0, 7.0):
            at_most_one.enter("one", Waiting(), since)
    finally:
        loop.call_at = loop_at  # type: ignore[method-assign]
    assert calls == [5.0 + SHORTEST_S, 6.0 + SHORTEST_S]
    assert at_most_one.count("one") == 1


def test_whoever_holds_most_gives_way_first_and_of_its_things_the_oldest() -> None:
    holdings: Holdings[str] = Holdings()
    for number, (owner, thing) in enumerate([("b", "b1"), ("a", "a1"), ("a", "a2"), ("b", "b2")]):
        holdings.add(owner, thing, number)
    holdings.add("a", "a3", 9)
    assert holdings.pop_from_largest() == ("a1", 1)
    holdings.remove("b", "b1")
    holdings.remove("b", "never there")
    holdings.remove("nobody", "never there")
    assert (holdings.count("a"), holdings.count("b")) == (2, 1)
    assert holdings.pop_oldest("b") == ("b2", 3)
    assert [holdings.pop_from_largest() for _ in range(3)] == [("a2", 2), ("a3", 9), None]
    assert holdings._by_owner == {}


# --- bodies ---------------------------------------------------------------------------------------

COMPAT: Final = (
    b"POST /cgi-bin/stable_token HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
)
REPORT: Final = asked_by("one", "/v1/tokens/main/report", "Content-Type: application/json").replace(
    b"GET ", b"POST "
)


@pytest.mark.parametrize(
    "head", [COMPAT, REPORT.replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n")]
)
async def test_connections_that_owe_a_body_are_few_and_the_first_to_give_way(
    daemon: Daemon, head: bytes
) -> None:
    watcher = await asking(daemon, wait(daemon, "two"))
    owing = [await asking(daemon, head) for _ in range(MOST)]
    for peer in owing[: MOST - MOST_BODIES_PER_PEER]:
        assert await asyncio.wait_for(peer.reader.read(), 10) == b""
    assert daemon.cache.connections.open == 1 + MOST_BODIES_PER_PEER
    for _ in range(MOST - 1):
        assert status(await (await daemon.peer()).ask(asked_by("three"))) == 200
    assert await asyncio.wait_for(owing[-1].reader.read(), 10) == b""
    assert connection_of(daemon, watcher).is_answering


async def test_a_body_that_comes_late_is_read_and_a_peer_may_owe_as_many_again(
    daemon: Daemon,
) -> None:
    head = REPORT.replace(b"\r\n\r\n", b"\r\nContent-Length: 24\r\n\r\n")
    for _ in range(2):
        peers = [await asking(daemon, head) for _ in range(MOST_BODIES_PER_PEER)]
        for peer in peers:
            assert b'"superseded"' in await peer.ask(b'{"version": "k3f9-0000"}')
    assert daemon.cache.connections._bodies._by_owner == {}


# --- room that is kept ----------------------------------------------------------------------------


async def full(bench: Bench, daemon: Daemon) -> None:
    """All connections are taken by requests that cannot be ended: they order a refresh."""
    bench.clock.pass_(40)
    daemon.registry.tick()
    bench.wechat.gate.clear()
    refresh = asked_by("one", "/v1/tokens/main/refresh").replace(b"GET ", b"POST ")
    for _ in range(MOST):
        await asking(daemon, refresh)
    assert daemon.cache.connections.open == MOST


async def test_probes_and_the_unix_socket_are_answered_where_all_connections_are_taken(
    bench: Bench, daemon: Daemon
) -> None:
    await full(bench, daemon)
    stranger = await daemon.peer()
    stranger.writer.write(asked_by("two"))
    assert await asyncio.wait_for(stranger.reader.read(), 10) == b""
    for _ in range(2 * RESERVED):
        peer = await daemon.peer()
        assert status(await peer.ask(request("/livez"))) == 200
    near = await daemon.peer(unix=True)
    assert status(await near.ask(request())) == 200
    bench.wechat.gate.set()


async def test_a_peer_beyond_the_cap_that_stays_silent_makes_room_for_the_next(
    bench: Bench, daemon: Daemon
) -> None:
    await full(bench, daemon)
    silent = [await daemon.peer() for _ in range(2 * RESERVED)]
    probe = await daemon.peer()
    assert status(await probe.ask(request("/readyz"))) == 200
    assert daemon.cache.connections.open <= MOST + RESERVED
    assert await asyncio.wait_for(silent[0].reader.read(), 10) == b""
    bench.wechat.gate.set()


async def test_the_watchdogs_knock_is_answered_where_all_connections_are_taken(
    bench: Bench, daemon: Daemon
) -> None:
    await full(bench, daemon)
    for sock in daemon.sockets:
        assert await answers(sock)
    bench.wechat.gate.set()


def test_the_reserve_is_taken_from_the_limit_on_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
    assert most_connections(256) == 1024 - 64 - RESERVED - 256
