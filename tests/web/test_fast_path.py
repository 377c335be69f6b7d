"""The response cache: an equal request gets an equal answer, only while nothing has changed."""

import asyncio
import math
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from broker.core.credential import Credential, Doubt, Endpoint, HeldToken
from broker.core.decision import promised_until, scheduled_at
from broker.core.errcodes import Failure, FailureCode, Kind
from broker.core.ports import Verdict
from broker.core.secret import Secret
from broker.tokens.live import LiveCredential
from broker.web.connection.cached_response import MOST_CACHED, is_one_request
from broker.web.connection.connection import State
from broker.web.connection.connections import Connections
from broker.web.connection.fast_path import AGAIN, APP, ResponseCache
from broker.web.connection.lifecycle import accepting, answering
from broker.web.gate import Client
from tests.harness.doubles import ACCOUNT, CANARY, LOST, Bench
from tests.harness.peers import (
    ASK,
    KEY,
    OTHER,
    Daemon,
    Peer,
    connection_of,
    daemon_on,
    request,
    status,
    two_keys,
    without_date,
)


def without_times(answer: bytes) -> bytes:
    """An answer without what another second changes in it."""
    return re.sub(rb'(expires_(?:in|at)": )[^,}]*', rb"\1-", without_date(answer))


# --- what is repeated -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chunk", [ASK, request("/livez"), request("/readyz"), request("/v1/tokens/main?min_ttl=60")]
)
async def test_a_request_like_one_before_gets_the_same_bytes_on_any_connection(
    daemon: Daemon, chunk: bytes
) -> None:
    peer, other = await daemon.peer(), await daemon.peer()
    first = await peer.ask(chunk)
    assert status(first) == 200
    assert daemon.repeated == 0
    assert await peer.ask(chunk) == first
    assert await other.ask(chunk) == first
    assert daemon.repeated == 2


async def test_a_cached_response_is_what_aiohttp_would_write(bench: Bench, daemon: Daemon) -> None:
    etag = re.search(rb'Etag: (".*?")', await (await daemon.peer()).ask())
    assert etag
    chunks = [
        ASK,
        request("/livez"),
        request("/readyz"),
        request("/v1/tokens/main", f"If-None-Match: {etag[1].decode()}"),
    ]
    repeated = [[await (await daemon.peer()).ask(chunk) for _ in range(2)][1] for chunk in chunks]
    assert daemon.repeated == 4 + 1
    async with daemon_on(bench, enabled=False) as plain:
        written = [[await (await plain.peer()).ask(chunk) for _ in range(2)][1] for chunk in chunks]
        assert plain.repeated == 0
    assert [without_times(one) for one in repeated] == [without_times(one) for one in written]
    assert [status(one) for one in written] == [200, 200, 200, 304]


async def test_metrics_count_repeated_answers_like_others(daemon: Daemon) -> None:
    peer = await daemon.peer()
    for _ in range(7):
        await peer.ask()
    text = (await peer.ask(request("/metrics"))).decode()
    assert 'token_broker_http_requests_total{route="/v1/tokens/{app}",status="200"} 7.0' in text
    assert daemon.repeated == 6


async def test_a_connection_that_only_the_cache_has_answered_is_not_silent(daemon: Daemon) -> None:
    await (await daemon.peer()).ask()
    peer = await daemon.peer()
    await peer.ask()
    assert daemon.repeated == 1
    assert connection_of(daemon, peer).heard_at == daemon.cache.now()


async def test_a_connection_that_aiohttp_never_saw_is_closed_when_the_daemon_stops(
    bench: Bench,
) -> None:
    async with daemon_on(bench) as daemon:
        await (await daemon.peer()).ask()
        peer, silent = await daemon.peer(), await daemon.peer()
        await peer.ask()
        assert daemon.repeated == 1
        assert connection_of(daemon, peer).handler is None
        daemon.registry.stop()
        assert b"Connection: close" in await peer.ask()
    async with asyncio.timeout(10):
        assert await silent.reader.read() == b""


# --- what ends it ---------------------------------------------------------------------------------


