"""Poll groups: whoever waits in one is answered as aiohttp would answer, byte for byte."""

import asyncio
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from broker.core.errcodes import Failure, FailureCode, Kind
from broker.web.connection.cached_response import CachedResponses, is_one_request
from broker.web.connection.connection import Connection, FastPath
from broker.web.connection.connections import IDLE_S, Connections
from broker.web.connection.fast_path import ResponseCache
from broker.web.connection.lifecycle import accepting, answering
from broker.web.connection.long_poll import (
    AT_ONCE,
    MOST_GROUPS,
    WATCH,
    PollGroups,
    Wait,
)
from broker.web.gate import Client
from tests.harness.doubles import LOST, Bench
from tests.harness.peers import (
    KEY,
    LONG,
    OTHER,
    Daemon,
    connection_of,
    daemon_on,
    first,
    held,
    is_open,
    joined,
    request,
    rotate,
    status,
    two_keys,
    watch,
    without_date,
)

# What two daemons on one clock write differently: which token, and how old it is.
OF_THIS_DAEMON = re.compile(
    rb"main-t\d+|[-0-9]+T[0-9:]+Z|(?<=expires_in\": )\d+|(?<=retry_after\": )\d+|(?<=Retry-After:"
    rb" )\d+"
)


async def at_aiohttp(*waiters: Connection) -> None:
    """Until aiohttp is at the requests of all of them."""
    async with asyncio.timeout(10):
        while not all(one.group is None and one.is_answering for one in waiters):
            await asyncio.sleep(0)


# --- how they are answered ------------------------------------------------------------------------


async def test_who_waits_in_the_group_hears_what_aiohttp_says_byte_for_byte(
    bench: Bench, daemon: Daemon
) -> None:
    chunk = watch(daemon)
    one, other = await first(daemon, chunk), await joined(daemon, chunk)
    assert connection_of(daemon, other).handler is None, "aiohttp has never seen it"
    assert connection_of(daemon, other).heard_at == daemon.cache.now()
    version = await rotate(bench, daemon)
    written, repeated = await one.answer(), await other.answer()
    assert without_date(written) == without_date(repeated)
    assert f'Etag: "{version}"'.encode() in repeated
    assert status(repeated) == 200
    assert daemon.repeated == 1


async def test_whose_time_is_up_hears_what_aiohttp_says_byte_for_byte(daemon: Daemon) -> None:
    chunk, loop = watch(daemon, 0.2), asyncio.get_running_loop()
    one = await first(daemon, chunk)
    began = loop.time()
    other = await joined(daemon, chunk)
    said, repeated = await one.answer(), await other.answer()
    assert loop.time() - began >= 0.2
    assert without_date(said) == without_date(repeated)
    assert status(repeated) == 304
    assert status(await other.ask(chunk)) == status(await other.ask(chunk)) == 304
    assert daemon.repeated == 3


@pytest.mark.parametrize("ends", ["rotation", "time", "stop"])
@pytest.mark.parametrize(
    "tags", ['"{}"', 'W/"{}"', "*", '"other", "{}"', '"{}"\r\nIF-NONE-MATCH: "other"']
)
@pytest.mark.parametrize(
    "query", ["wait={}", "min_ttl=60&wait={}", "wait={}&min_ttl=7199.5", "wait={}&min_ttl=80000"]
)
async def test_however_it_is_asked_it_is_answered_as_aiohttp_answers(
    bench: Bench, query: str, tags: str, ends: str
) -> None:
    written: list[bytes] = []
    for enabled in (True, False):
        async with daemon_on(bench, enabled=enabled) as daemon:
            target = f"/v1/tokens/main?{query.format(0.2 if ends == 'time' else LONG)}"
            chunk, peers = (
                request(target, f"If-None-Match: {tags.format(held(daemon))}"),
                [await daemon.peer() for _ in range(3)],
            )
            for peer in peers:
                peer.writer.write(chunk)
            async with asyncio.timeout(10):
                while not all(one.is_answering for one in daemon.cache.connections._open):
                    await asyncio.sleep(0)
            bench.clock.pass_(40)
            if ends == "rotation":
                await rotate(bench, daemon)
            elif ends == "stop":
                daemon.registry.stop()
            answers = {without_date(await peer.answer()) for peer in peers}
            assert len(answers) == 1, (
                "who waits in the group hears what the first hears, whom aiohttp tells"
            )
            written.append(
                OF_THIS_DAEMON.sub(b"-", answers.pop().replace(held(daemon).encode(), b"-"))
            )
    assert written[0] == written[1]


