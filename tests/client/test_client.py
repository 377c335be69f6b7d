"""The client library against a real daemon and sandbox.

It answers from memory, stays up to date, and says so when it has nothing.
"""

import asyncio
import contextlib
import json
import random
import socketserver
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import requests

from broker.client import AsyncTokenClient, BrokerError, BrokerUnavailable, TokenClient
from broker.client.adapters import aiohttp_middleware, httpx_auth, requests_auth
from broker.client.protocol import Answer, BrokerAddress, Memory, Token, now, read
from tests.harness.crashpoints import ForkedDaemon, ForkServer
from tests.harness.doubles import APPID, CANARY
from tests.harness.processes import ask, until

QUICK = "min_gap = 0.3\nverify_gap = 0.1\n"


@pytest.fixture
def house(tmp_path: Path, forks: ForkServer) -> Iterator[ForkedDaemon]:
    house = ForkedDaemon(tmp_path, fork_server=forks)
    with house.simulating():
        house.configure(policy=QUICK)
        with house.living():
            until(lambda: house.get("/readyz")[0] == 200, "ready")
            yield house


@pytest.fixture
def client(house: ForkedDaemon) -> Iterator[TokenClient]:
    with TokenClient(house.daemon) as client:
        yield client


@pytest.fixture
async def aio(house: ForkedDaemon) -> AsyncIterator[AsyncTokenClient]:
    async with AsyncTokenClient(house.daemon) as client:
        yield client


def requests_for_tokens(house: ForkedDaemon) -> float:
    lines = str(ask("GET", house.daemon + "/metrics")[1]).splitlines()
    route = 'route="/v1/tokens/{app}",status="200"'
    return sum(
        float(line.split()[-1])
        for line in lines
        if line.startswith("token_broker_http_requests_total{") and route in line
    )


def kill(house: ForkedDaemon) -> None:
    house.control("/kill", {"appid": APPID})


def data_call(house: ForkedDaemon, token: str) -> Any:
    return ask("GET", f"{house.sandbox}/cgi-bin/get_api_domain_ip?access_token={token}")[1]


@contextlib.contextmanager
def _answering(answer: bytes) -> Iterator[tuple[str, list[float]]]:
    """A server that gives every request the same answer; its address, and when it was asked."""
    asked: list[float] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            asked.append(now())
            while self.rfile.readline().strip():
                pass
            self.wfile.write(answer)

    class Server(socketserver.ThreadingTCPServer):
        # A handler may wait for a request of the very loop that ends the server.
        daemon_threads, block_on_close = True, False

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


def rotate(house: ForkedDaemon) -> str:
    """Have the broker fetch another token; its value."""
    return str(
        until(
            lambda: (
                (answer := house.post("/v1/tokens/main/refresh"))[0] == 200
                and answer[1]["access_token"]
            ),
            "min_gap",
        )
    )


# --- from memory ----------------------------------------------------------------------------------