async def test_it_is_never_said_to_live_longer_than_it_does(bench: Bench, daemon: Daemon) -> None:
    peer = await daemon.peer()
    token = daemon.registry.find("main")
    assert token is not None
    for step in (0.0, 0.4, 0.5, 0.2, 0.9, 1.0, 0.3):
        await peer.ask()
        bench.clock.pass_(step)
        answer = await peer.ask()
        found = re.search(rb'"token_expires_in": (\d+)', answer)
        promised = re.search(rb'"expires_in": (\d+)', answer)
        held = token.credential.token
        assert found
        assert promised
        assert held
        left = held.expires_at - bench.clock.now()
        assert left - 1 < int(found[1]) <= left
        until = promised_until(token.credential, Endpoint.TOKEN, bench.policy, bench.clock.now())
        assert until - bench.clock.now() - 1 < int(promised[1]) <= until - bench.clock.now()


async def test_another_version_is_served_at_once(bench: Bench, daemon: Daemon) -> None:
    peer = await daemon.peer()
    before = await peer.ask()
    assert await peer.ask() == before
    bench.clock.pass_(40)
    before = await peer.ask()
    keeper = daemon.registry.find("main")
    assert keeper is not None
    await keeper.refresh(5)
    assert f"{CANARY}-main-t2".encode() in await peer.ask()
    assert f"{CANARY}-main-t2".encode() not in before


async def test_a_token_in_doubt_is_called_so_at_once(bench: Bench, daemon: Daemon) -> None:
    peer = await daemon.peer()
    bench.clock.pass_(40)
    assert b'"state": "fresh"' in await peer.ask()
    bench.wechat.answers.append(LOST)
    keeper = daemon.registry.find("main")
    assert keeper is not None
    await keeper.refresh(5)
    assert keeper.credential.suspicion is not None
    assert keeper.credential.suspicion.doubt is Doubt.LOST_ANSWER
    assert b'"state": "suspect"' in await peer.ask()


async def test_a_token_that_wechat_refuses_is_not_given_again_while_another_is_fetched(
    bench: Bench, daemon: Daemon
) -> None:
    peer, keeper = await daemon.peer(), daemon.registry.find("main")
    assert keeper is not None
    bench.clock.pass_(40)
    before = [await peer.ask() for _ in range(2)]
    assert daemon.repeated == 1
    bench.wechat.shut_after_check = True
    bench.wechat.verdicts.append(Verdict.DEAD)
    report = asyncio.create_task(keeper.report(5, version=keeper.credential.version))
    async with asyncio.timeout(10):
        while not keeper.credential.refused:
            await asyncio.sleep(0)
    peer.writer.write(ASK)
    bench.wechat.gate.set()
    assert f"{CANARY}-main-t2".encode() in await peer.answer()
    assert f"{CANARY}-main-t1".encode() in before[1]
    await report


@pytest.mark.parametrize("min_ttl", [0, 3000.5, 100])
def test_an_answer_is_never_good_beyond_its_own_words(bench: Bench, min_ttl: float) -> None:
    published = LiveCredential(ACCOUNT, bench.clock, bench.policy, lambda _: None)
    token = HeldToken(Secret("t"), 1, bench.clock.now(), bench.clock.now() + 7200.25)
    published.adopt(Credential("e", token))
    stale_at = scheduled_at(published.credential, Endpoint.TOKEN, bench.policy)
    for _ in range(20_000):
        bench.clock.pass_(0.37)
        if (served := published.serve(min_ttl)) is None:
            break
        now = bench.clock.now()
        assert now <= served.until <= now + 1
        assert token.expires_at - served.until >= max(served.token_expires_in, min_ttl)
        assert now >= stale_at or served.until <= stale_at
    assert served is None


async def test_a_token_that_is_due_is_called_stale_from_that_moment(
    bench: Bench, daemon: Daemon
) -> None:
    bench.wechat.answers.extend([Failure(Kind.CONFIGURATION, FailureCode.ERRCODE)] * 9)
    keeper, peer = daemon.registry.find("main"), await daemon.peer()
    assert keeper is not None
    bench.clock.pass_(keeper.next_call_in() - 0.3)
    assert b'"state": "fresh"' in await peer.ask()
    assert b'"state": "fresh"' in await peer.ask()
    bench.clock.pass_(0.31)
    assert b'"state": "stale"' in await peer.ask()


async def test_a_min_ttl_that_is_out_of_reach_is_not_repeated(bench: Bench, daemon: Daemon) -> None:
    bench.wechat.answers.extend([Failure(Kind.CONFIGURATION, FailureCode.ERRCODE)] * 9)
    keeper = daemon.registry.find("main")
    assert keeper is not None
    held = keeper.serve()
    assert held is not None
    bench.clock.pass_(100)
    peer = await daemon.peer()
    chunk = request(f"/v1/tokens/main?min_ttl={held.expires_in - 100.5}")
    bench.clock.pass_(0.2)
    for _ in range(2):
        assert status(await peer.ask(chunk)) == 200
    bench.clock.pass_(1.5)
    assert status(await peer.ask(chunk)) == 503