@pytest.mark.parametrize("tags", ["*", '"{}", "other"'])
async def test_who_may_have_the_next_version_too_waits_with_aiohttp(
    bench: Bench, daemon: Daemon, tags: str
) -> None:
    chunk = request(f"/v1/tokens/main?wait={LONG}", f"If-None-Match: {tags.format(held(daemon))}")
    peers = [await daemon.peer() for _ in range(3)]
    for peer in peers:
        peer.writer.write(chunk)
    await at_aiohttp(*[connection_of(daemon, peer) for peer in peers])
    await rotate(bench, daemon)
    assert {status(await peer.answer()) for peer in peers} == {200}
    assert daemon.repeated == 0


async def test_everybody_waits_as_long_as_they_said(daemon: Daemon) -> None:
    chunk, loop = watch(daemon, 0.3), asyncio.get_running_loop()
    await first(daemon, chunk)
    early = await joined(daemon, chunk)
    await asyncio.sleep(0.2)
    began = loop.time()
    late = await joined(daemon, chunk)
    assert status(await early.answer()) == 304
    assert loop.time() - began < 0.3
    assert status(await late.answer()) == 304
    assert loop.time() - began >= 0.3


async def test_a_connection_goes_on_as_before_when_it_has_waited(
    bench: Bench, daemon: Daemon
) -> None:
    await first(daemon, watch(daemon))
    peer = await joined(daemon, watch(daemon))
    await rotate(bench, daemon)
    assert status(await peer.answer()) == 200
    bench.clock.pass_(0.3)
    await (await daemon.peer()).ask()
    assert status(await peer.ask()) == 200
    assert daemon.repeated == 2
    assert connection_of(daemon, peer).handler is None