def test_many_threads_at_a_cold_start_ask_once_and_then_never(
    house: ForkedDaemon, client: TokenClient
) -> None:
    before = requests_for_tokens(house)
    got: set[str] = set()
    threads = [
        threading.Thread(target=lambda: got.update(client.get() for _ in range(100)))
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {house.get("/v1/tokens/main")[1]["access_token"]}
    assert requests_for_tokens(house) - before <= 2  # one of theirs, and the one above


async def test_many_tasks_at_a_cold_start_ask_once(
    house: ForkedDaemon, aio: AsyncTokenClient
) -> None:
    before = await asyncio.to_thread(requests_for_tokens, house)
    got = set(await asyncio.gather(*(aio.get() for _ in range(200))))
    assert len(got) == 1
    # The metrics may be those of a moment ago.
    await asyncio.to_thread(until, lambda: requests_for_tokens(house) - before == 1, "counted")


def test_a_rotation_reaches_a_client_that_does_not_ask(
    house: ForkedDaemon, client: TokenClient
) -> None:
    assert client.get()
    fresh = rotate(house)
    until(lambda: client._memory.held[1] == fresh, "the rotation has reached memory")
    assert client.get() == fresh


async def test_a_rotation_reaches_an_async_client_and_its_watchers(
    house: ForkedDaemon, aio: AsyncTokenClient
) -> None:
    watch = aio.watch()
    first = await anext(watch)
    fresh = await asyncio.to_thread(rotate, house)
    async with asyncio.timeout(10):
        second = await anext(watch)
    assert (second.value, second.version != first.version) == (fresh, True)
    assert await aio.get() == fresh
    await watch.aclose()  # type: ignore[attr-defined]


def test_whatever_the_moment_no_thread_gets_a_token_a_second_after_it_was_replaced(
    house: ForkedDaemon, client: TokenClient
) -> None:
    client.get()
    got: list[tuple[float, str]] = []
    over = threading.Event()

    def ask_on() -> None:
        while not over.is_set():
            asked_at = now()
            got.append((asked_at, client.get()))
            over.wait(random.uniform(0, 0.002))

    threads = [threading.Thread(target=ask_on) for _ in range(8)]
    for thread in threads:
        thread.start()
    replaced: dict[str, float] = {}
    for _ in range(6):
        before = client.get()
        rotate(house)
        replaced[before] = now()
        over.wait(random.uniform(0, 1.2))
    over.set()
    for thread in threads:
        thread.join()
    assert len({token for _, token in got}) >= 6
    assert [at - replaced[token] for at, token in got if at > replaced.get(token, at) + 1] == []


def test_a_sync_watch_yields_each_token_and_ends_when_closed(house: ForkedDaemon) -> None:
    client = TokenClient(house.daemon)
    watch = client.watch()
    first = next(watch)
    fresh = rotate(house)
    assert next(watch).value == fresh != first.value
    closing = threading.Timer(0.1, client.close)
    closing.start()
    list(watch)
    closing.join()


def test_over_the_unix_socket_too(house: ForkedDaemon) -> None:
    with TokenClient(f"unix:{house.home}/broker.sock") as client:
        assert client.get() == house.get("/v1/tokens/main")[1]["access_token"]


async def test_over_the_unix_socket_with_asyncio_too(house: ForkedDaemon) -> None:
    async with AsyncTokenClient(f"unix:{house.home}/broker.sock") as client:
        assert await client.get(min_ttl=60)


def test_min_ttl_beyond_reach_is_an_error_and_memory_stays(client: TokenClient) -> None:
    token = client.get()
    with pytest.raises(BrokerUnavailable) as caught:
        client.get(min_ttl=80_000)
    assert caught.value.code == "upstream-unavailable"
    assert client.get() == token


# --- reports --------------------------------------------------------------------------------------


def test_using_reports_a_refused_token_and_calls_once_more(
    house: ForkedDaemon, client: TokenClient
) -> None:
    dead = client.get()
    kill(house)
    called: list[str] = []

    def call(token: str) -> Any:
        called.append(token)
        return data_call(house, token)

    answer = until(
        lambda: (got := client.using(call)).get("ip_list") and got,
        "min_gap is over and the token replaced",
    )
    assert answer["ip_list"]
    assert called[0] == dead
    assert client.get() != dead
    assert len(house.calls()) == 2


async def test_using_does_not_loop_on_a_call_that_is_always_refused(
    house: ForkedDaemon, aio: AsyncTokenClient
) -> None:
    called = 0

    async def refused(_: str) -> dict[str, int]:
        nonlocal called
        called += 1
        return {"errcode": 40001}

    assert await aio.using(refused) == {"errcode": 40001}
    assert called == 2
    assert len(house.calls()) == 1  # WeChat says the token is good: nothing was spent


def _said(answer: Any, _: str) -> Any:
    return answer


def test_what_is_no_refusal_is_handed_back_untouched(
    house: ForkedDaemon, client: TokenClient
) -> None:
    answers: list[Any] = [{"errcode": 45009}, {"errcode": 0}, [], "text", None, {"errcode": True}]
    for answer in answers:
        assert client.using(partial(_said, answer)) is answer
    assert "verifications_total{" not in str(ask("GET", house.daemon + "/metrics")[1])


# --- trouble --------------------------------------------------------------------------------------


def test_while_the_broker_is_away_the_copy_is_used_and_without_one_it_says_so(
    tmp_path: Path,
    forks: ForkServer,
) -> None:
    house = ForkedDaemon(tmp_path, fork_server=forks)
    with house.simulating():
        house.configure()
        with house.living() as daemon:
            client = TokenClient(house.daemon)
            token = client.get()
            address = house.daemon
            daemon.end()
        assert client.get() == token
        assert client.token(min_ttl=10).value == token
        with pytest.raises(BrokerUnavailable) as caught, TokenClient(address) as other:
            other.get()
        assert caught.value.code == "unreachable"
        client.close()


# --- the promise, and WeChat's own end -----------------------------------------------------------

PROMISE_OVER, IN_ITS_LAST_SECONDS, OVER = (-1, 3600), (4, 3600), (-10, -1)
NOBODY = "http://127.0.0.1:9"


def _problem(code: str) -> bytes:
    body = json.dumps({"code": code, "detail": "no"}).encode()
    head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _token(value: str, call: int, promised: int) -> bytes:
    fields = {"app": "main", "access_token": value, "version": f"e-{call}"}
    body = json.dumps({**fields, "expires_in": promised, "token_expires_in": 7000}).encode()
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class Asking:
    """One of the two clients, which holds a token already."""

    def __init__(self, broker: str, left: tuple[int, int], *, is_async: bool) -> None:
        self.client = AsyncTokenClient(broker) if is_async else TokenClient(broker)
        promised, ends = (now() + seconds for seconds in left)
        self.client._memory.keep(Token("t", "e-1", "main", promised, ends), now())

    async def get(self, min_ttl: float = 0) -> str:
        if isinstance(self.client, TokenClient):
            return await asyncio.to_thread(self.client.get, min_ttl)
        return await self.client.get(min_ttl)

    async def no_more(self, value: str) -> None:
        """Ask until it is another token; raises what asking raises."""
        async with asyncio.timeout(60):
            while await self.get() == value:
                await asyncio.sleep(0.05)

    async def ended(self) -> None:
        if isinstance(self.client, TokenClient):
            self.client.close()
        else:
            await self.client.close()


either = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


@contextlib.asynccontextmanager
async def holding(broker: str, left: tuple[int, int], *, is_async: bool) -> AsyncIterator[Asking]:
    asking = Asking(broker, left, is_async=is_async)
    try:
        yield asking
    finally:
        await asking.ended()


@either
async def test_a_token_says_how_long_it_is_promised_and_how_long_wechat_lets_it_live(
    house: ForkedDaemon, client: TokenClient, aio: AsyncTokenClient, *, is_async: bool
) -> None:
    token = await aio.token() if is_async else await asyncio.to_thread(client.token)
    said = (await asyncio.to_thread(house.get, "/v1/tokens/main"))[1]
    assert said["expires_in"] < said["token_expires_in"]
    assert said["expires_in"] - 5 <= token.expires_in <= said["expires_in"] + 5
    assert said["token_expires_in"] - 5 <= token.token_expires_in <= said["token_expires_in"] + 5


@either
async def test_after_its_promise_a_token_is_used_while_the_broker_cannot_be_reached(
    *, is_async: bool
) -> None:
    async with holding(NOBODY, PROMISE_OVER, is_async=is_async) as asking:
        assert await asking.get() == await asking.get(min_ttl=60) == "t"
        with pytest.raises(BrokerUnavailable, match="unreachable"):
            await asking.get(min_ttl=4000)
    async with holding(NOBODY, OVER, is_async=is_async) as asking:
        with pytest.raises(BrokerUnavailable, match="unreachable"):
            await asking.get()
    with _answering(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n") as (broker, _):
        async with holding(broker, PROMISE_OVER, is_async=is_async) as asking:
            assert await asking.get() == "t"  # what answers is not the broker


@either
async def test_after_its_promise_a_token_is_not_used_where_the_broker_says_there_is_none(
    *, is_async: bool
) -> None:
    with _answering(_problem("upstream-unavailable")) as (broker, _):
        async with holding(broker, PROMISE_OVER, is_async=is_async) as asking:
            with pytest.raises(BrokerUnavailable, match="upstream-unavailable"):
                await asking.get()
        async with holding(broker, IN_ITS_LAST_SECONDS, is_async=is_async) as asking:
            assert await asking.get() == "t"  # a promise holds, whatever happened since


@either
async def test_an_outage_is_not_asked_into_again_and_again(*, is_async: bool) -> None:
    with _answering(b"") as (broker, asked):
        async with holding(broker, PROMISE_OVER, is_async=is_async) as asking:
            assert {await asking.get() for _ in range(50)} == {"t"}
            assert len(asked) <= 3  # by a caller, and by the follower


@either
async def test_when_the_broker_is_back_its_token_is_taken_up(*, is_async: bool) -> None:
    with _answering(b"") as (broker, _):
        async with holding(broker, PROMISE_OVER, is_async=is_async) as asking:
            assert await asking.get() == "t"
            with _answering(_token("u", 2, 100)) as (back, _):
                asking.client._address = BrokerAddress.parse(back)
                await asking.no_more("t")
                assert await asking.get() == "u"


@either
async def test_when_the_broker_is_back_with_nothing_the_copy_is_over(*, is_async: bool) -> None:
    with _answering(b"") as (broker, _):
        async with holding(broker, PROMISE_OVER, is_async=is_async) as asking:
            assert await asking.get() == "t"
            with _answering(_problem("quota-exhausted")) as (back, _):
                asking.client._address = BrokerAddress.parse(back)
                with pytest.raises(BrokerUnavailable, match="quota-exhausted"):
                    await asking.no_more("t")


def test_a_broker_that_knows_no_promise_means_wechats_end() -> None:
    body = b'{"app":"main","access_token":"t","version":"e-1","expires_in":100}'
    token, _ = read(Answer(200, body, 50.0, 50.1), waited=False)
    assert token
    assert (token.expires_at, token.token_expires_at) == (150.0, 150.0)


@pytest.mark.parametrize("broker", ["https://x", "127.0.0.1:1", "unix:x", "http://h/path", ""])
def test_an_address_that_is_none_is_refused(broker: str) -> None:
    with pytest.raises(ValueError, match="unix:/PATH"):
        TokenClient(broker)


def test_a_refused_key_is_read_again_from_its_file_once(tmp_path: Path, forks: ForkServer) -> None:
    house = ForkedDaemon(tmp_path, fork_server=forks)
    key = tmp_path / "orders.key"
    key.write_text(f"{CANARY}-key-1")
    key.chmod(0o600)
    with house.simulating():
        house.configure(more=f'[clients.orders]\nkey_file = "{key}"\n')
        with house.living():
            mine = tmp_path / "mine.key"
            mine.write_text(f"{CANARY}-wrong")
            with TokenClient(house.daemon, key_file=mine) as client:
                with pytest.raises(BrokerError) as caught:
                    client.get()
                assert caught.value.code == "invalid-key"
                assert CANARY not in f"{caught.value!r}{client!r}{vars(caught.value)}"
                mine.write_text(f"{CANARY}-key-1\n")
                assert client.get()
            with TokenClient(house.daemon, key=f"{CANARY}-key-1") as client:
                assert CANARY not in repr(client.token())


def test_an_unknown_app_is_an_error_with_its_code(house: ForkedDaemon) -> None:
    with TokenClient(house.daemon, "nobody") as client, pytest.raises(BrokerError) as caught:
        client.get()
    assert caught.value.code == "unknown-app"


def test_what_is_no_broker_is_called_so(house: ForkedDaemon) -> None:
    with TokenClient(house.sandbox) as client, pytest.raises(BrokerUnavailable) as caught:
        client.get()
    assert caught.value.code == "not-a-broker"


def test_a_wait_that_the_broker_ends_at_once_is_a_failure_that_backs_off() -> None:
    short, full = Answer(304, b"", 100.0, 100.1), Answer(304, b"", 100.0, 155.0)
    assert read(full, waited=True) == (None, {})
    with pytest.raises(
        BrokerUnavailable, match="ended-early"
    ):  # it is stopping; asked again at once it would say so again
        read(short, waited=True)


def test_a_follower_does_not_spin_on_a_broker_that_answers_at_once() -> None:
    with _answering(b"HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n") as (broker, asked):
        client = TokenClient(broker)
        client._memory.keep(Token("t", "e-1", "main", now() + 7200, now() + 7200), now())
        client._follow()
        until(lambda: len(asked) == 2, "it asks again")
        client.close()
    assert asked[1] - asked[0] > 0.1


def test_an_answer_asked_for_before_the_newest_came_in_changes_nothing() -> None:
    memory = Memory()
    newer = memory.keep(Token("new", "e-2", "main", now() + 100, now() + 100), now())
    assert memory.keep(Token("old", "e-1", "main", now() + 100, now() + 100), now() - 5) is newer
    assert memory.held[1] == "new"
    assert (
        memory.keep(Token("newest", "e-3", "main", now() + 100, now() + 100), now() + 5).value
        == "newest"
    )


def test_a_forked_worker_follows_by_itself(house: ForkedDaemon) -> None:
    script = f"""
import os, sys
from broker.client import TokenClient
client = TokenClient({house.daemon!r})
token = client.get()
if (child := os.fork()) == 0:
    assert client.get() == token and client.token(min_ttl=5).value == token
    client._memory = type(client._memory)()
    assert client.get() == token and client._follower.is_alive()
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_importing_it_pulls_in_neither_server_nor_sqlite() -> None:
    heavy = {
        "broker.tokens.keeper",
        "sqlite3",
        "sqlite_utils",
        "apscheduler",
        "pydantic",
        "structlog",
        "prometheus_client",
        "jinja2",
    }
    script = (
        "import sys, broker.client;"
        f" print(sorted({heavy | {'aiohttp', 'asyncio', 'httpx', 'requests'}} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- tickets --------------------------------------------------------------------------------------


def tickets_served(house: ForkedDaemon) -> float:
    lines = str(ask("GET", house.daemon + "/metrics")[1]).splitlines()
    return sum(
        float(line.split()[-1])
        for line in lines
        if 'route="/v1/tickets/{app}/{type}",status="200"' in line
    )


def test_a_ticket_is_asked_for_once_and_a_token_beside_it_stays(
    house: ForkedDaemon, client: TokenClient
) -> None:
    token, ticket = client.get(), client.ticket("jsapi")
    assert (
        ticket.value
        == house.get("/v1/tickets/main/jsapi")[1]["ticket"]
        != client.ticket("wx_card").value
    )
    before = tickets_served(house)
    assert {client.ticket("jsapi").value for _ in range(9)} == {ticket.value}
    assert tickets_served(house) == before
    assert client.get() == token == house.get("/v1/tokens/main")[1]["access_token"]
    with pytest.raises(BrokerError, match="unknown-ticket"):
        client.ticket("contact")


async def test_many_tasks_ask_for_a_ticket_once(house: ForkedDaemon, aio: AsyncTokenClient) -> None:
    got = await asyncio.gather(*(aio.ticket() for _ in range(50)))
    assert len({ticket.value for ticket in got}) == 1
    assert await asyncio.to_thread(tickets_served, house) == 1
    assert await aio.get() != got[0].value


def test_while_the_broker_is_away_a_ticket_lives_on_in_memory(
    tmp_path: Path, forks: ForkServer
) -> None:
    house = ForkedDaemon(tmp_path, fork_server=forks)
    with house.simulating():
        house.configure()
        with house.living(), TokenClient(house.daemon) as client:
            held = client.ticket().value
        assert client.ticket().value == held
        with pytest.raises(BrokerUnavailable):
            client.ticket("wx_card")


# --- adapters -------------------------------------------------------------------------------------

PATH = "/cgi-bin/get_api_domain_ip"


async def test_an_aiohttp_session_gets_the_token_and_tries_once_more(
    house: ForkedDaemon, aio: AsyncTokenClient
) -> None:
    async with aiohttp.ClientSession(
        house.sandbox, middlewares=[aiohttp_middleware(aio)]
    ) as session:
        async with session.get(PATH) as answer:
            assert "ip_list" in await answer.json(content_type=None)
        kill(house)
        await _until_replaced(house, aio)
        async with session.get(PATH) as answer:
            assert "ip_list" in await answer.json(content_type=None)
    assert len(house.calls()) == 2


async def _until_replaced(house: ForkedDaemon, aio: AsyncTokenClient) -> None:
    """Wait out min_gap, so that the next refused call may be answered by a refresh."""
    old = (await aio.token()).version
    await asyncio.to_thread(
        until, lambda: house.get("/v1/status")[1]["apps"][0]["version"] == old, "known"
    )
    await asyncio.to_thread(until, lambda: _age(house) > 0.35, "min_gap")


def _age(house: ForkedDaemon) -> float:
    return float(house.control("")["now"]) - float(house.calls()[-1]["at"])


def test_requests_gets_the_token_and_tries_once_more(
    house: ForkedDaemon, client: TokenClient
) -> None:
    auth = requests_auth(client)
    assert "ip_list" in requests.get(f"{house.sandbox}{PATH}?x=1", auth=auth, timeout=5).json()
    kill(house)
    until(lambda: _age(house) > 0.35, "min_gap")
    answer = requests.get(house.sandbox + PATH, auth=auth, timeout=5)
    assert "ip_list" in answer.json()
    assert len(answer.history) == 1
    assert len(house.calls()) == 2


def test_httpx_gets_the_token_and_tries_once_more(house: ForkedDaemon, client: TokenClient) -> None:
    with httpx.Client(base_url=house.sandbox, auth=httpx_auth(client)) as session:
        assert "ip_list" in session.get(PATH).json()
        kill(house)
        until(lambda: _age(house) > 0.35, "min_gap")
        assert "ip_list" in session.get(PATH).json()
    assert len(house.calls()) == 2


async def test_async_httpx_gets_the_token_and_tries_once_more(
    house: ForkedDaemon, aio: AsyncTokenClient
) -> None:
    async with httpx.AsyncClient(base_url=house.sandbox, auth=httpx_auth(aio)) as session:
        assert "ip_list" in (await session.get(PATH)).json()
        kill(house)
        await asyncio.to_thread(until, lambda: _age(house) > 0.35, "min_gap")
        assert "ip_list" in (await session.get(PATH)).json()
    assert len(house.calls()) == 2


async def test_a_stream_that_is_used_up_is_reported_but_not_sent_again(
    house: ForkedDaemon, aio: AsyncTokenClient
) -> None:
    async def once() -> AsyncIterator[bytes]:
        yield b"{}"

    async with aiohttp.ClientSession(
        house.sandbox, middlewares=[aiohttp_middleware(aio)]
    ) as session:
        await aio.get()
        kill(house)
        with contextlib.suppress(aiohttp.ClientError):
            async with session.post("/cgi-bin/user/info/batchget", data=once()) as answer:
                assert (await answer.json(content_type=None))["errcode"] == 40001


# --- logins ---------------------------------------------------------------------------------------


def login_code(house: ForkedDaemon, kind: str) -> str:
    order = {"appid": APPID, "kind": kind, "openid": "o-1", "snapshot": kind == "web"}
    return str(house.control("/code", order)["code"])


def test_a_login_gives_wechats_answer_as_it_is_and_asks_once(
    house: ForkedDaemon, client: TokenClient
) -> None:
    given = login_code(house, "miniprogram")
    assert client.login(given).keys() == {"openid", "session_key"}
    assert client.login(given)["errcode"] == 40163
    web = client.login(login_code(house, "web"), "web")
    assert (web["openid"], web["is_snapshotuser"]) == ("o-1", 1)
    assert house.control("")["login_calls"] == {
        "/sns/jscode2session": 2,
        "/sns/oauth2/access_token": 1,
    }
    assert client.get() != web["access_token"]  # a user's token is not the account's


async def test_the_same_for_asyncio(house: ForkedDaemon, aio: AsyncTokenClient) -> None:
    given = login_code(house, "web")
    assert (await aio.login(given, kind="web"))["openid"] == "o-1"
    assert (await aio.login(given, kind="web"))["errcode"] == 40163
    with pytest.raises(BrokerError) as refused:
        await aio.login("c", kind="qr")
    assert refused.value.code == "invalid-body"


def test_a_login_without_an_answer_is_an_exception(
    house: ForkedDaemon, client: TokenClient
) -> None:
    house.control("/faults", {"kind": "garbage", "path": "/sns/jscode2session"})
    with pytest.raises(BrokerUnavailable) as lost:
        client.login(login_code(house, "miniprogram"))
    assert (lost.value.code, lost.value.retry_after) == ("upstream-unavailable", None)
    with pytest.raises(BrokerUnavailable):
        TokenClient("http://127.0.0.1:9").login("c")
    with _answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]") as (address, _):
        with pytest.raises(BrokerUnavailable) as other:
            TokenClient(address).login("c")
        assert other.value.code == "not-a-broker"