async def test_a_schedule_that_has_stopped_shows(bench: Bench, daemon: Daemon) -> None:
    peer = await daemon.peer()
    bench.clock.pass_(3 * bench.policy.tick + 4.6)
    for _ in range(2):
        assert status(await peer.ask(request("/livez"))) == 200
    bench.clock.pass_(0.2)
    for _ in range(2):
        assert status(await peer.ask(request("/livez"))) == 503
    daemon.registry.tick()
    assert status(await peer.ask(request("/livez"))) == 200


async def test_a_daemon_that_stops_says_close_and_no_more_comes_from_the_cache(
    daemon: Daemon,
) -> None:
    peer = await daemon.peer()
    await peer.ask()
    daemon.registry.stop()
    assert b"Connection: close" in await peer.ask()
    assert daemon.repeated == 0


async def test_a_key_that_is_taken_away_is_refused_at_once(bench: Bench) -> None:
    async with daemon_on(bench, two_keys()) as daemon:
        peer = await daemon.peer()
        chunk = request("/v1/tokens/main", f"Authorization: Bearer {KEY}")
        assert status(await peer.ask(chunk)) == status(await peer.ask(chunk)) == 200
        assert daemon.repeated == 1
        daemon.gate.admit({"0" * 64: Client("nobody", frozenset())}, [])
        assert status(await peer.ask(chunk)) == 401


async def test_who_was_let_in_before_a_reload_is_refused_after_it(
    bench: Bench,
) -> None:
    bench.wechat.gate.clear()
    async with daemon_on_the_way(bench) as (daemon, chunk, peer):
        peer.writer.write(chunk)
        await asyncio.wait_for(bench.wechat.arrived.wait(), 10)
        daemon.gate.admit({"0" * 64: Client("nobody", frozenset())}, [])
        bench.wechat.before_answer = lambda: bench.clock.pass_(0.3)
        bench.wechat.gate.set()
        assert status(await peer.answer()) == 401
        assert status(await peer.ask(chunk)) == 401


@asynccontextmanager
async def daemon_on_the_way(bench: Bench) -> AsyncIterator[tuple[Daemon, bytes, Peer]]:
    """A daemon whose first token is being fetched while somebody asks for it."""
    opening = daemon_on(bench, two_keys())
    task = asyncio.create_task(opening.__aenter__())
    await bench.wechat.arrived.wait()
    bench.wechat.gate.set()
    daemon = await task
    bench.wechat.gate.clear()
    bench.wechat.arrived.clear()
    bench.clock.pass_(8000)
    yield daemon, request("/v1/tokens/main", f"Authorization: Bearer {KEY}"), await daemon.peer()
    await opening.__aexit__(None, None, None)


# --- who is who -----------------------------------------------------------------------------------


async def test_nobody_is_answered_with_anothers_rights(bench: Bench) -> None:
    async with daemon_on(bench, two_keys()) as daemon:
        peer = await daemon.peer()
        for _ in range(3):
            assert (
                status(await peer.ask(request("/v1/tokens/main", f"Authorization: Bearer {KEY}")))
                == 200
            )
            assert (
                status(await peer.ask(request("/v1/tokens/main", f"Authorization: Bearer {OTHER}")))
                == 403
            )
            assert (
                status(await peer.ask(request("/v1/tokens/main", "Authorization: Bearer wrong")))
                == 401
            )
            assert status(await peer.ask(ASK)) == 401
        assert daemon.repeated == 2


async def test_what_the_unix_socket_may_a_tcp_peer_may_not(bench: Bench) -> None:
    async with daemon_on(bench, two_keys()) as daemon:
        near, far = await daemon.peer(unix=True), await daemon.peer()
        assert status(await near.ask()) == status(await near.ask()) == 200
        assert status(await far.ask()) == 401
        assert status(await near.ask()) == 200
        assert daemon.repeated == 2


@pytest.mark.parametrize(
    "chunk",
    [request("/v1/tokens/nope"), request("/nope"), request("/v1/status"), request("/health")],
)
async def test_only_good_answers_of_routes_that_say_so_are_repeated(
    daemon: Daemon, chunk: bytes
) -> None:
    peer = await daemon.peer()
    for _ in range(3):
        await peer.ask(chunk)
    assert daemon.repeated == 0