async def test_a_crowd_that_comes_at_once_goes_through_aiohttp_once(
    bench: Bench, daemon: Daemon
) -> None:
    peers = [await daemon.peer() for _ in range(AT_ONCE + AT_ONCE // 2)]
    connections = [connection_of(daemon, peer) for peer in peers]
    for peer in peers:
        peer.writer.write(watch(daemon))
    async with asyncio.timeout(10):
        while (
            sum(one.group is not None and one.group.wait is not None for one in connections)
            < len(peers) - 1
        ):
            await asyncio.sleep(0)
    assert sum(one.handler is not None for one in connections) == 1
    await rotate(bench, daemon)
    assert {status(await peer.answer()) for peer in peers} == {200}
    assert daemon.repeated == len(peers) - 1


async def test_those_who_came_with_one_that_need_not_wait_do_not_wait_either(
    bench: Bench, daemon: Daemon
) -> None:
    old = watch(daemon)
    await rotate(bench, daemon)
    peers = [await daemon.peer() for _ in range(3)]
    for peer in peers:
        peer.writer.write(old)
    assert status(await peers[0].answer()) == 200
    assert [connection_of(daemon, peer).group for peer in peers] == [None] * 3
    assert [status(await peer.answer()) for peer in peers[1:]] == [200] * 2
    assert daemon.repeated == 0


@pytest.mark.parametrize("how", ["abort", "leave_to_aiohttp"])
async def test_those_who_came_with_one_that_never_gets_to_wait_are_not_forgotten(
    bench: Bench, daemon: Daemon, how: str
) -> None:
    peer, other = [connection_of(daemon, await daemon.peer()) for _ in range(2)]
    for one in (peer, other):
        one.data_received(watch(daemon))
    assert other.group is not None
    getattr(peer, how)()
    if how == "leave_to_aiohttp":
        await at_aiohttp(other)
    await rotate(bench, daemon)
    assert status(await daemon.peers[1].answer()) == 200


async def test_who_asks_for_a_version_that_is_gone_is_answered_at_once(
    bench: Bench, daemon: Daemon
) -> None:
    old = watch(daemon)
    await first(daemon, old)
    await joined(daemon, old)
    await rotate(bench, daemon)
    assert status(await (await daemon.peer()).ask(old)) == 200


async def test_waiters_are_counted_when_they_are_answered(bench: Bench, daemon: Daemon) -> None:
    await first(daemon, watch(daemon))
    peers = [await joined(daemon, watch(daemon)) for _ in range(3)]
    assert 'route="/v1/tokens/{app}"' not in daemon.metrics.text().decode()
    await rotate(bench, daemon)
    for peer in peers:
        await peer.answer()
    assert (
        'token_broker_http_requests_total{route="/v1/tokens/{app}",status="200"} 4.0'
        in daemon.metrics.text().decode()
    )


# --- what does not wake them ----------------------------------------------------------------------


async def test_a_change_that_is_no_other_version_wakes_nobody(bench: Bench, daemon: Daemon) -> None:
    await first(daemon, watch(daemon))
    peer = await joined(daemon, watch(daemon))
    bench.clock.pass_(40)
    bench.wechat.answers.append(LOST)
    keeper = daemon.registry.find("main")
    assert keeper is not None
    await keeper.refresh(5)
    assert keeper.credential.suspicion is not None
    daemon.cache.drop()
    assert b'"state": "suspect"' in await (await daemon.peer()).ask()
    assert connection_of(daemon, peer).group is not None
    version = await rotate(bench, daemon)
    assert f'"{version}"'.encode() in await peer.answer()
    assert daemon.repeated == 1


# --- what is aiohttp's ----------------------------------------------------------------------------


async def test_who_says_more_while_it_waits_is_answered_in_order(
    bench: Bench, daemon: Daemon
) -> None:
    await (await daemon.peer()).ask(request("/livez"))
    await first(daemon, watch(daemon))
    peer = await joined(daemon, watch(daemon))
    peer.writer.write(request("/livez"))
    await at_aiohttp(connection_of(daemon, peer))
    version = await rotate(bench, daemon)
    assert f'"{version}"'.encode() in await peer.answer()
    assert b'{"status"' in await peer.answer()
    for _ in range(2):
        assert status(await peer.ask()) == 200
    assert daemon.repeated == 0


async def test_who_has_waited_here_waits_with_aiohttp_for_the_rest_of_its_time(
    daemon: Daemon,
) -> None:
    chunk, loop = watch(daemon, 1), asyncio.get_running_loop()
    await first(daemon, watch(daemon, 1))
    peer = await joined(daemon, chunk)
    began = loop.time()
    await asyncio.sleep(0.8)
    peer.writer.write(request("/livez"))
    await at_aiohttp(connection_of(daemon, peer))
    assert status(await peer.answer()) == 304
    assert 0.8 <= loop.time() - began < 1.6


async def test_who_does_not_read_is_aiohttps(bench: Bench, daemon: Daemon) -> None:
    await first(daemon, watch(daemon))
    peer = await joined(daemon, watch(daemon))
    waiter = connection_of(daemon, peer)
    waiter.pause_writing()
    await at_aiohttp(waiter)
    await rotate(bench, daemon)
    waiter.resume_writing()
    assert status(await peer.answer()) == 200
    assert daemon.repeated == 0


@pytest.mark.parametrize("half", [False, True], ids=["gone", "half gone"])
async def test_who_hangs_up_leaves_nothing_behind(
    bench: Bench, daemon: Daemon, *, half: bool
) -> None:
    await first(daemon, watch(daemon))
    peer = await joined(daemon, watch(daemon))
    group, before = connection_of(daemon, peer).group, daemon.cache.connections.open
    assert group is not None
    if half:
        peer.writer.write_eof()
    else:
        peer.writer.transport.abort()
    async with asyncio.timeout(10):
        while daemon.cache.connections.open == before:
            await asyncio.sleep(0)
    assert not group.members
    await rotate(bench, daemon)
    assert daemon.repeated == 0


@pytest.mark.parametrize("kind", ["HTTP/1.0", "Connection: close"])
async def test_a_connection_that_ends_with_its_answer_waits_with_aiohttp(
    bench: Bench, daemon: Daemon, kind: str
) -> None:
    chunk = (
        watch(daemon).replace(b"HTTP/1.1", b"HTTP/1.0")
        if kind == "HTTP/1.0"
        else watch(daemon, LONG, kind)
    )
    peers = [await daemon.peer() for _ in range(3)]
    for peer in peers:
        peer.writer.write(chunk)
    await at_aiohttp(*[connection_of(daemon, peer) for peer in peers])
    await rotate(bench, daemon)
    for peer in peers:
        assert status(await peer.answer()) == 200
        async with asyncio.timeout(10):
            assert await peer.reader.read() == b""
    assert daemon.repeated == 0


async def test_with_the_cache_switched_off_everybody_waits_with_aiohttp(bench: Bench) -> None:
    async with daemon_on(bench, enabled=False) as daemon:
        peers = [await daemon.peer() for _ in range(3)]
        for peer in peers:
            peer.writer.write(watch(daemon))
        async with asyncio.timeout(10):
            while not all(one.is_answering for one in daemon.cache.connections._open):
                await asyncio.sleep(0)
        await rotate(bench, daemon)
        assert {status(await peer.answer()) for peer in peers} == {200}
        assert daemon.repeated == 0


# --- what ends it ---------------------------------------------------------------------------------


async def test_a_token_that_is_not_to_be_had_is_aiohttps_to_tell(
    bench: Bench, daemon: Daemon
) -> None:
    bench.wechat.answers.extend([Failure(Kind.CONFIGURATION, FailureCode.ERRCODE)] * 9)
    chunk = watch(daemon, 0.5)
    one, other = await first(daemon, chunk), await joined(daemon, chunk)
    bench.clock.pass_(8000)
    assert [status(await peer.answer()) for peer in (one, other)] == [503, 503]
    assert daemon.repeated == 0


async def test_who_waits_when_the_daemon_stops_is_answered_and_told_to_close(bench: Bench) -> None:
    async with daemon_on(bench) as daemon:
        one = await first(daemon, watch(daemon))
        others = [await joined(daemon, watch(daemon)) for _ in range(AT_ONCE + AT_ONCE // 2)]
        daemon.registry.stop()
        for peer in (one, *others):
            answer = await peer.answer()
            assert status(answer) == 304
            assert b"Connection: close" in answer
        assert daemon.repeated == 0


async def test_who_waits_when_the_cache_ends_waits_with_aiohttp(
    bench: Bench, daemon: Daemon
) -> None:
    await first(daemon, watch(daemon))
    peers = [await joined(daemon, watch(daemon)) for _ in range(AT_ONCE + 10)]
    await daemon.cache.end()
    peers += [await daemon.peer() for _ in range(2)]
    for late in peers[-2:]:
        late.writer.write(watch(daemon))
    await at_aiohttp(*[connection_of(daemon, peer) for peer in peers])
    await rotate(bench, daemon)
    assert {status(await peer.answer()) for peer in peers} == {200}
    assert daemon.repeated == 0


async def test_who_may_not_ask_any_more_is_refused_and_others_wait_on(bench: Bench) -> None:
    async with daemon_on(bench, two_keys()) as daemon:
        mine, theirs = (
            watch(daemon, LONG, f"Authorization: Bearer {KEY}"),
            watch(daemon, LONG, "X-Note: -"),
        )
        await first(daemon, mine)
        await first(daemon, theirs, unix=True)
        refused = await joined(daemon, mine)
        near = await daemon.peer(unix=True)
        near.writer.write(theirs)
        daemon.gate.admit({"0" * 64: Client("nobody", frozenset())}, [])
        daemon.cache.admit_anew()
        assert status(await refused.answer()) == 401
        await rotate(bench, daemon)
        assert status(await near.answer()) == 200


async def test_who_may_still_ask_after_a_reload_waits_on_and_one_of_them_is_looked_at(
    bench: Bench,
) -> None:
    async with daemon_on(bench, two_keys()) as daemon:
        chunk = watch(daemon, LONG, f"Authorization: Bearer {KEY}")
        await first(daemon, chunk)
        peers = [await joined(daemon, chunk) for _ in range(AT_ONCE + AT_ONCE // 2)]
        connections = [connection_of(daemon, peer) for peer in peers]
        for _ in range(2):
            daemon.cache.admit_anew()
            async with asyncio.timeout(10):
                while not is_open(daemon.groups.find(chunk)):
                    await asyncio.sleep(0)
        assert [one.handler is not None for one in connections] == [True, True] + [False] * (
            len(connections) - 2
        )
        await rotate(bench, daemon)
        assert {status(await peer.answer()) for peer in peers} == {200}
        assert daemon.repeated == len(peers) - 2


async def test_who_waits_across_a_reload_waits_no_longer_for_it(bench: Bench) -> None:
    async with daemon_on(bench, two_keys()) as daemon:
        chunk, loop = watch(daemon, 1, f"Authorization: Bearer {KEY}"), asyncio.get_running_loop()
        await first(daemon, chunk)
        began = loop.time()
        peers = [await joined(daemon, chunk) for _ in range(3)]
        await asyncio.sleep(0.8)
        daemon.cache.admit_anew()
        assert {status(await peer.answer()) for peer in peers} == {304}
        assert loop.time() - began < 1.6
        assert daemon.repeated == len(peers) - 1


async def test_the_one_that_is_looked_at_after_a_reload_may_be_gone(
    bench: Bench, daemon: Daemon
) -> None:
    await first(daemon, watch(daemon))
    gone, peer = await joined(daemon, watch(daemon)), await joined(daemon, watch(daemon))
    connection_of(daemon, gone).abort()
    daemon.cache.admit_anew()
    await at_aiohttp(connection_of(daemon, peer))
    await rotate(bench, daemon)
    assert status(await peer.answer()) == 200


async def test_who_was_let_in_before_a_reload_opens_no_group_after_it(bench: Bench) -> None:
    async with daemon_on(bench, two_keys()) as daemon:
        chunk = watch(daemon, LONG, f"Authorization: Bearer {KEY}")
        await first(daemon, chunk)
        daemon.gate.admit({"0" * 64: Client("nobody", frozenset())}, [])
        daemon.cache.admit_anew()
        assert status(await (await daemon.peer()).ask(chunk)) == 401


# --- who is who -----------------------------------------------------------------------------------


async def test_nobody_waits_with_anothers_rights(bench: Bench) -> None:
    async with daemon_on(bench, two_keys()) as daemon:
        await first(daemon, watch(daemon, LONG, f"Authorization: Bearer {KEY}"))
        other = watch(daemon, LONG, f"Authorization: Bearer {OTHER}")
        assert status(await (await daemon.peer()).ask(other)) == 403
        near = watch(daemon)
        await first(daemon, near, unix=True)
        assert status(await (await daemon.peer()).ask(near)) == 401
        assert daemon.repeated == 0


async def test_who_waits_is_not_idle_and_is_not_hung_up_on(bench: Bench, daemon: Daemon) -> None:
    idle = await daemon.peer()
    await idle.ask()
    await first(daemon, watch(daemon))
    peer = await joined(daemon, watch(daemon))
    bench.clock.pass_(IDLE_S + 1)
    daemon.cache.connections.close_idle()
    async with asyncio.timeout(10):
        assert await idle.reader.read() == b""
    await rotate(bench, daemon)
    assert status(await peer.answer()) == 200


async def test_a_crowd_that_came_and_left_between_two_looks_is_known_to_have_left(
    daemon: Daemon,
) -> None:
    connections = daemon.cache.connections
    await first(daemon, watch(daemon))
    peers = [await joined(daemon, watch(daemon)) for _ in range(5)]
    assert connections.left() == 0
    for peer in peers:
        peer.writer.transport.abort()
    async with asyncio.timeout(10):
        while connections.open > 1:
            await asyncio.sleep(0)
    assert connections.left() == 5
    assert connections.left() == 0


async def test_groups_are_bounded_and_those_without_members_make_room(daemon: Daemon) -> None:
    groups = daemon.groups
    for number in range(MOST_GROUPS):
        (await first(daemon, watch(daemon, LONG, f"X-Number: {number}"))).writer.transport.abort()
    stays = watch(daemon, LONG, "X-Number: 0")
    await joined(daemon, stays)
    await first(daemon, watch(daemon))
    assert len(groups._groups) == 2
    assert is_open(groups.find(stays))


async def test_a_group_without_members_ends_with_the_version(bench: Bench, daemon: Daemon) -> None:
    await first(daemon, watch(daemon))
    await rotate(bench, daemon)
    assert not daemon.groups._groups


# --- groups by themselves -------------------------------------------------------------------------

CHUNK = request("/v1/tokens/main?wait=60", 'If-None-Match: "x"')
OK = web.Response(body=b"ok")


class Handler(asyncio.Protocol):
    """Stands for aiohttp's protocol: it keeps what it is given."""

    _request_in_progress = False

    def __init__(self, connection: object) -> None:
        self.connection = connection
        self.received: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.received.append(data)


class Wire(asyncio.Transport):
    """A connection that keeps what is written on it."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))


def alone() -> tuple[PollGroups, Callable[[], Connection]]:
    """PollGroups, and what makes connections that may wait in them."""
    connections = Connections(MOST_GROUPS * 2)
    groups = PollGroups(connections.now, lambda *_: None, connections.waits)
    path = FastPath(CachedResponses(connections.now, lambda *_: None), groups)

    def connected() -> Connection:
        connection = Connection(connections, Handler, path)
        connection.connection_made(Wire())
        return connection

    return groups, connected


def waits(connection: Connection, chunk: bytes = CHUNK) -> bool:
    """Send a request. Return True if the connection waits in a group now."""
    connection.data_received(chunk)
    return connection.group is not None


async def opened(
    groups: PollGroups,
    count: int,
    make: Callable[[], Connection],
    answer: Callable[[], web.Response | None],
) -> list[Connection]:
    """So many who wait, for what is over at once."""

    async def over(_seconds: float) -> bool:
        return True

    assert not waits(make())
    waiters = [make() for _ in range(count)]
    assert all(map(waits, waiters))
    group = groups.find(CHUNK)
    assert group is not None
    group.open(Wait(60, over, answer), None, None)
    return waiters


async def test_each_slice_is_told_what_is_true_then_and_nobody_joins_what_is_over() -> None:
    groups, make = alone()
    answers: list[bool] = []

    def answer() -> web.Response:
        answers.append(waits(make()))
        return OK

    waiters = await opened(groups, AT_ONCE * 3, make, answer)
    async with asyncio.timeout(10):
        while any(one.group is not None for one in waiters):
            await asyncio.sleep(0)
    assert len(answers) == 3
    assert answers[0] is False
    await groups.end()


async def test_a_bug_leaves_nobody_waiting() -> None:
    groups, make = alone()
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: complaints.append(context)
    )

    def answer() -> web.Response:
        raise ZeroDivisionError

    waiters = await opened(groups, AT_ONCE + 1, make, answer)
    async with asyncio.timeout(10):
        while any(one.group is not None for one in waiters[AT_ONCE:]):
            await asyncio.sleep(0)
    await groups.end()
    assert [one.group for one in waiters] == [None] * len(waiters)


class Closing(asyncio.Transport):
    """A connection that is being closed, as uvloop has it: to write on it is an error."""

    def is_closing(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        raise RuntimeError(data)


@pytest.mark.parametrize("answer", [OK, None], ids=["answered", "handed back"])
async def test_one_that_is_being_closed_keeps_no_answer_from_others(
    answer: web.Response | None,
) -> None:
    groups, make = alone()
    waiters = await opened(groups, AT_ONCE + 1, make, lambda: answer)
    waiters[0].transport = Closing()
    async with asyncio.timeout(10):
        while any(one.group is not None for one in waiters):
            await asyncio.sleep(0)
    assert waiters[0].handler is None
    assert not groups._tasks or all(task.exception() is None for task in await finished(groups))


async def finished(groups: PollGroups) -> set[asyncio.Task[None]]:
    done, _ = await asyncio.wait(groups._tasks)
    return done


async def test_nobody_is_answered_between_a_reload_and_the_look_at_one_of_them() -> None:
    groups, make = alone()
    changed, asked = asyncio.Event(), list[None]()

    async def over(_seconds: float) -> bool:
        return await changed.wait()

    def answer() -> web.Response:
        asked.append(None)
        return OK

    assert not waits(make())
    looked_at, other = make(), make()
    assert waits(looked_at)
    assert waits(other)
    group = groups.find(CHUNK)
    assert group is not None
    group.open(Wait(60, over, answer), None, None)
    await asyncio.sleep(0)
    groups.admit_anew()
    changed.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert (looked_at.group, other.group, asked) == (None, group, [])
    await groups.end()


async def test_a_group_without_members_ends_with_a_reload() -> None:
    groups, make = alone()
    (waiter,) = await opened(groups, 1, make, lambda: OK)
    waiter.leave_to_aiohttp()
    groups.admit_anew()
    assert not waits(make())
    await groups.end()


def test_what_may_wait_is_told_in_one_pass() -> None:
    """A search that begins anew at each `wait` would hold everybody up, before any key is asked.

    So the time is bounded, however a stranger words the request.
    """

    def took(many: int) -> float:
        chunk = (
            b"GET /v1/tokens/main?"
            + b"&wait=" * many
            + b" HTTP/1.1\r\nHost: a"
            + b"\r\nif-none-matc: x" * 100
            + b"\r\n\r\n"
        )
        assert is_one_request(chunk)
        began = time.process_time()
        for _ in range(50):
            assert WATCH.match(chunk) is None
        return time.process_time() - began

    assert min(took(300) for _ in range(3)) < 20 * min(took(1) for _ in range(3))


async def test_no_more_groups_than_that_are_opened() -> None:
    groups, make = alone()
    for number in range(MOST_GROUPS + 1):
        assert not waits(make(), CHUNK.replace(b"Host", b"X-Number: %d\r\nHost" % number))
    assert len(groups._groups) == MOST_GROUPS
    await groups.end()


async def test_what_let_a_request_in_before_a_change_opens_no_group_after_it(bench: Bench) -> None:
    cache = ResponseCache(Connections(100, bench.clock.now))
    opened = []

    async def handler(request: web.Request) -> web.Response:
        cache.note_request(request)
        cache.drop()
        # It is never waited for
        cache.join(request, Wait(60, asyncio.sleep, lambda: OK))  # type: ignore[arg-type]
        opened.append(cache._paths[False].groups.find(CHUNK))
        return OK

    app = web.Application()
    app.add_routes([web.get("/v1/tokens/main", handler)])
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        async with answering(app) as runner, accepting(runner, [sock], cache):
            reader, writer = await asyncio.open_connection(*sock.getsockname())
            writer.write(CHUNK)
            assert await asyncio.wait_for(reader.read(12), 10) == b"HTTP/1.1 200"
            writer.close()
    assert opened == [None]
