"""The upstream client: what goes over the wire, and what comes of everything the network may do."""

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from aioresponses import aioresponses

from broker.core.errcodes import Failure, FailureCode, Kind
from broker.core.ports import Minted, Verdict
from broker.core.secret import Secret
from broker.wechat import WeChat
from tests.harness.doubles import ACCOUNT, APPID, CANARY, stable
from tests.harness.shims import Response

BASE = "https://api.weixin.qq.com"
GOOD = b'{"access_token":"ACCESS_TOKEN","expires_in":7200}'
Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def wechat_says() -> Iterator[aioresponses]:
    with aioresponses(passthrough=["http://127.0.0.1"]) as mocked:
        yield mocked


@asynccontextmanager
async def serving(peer: Peer, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await peer(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"{'https' if context else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def http(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def saying(answer: bytes) -> Peer:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    return peer


async def fetched(peer: Peer, timeout_s: float = 5) -> Minted | Failure:
    async with serving(peer) as base, WeChat.connect(base, timeout_s) as wechat:
        return await wechat.fetch(ACCOUNT, force=False)


# --- what is asked --------------------------------------------------------------------------------


async def test_the_classic_endpoint_is_asked_by_query(wechat_says: aioresponses) -> None:
    query = f"grant_type=client_credential&appid={APPID}&secret={ACCOUNT.secret.reveal()}"
    wechat_says.get(f"{BASE}/cgi-bin/token?{query}", body=GOOD, response_class=Response)
    async with WeChat.connect(BASE, 5) as wechat:
        answer = await wechat.fetch(ACCOUNT, force=False)
    assert isinstance(answer, Minted)
    assert (answer.token.reveal(), answer.expires_in) == ("ACCESS_TOKEN", 7200)


@pytest.mark.parametrize("force", [False, True])
# A case
async def test_the_stable_endpoint_is_asked_by_post(wechat_says: aioresponses, force: bool) -> None:  # noqa: FBT001
    wechat_says.post(f"{BASE}/cgi-bin/stable_token", body=GOOD, response_class=Response)
    async with WeChat.connect(BASE, 5) as wechat:
        assert isinstance(await wechat.fetch(stable(), force=force), Minted)
    ((call,),) = wechat_says.requests.values()
    assert call.kwargs["json"] == {
        "grant_type": "client_credential",
        "appid": APPID,
        "secret": ACCOUNT.secret.reveal(),
        "force_refresh": force,
    }


async def test_a_token_is_checked_with_the_cheap_call(wechat_says: aioresponses) -> None:
    url = f"{BASE}/cgi-bin/get_api_domain_ip?access_token=T"
    for body in ('{"ip_list":["1.2.3.4"]}', '{"errcode":40001,"errmsg":"x"}', "<html>"):
        wechat_says.get(url, body=body, response_class=Response)
    wechat_says.get(url, status=502, response_class=Response)
    async with WeChat.connect(BASE, 5) as wechat:
        said = [await wechat.check(ACCOUNT, Secret("T")) for _ in range(4)]
    assert said == [Verdict.ALIVE, Verdict.DEAD, Verdict.UNKNOWN, Verdict.UNKNOWN]


@pytest.mark.parametrize("errcode", [45009, 48001, 40164, -1])
async def test_where_the_cheap_call_gives_no_verdict_its_sister_is_asked(
    wechat_says: aioresponses, errcode: int
) -> None:
    url = f"{BASE}/cgi-bin/get_api_domain_ip?access_token=T"
    sister = f"{BASE}/cgi-bin/getcallbackip?access_token=T"
    none = f'{{"errcode":{errcode},"errmsg":"x"}}'
    wechat_says.get(url, body=none, response_class=Response, repeat=True)
    for body in ('{"ip_list":["1.2.3.4"]}', '{"errcode":42001,"errmsg":"x"}', none):
        wechat_says.get(sister, body=body, response_class=Response)
    wechat_says.get(sister, status=502, response_class=Response)
    async with WeChat.connect(BASE, 5) as wechat:
        said = [await wechat.check(ACCOUNT, Secret("T")) for _ in range(4)]
    assert said == [Verdict.ALIVE, Verdict.DEAD, Verdict.UNDECIDED, Verdict.UNDECIDED]


# --- one call is one request ----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset", "half an answer"])
async def test_a_server_that_mints_and_drops_sees_one_request_and_the_answer_is_lost(
    how: str,
) -> None:
    requests = 0

    async def mint_then_drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await reader.readuntil(b"\r\n\r\n")
        requests += 1
        if how == "half an answer":
            writer.write(http(GOOD)[:-10])
        if how == "reset":
            writer.transport.abort()

    async with serving(mint_then_drop) as base, WeChat.connect(base, 5) as wechat:
        for calls in (1, 2, 3):
            answer = await wechat.fetch(ACCOUNT, force=False)
            assert isinstance(answer, Failure)
            assert (answer.kind, answer.lost) == (Kind.TRANSIENT, True)
            assert requests == calls


@pytest.mark.parametrize(
    "status",
    ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"],
)
async def test_a_redirect_is_not_followed(status: str) -> None:
    visited = []

    async def elsewhere(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        visited.append(await reader.read(10))

    async with serving(elsewhere) as other:
        answer = await fetched(saying(http(b"", status, f"Location: {other}/")))
    assert isinstance(answer, Failure)
    assert not answer.lost  # it is an answer, and it brought no token
    assert visited == []


# --- everything the network may do ----------------------------------------------------------------


async def test_silence_ends_at_the_total_deadline_and_is_a_lost_answer() -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    answer = await fetched(silent, timeout_s=0.1)
    assert answer == Failure(
        Kind.TRANSIENT, FailureCode.NO_ANSWER, lost=True, facts={"seconds": "0.1"}
    )


@pytest.mark.parametrize(
    "dripped", [b"H", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"]
)
async def test_a_byte_at_a_time_ends_at_the_total_deadline(dripped: bytes) -> None:
    async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(dripped)
        await reader.read()

    answer = await fetched(dripping, timeout_s=0.1)
    assert isinstance(answer, Failure)
    assert answer.lost


async def test_a_refused_connection_and_an_unknown_name_never_left_so_nothing_is_lost() -> None:
    async with serving(saying(b"")) as base:
        pass
    for nowhere in (base, "http://nowhere.invalid"):
        async with WeChat.connect(nowhere, 5) as wechat:
            answer = await wechat.fetch(ACCOUNT, force=False)
        assert isinstance(answer, Failure)
        assert (answer.kind, answer.lost) == (Kind.TRANSIENT, False)


@pytest.mark.parametrize(
    "status",
    ["500 Internal Server Error", "502 Bad Gateway", "404 Not Found", "429 Too Many Requests"],
)
async def test_an_http_error_is_an_answer(status: str) -> None:
    answer = await fetched(saying(http(b"<html>", status)))
    assert answer == Failure(Kind.TRANSIENT, FailureCode.HTTP_STATUS, facts={"status": status[:3]})


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 2e9),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("soon", None),
    ],
)
async def test_retry_after_is_read_in_both_forms(header: str, seconds: float | None) -> None:
    answer = await fetched(saying(http(b"", "503 Service Unavailable", f"Retry-After: {header}")))
    assert isinstance(answer, Failure)
    assert answer.retry_after == (pytest.approx(seconds, rel=0.2) if seconds else seconds)


async def test_a_stream_without_end_is_cut() -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x" * 65536)
            sent += 65536
            await writer.drain()

    answer = await fetched(endless)
    assert isinstance(answer, Failure)
    assert answer.lost
    assert sent < 32 * 2**20  # what the sockets' buffers take, not gigabytes


async def test_a_compressed_answer_is_read_and_a_bomb_is_cut() -> None:
    small = await fetched(saying(http(gzip.compress(GOOD), "200 OK", "Content-Encoding: gzip")))
    assert isinstance(small, Minted)
    bomb = gzip.compress(b'{"access_token":"T","expires_in":7200}' + b" " * 50_000_000)
    assert len(bomb) < 64 * 1024
    big = await fetched(saying(http(bomb, "200 OK", "Content-Encoding: gzip")))
    assert isinstance(big, Failure)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/9.9 abc\r\n\r\n",
        b"\x00" * 100,
        b"HTTP/1.1 200 OK\r\nA" + b"a" * 99999,
    ],
)
async def test_what_is_not_http_is_a_failure_like_others(answer: bytes) -> None:
    assert isinstance(await fetched(saying(answer)), Failure)


async def test_a_certificate_nobody_vouches_for_is_refused() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("aNULL:@SECLEVEL=0")  # no certificate at all: the handshake cannot succeed
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(saying(http(GOOD)), context) as base, WeChat.connect(base, 5) as wechat:
        answer = await wechat.fetch(ACCOUNT, force=False)
    assert isinstance(answer, Failure)
    assert not answer.lost


async def test_no_failure_carries_the_secret_or_the_url() -> None:
    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        writer.write(request + request)  # a mirror: whatever we said comes back as the answer

    for peer in (garbage, saying(b""), saying(http(CANARY.encode()))):
        assert CANARY not in repr(await fetched(peer))