async def test_a_change_of_one_app_drops_what_is_about_it_or_about_no_one_app(
    daemon: Daemon,
) -> None:
    peer, of_app, of_all = await daemon.peer(), ASK, request("/readyz")
    for chunk in (of_app, of_all):
        await peer.ask(chunk)
    daemon.cache.drop("shop")
    for chunk in (of_app, of_all):
        await peer.ask(chunk)
    assert daemon.repeated == 1, "of the app that has not changed"
    daemon.cache.drop("main")
    for chunk in (of_app, of_all):
        await peer.ask(chunk)
    assert daemon.repeated == 1
    for chunk in (of_app, of_all):
        await peer.ask(chunk)
    assert daemon.repeated == 3
    daemon.cache.drop()
    for chunk in (of_app, of_all):
        await peer.ask(chunk)
    assert daemon.repeated == 3


@pytest.mark.parametrize(
    ("changed", "handled"), [("shop", 1), ("main", 2), (None, 2)], ids=["another", "its own", "all"]
)
async def test_an_answer_is_not_kept_if_its_app_has_changed_since_the_request_came(
    changed: str | None, handled: int
) -> None:
    cache, times = ResponseCache(Connections(100)), list[None]()

    async def handler(request: web.Request) -> web.Response:
        cache.note_request(request)
        times.append(None)
        request[APP], request[AGAIN] = "main", lambda: (b"ok", math.inf)
        cache.drop(changed)
        return web.Response(body=b"ok")

    app = web.Application()
    app.add_routes([web.get("/", handler)])
    app.on_response_prepare.append(cache.keep)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        async with answering(app) as runner, accepting(runner, [sock], cache):
            peer = Peer(*await asyncio.open_connection(*sock.getsockname()))
            for _ in range(2):
                assert (await peer.ask(request("/"))).endswith(b"ok")
            peer.writer.close()
    assert len(times) == handled


async def test_a_bad_answer_is_not_repeated(bench: Bench) -> None:
    bench.wechat.answers.append(LOST)
    async with daemon_on(bench) as daemon:
        peer = await daemon.peer()
        for _ in range(3):
            assert status(await peer.ask(request("/readyz"))) == 503
        assert daemon.repeated == 0


# --- what stays with aiohttp ----------------------------------------------------------------------

BODY = ASK.replace(b"\r\n\r\n", b"\r\nContent-Length: %d\r\n\r\n" % len(ASK))
HALF = len(ASK) // 2


async def test_a_body_that_looks_like_a_request_is_a_body(daemon: Daemon) -> None:
    await (await daemon.peer()).ask()
    peer = await daemon.peer()
    assert status(await peer.ask(BODY)) == 200
    peer.writer.write(ASK)  # the body
    peer.writer.write(request("/livez"))
    assert b'{"status"' in await peer.answer()
    assert daemon.repeated == 0


async def test_a_request_behind_half_a_request_is_not_looked_up(daemon: Daemon) -> None:
    await (await daemon.peer()).ask()
    peer = await daemon.peer()
    await peer.ask()
    peer.writer.write(b"GET /v1/tokens/main HTTP/1.1\r\nX-Note: ")
    await daemon.arrived(peer, lambda connection: connection.state is State.AIOHTTP)
    answer = await peer.ask()  # the rest of that header, and of that request
    assert status(answer) == 200
    assert daemon.repeated == 1
    assert status(await peer.ask()) == 200
    assert daemon.repeated == 1


async def test_two_requests_in_one_chunk_are_two_requests(daemon: Daemon) -> None:
    await (await daemon.peer()).ask()
    peer = await daemon.peer()
    assert status(await peer.ask(ASK + request("/livez"))) == 200
    assert b'{"status"' in await peer.answer()
    assert status(await peer.ask()) == 200
    assert daemon.repeated == 0


async def test_an_answer_does_not_overtake_one_that_is_still_to_come(daemon: Daemon) -> None:
    await (await daemon.peer()).ask()
    etag = re.search(rb'Etag: (".*?")', await (await daemon.peer()).ask())
    peer = await daemon.peer()
    assert etag
    peer.writer.write(request("/v1/tokens/main?wait=0.3", f"If-None-Match: {etag[1].decode()}"))
    await daemon.arrived(peer, lambda connection: connection.state is State.ANSWERING)
    assert status(await peer.ask()) == 304
    assert status(await peer.answer()) == 200
    assert daemon.repeated == 1


@pytest.mark.parametrize(
    "chunk",
    [request("/v1/tokens/main", "Connection: close"), ASK.replace(b"HTTP/1.1", b"HTTP/1.0")],
    ids=["Connection: close", "HTTP/1.0"],
)
async def test_a_connection_that_ends_with_its_answer_ends(daemon: Daemon, chunk: bytes) -> None:
    for _ in range(3):
        peer = await daemon.peer()
        assert status(await peer.ask(chunk)) == 200
        async with asyncio.timeout(10):
            assert await peer.reader.read() == b""
    assert daemon.repeated == 0


async def test_a_wait_is_a_wait(daemon: Daemon) -> None:
    etag = re.search(rb'Etag: (".*?")', await (await daemon.peer()).ask())
    assert etag
    peer, loop = await daemon.peer(), asyncio.get_running_loop()
    for _ in range(2):
        began = loop.time()
        assert (
            status(
                await peer.ask(
                    request("/v1/tokens/main?wait=0.1", f"If-None-Match: {etag[1].decode()}")
                )
            )
            == 304
        )
        assert loop.time() - began >= 0.1
    assert daemon.repeated == 1


async def test_a_peer_that_does_not_read_is_aiohttps(daemon: Daemon) -> None:
    await (await daemon.peer()).ask()
    peer = await daemon.peer()
    await peer.ask()
    connection = connection_of(daemon, peer)
    connection.pause_writing()
    connection.resume_writing()
    assert status(await peer.ask()) == 200
    assert daemon.repeated == 1


async def test_the_cache_is_bounded(daemon: Daemon) -> None:
    peer = await daemon.peer()
    for number in range(MOST_CACHED + 10):
        await peer.ask(request("/livez", f"X-Number: {number}"))
    cached = [path.responses.by_request for path in daemon.cache._paths.values()]
    assert 0 < sum(map(len, cached)) <= MOST_CACHED


@pytest.mark.parametrize(
    ("chunk", "is_one"),
    [
        (ASK, True),
        (ASK[:-1], False),
        (ASK + b"G", False),
        (ASK * 2, False),
        (b"\r\n" + ASK, False),
        (ASK.replace(b"GET", b"HEAD"), False),
        (ASK.replace(b"GET", b"POST"), False),
        (ASK.replace(b"\r\nX", b"\nX"), False),
        (ASK.replace(b"\r\nX", b"\rX"), False),
        (request("/", "content-LENGTH: 5"), False),
        (request("/", "Transfer-Encoding: chunked"), False),
        (request("/", "Expect: 100-continue"), False),
        (request("/", "Upgrade: websocket"), False),
        (request("/", "X: " + "x" * 5000), False),
    ],
)
def test_a_chunk_is_one_request_or_it_is_not(chunk: bytes, *, is_one: bool) -> None:
    assert is_one_request(chunk) is is_one


# --- SDKs -----------------------------------------------------------------------------------------


async def test_an_sdk_that_never_keeps_a_token_is_answered_from_the_cache(bench: Bench) -> None:
    async with daemon_on(bench, two_keys()) as daemon:
        peer = await daemon.peer()
        ask = request(
            f"/cgi-bin/token?grant_type=client_credential&appid={ACCOUNT.appid}"
            f"&secret={KEY.replace(' ', '+')}"
        )
        answers = [await peer.ask(ask) for _ in range(100)]
        assert all(f"{CANARY}-main-t1".encode() in answer for answer in answers)
        assert daemon.repeated >= 95
        keeper = daemon.registry.find("main")
        assert keeper is not None
        bench.clock.pass_(bench.policy.min_gap)
        await keeper.refresh(5)
        assert f"{CANARY}-main-t2".encode() in await peer.ask(ask)


async def test_who_comes_back_after_a_while_is_not_answered_from_the_cache(bench: Bench) -> None:
    async with daemon_on(bench, two_keys()) as daemon:
        peer = await daemon.peer()
        ask = request(
            f"/cgi-bin/token?grant_type=client_credential&appid={ACCOUNT.appid}"
            f"&secret={KEY.replace(' ', '+')}"
        )
        await peer.ask(ask)
        bench.clock.pass_(600)
        bench.wechat.verdicts.append(Verdict.DEAD)
        assert f"{CANARY}-main-t2".encode() in await peer.ask(ask)
