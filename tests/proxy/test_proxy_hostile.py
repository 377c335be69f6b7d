"""The proxy between a WeChat and services that both do what they should not."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from broker.core.ports import Minted, Verdict
from broker.core.secret import Secret
from tests.harness.doubles import Bench
from tests.harness.proxy_harness import GOOD, ME, Hostile, Proxied, Seen, errcode, raw, says, until
from tests.harness.wiring import PATIENCE_S

GET = "/cgi-bin/user/get"
HEAD = f"POST {GET} HTTP/1.1\r\nHost: localhost\r\nX-Token-Broker: 1\r\n".encode()
OK = b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"ok":1}'
ODD = "97_/+=?&%"  # a token is opaque, and need not look like those there are
Start = Callable[..., Awaitable[Proxied]]


@pytest.fixture
async def start(bench: Bench) -> AsyncIterator[Start]:
    """A broker with a table of its own, and a WeChat that is told later how to answer."""
    async with AsyncExitStack() as stack:

        async def started(answer: Any = GOOD, **table: Any) -> Proxied:
            wechat = await stack.enter_async_context(Hostile().serving())
            wechat.answers[GET] = answer
            broker = await stack.enter_async_context(Proxied(bench, wechat).serving(**table))
            await broker.look()
            return broker

        yield started


async def silence(_seen: Seen, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    while await reader.read(65536):
        pass


async def said(broker: Proxied, request: bytes, deadline_s: float = 4) -> bytes:
    """The first object that comes back on a connection that stays open."""
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.http.port)
    try:
        writer.write(request)
        async with asyncio.timeout(deadline_s):
            return await reader.readuntil(b"}")
    finally:
        writer.close()


# --- services -------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"{}", b'{"a":"' + b"x" * 5000 + b'"}'], ids=["short", "long"])
async def test_a_packed_body_is_refused_and_not_sent_on_in_pieces(
    start: Start, body: bytes
) -> None:
    broker = await start()
    answer = await broker.ask(
        "POST", GET, data=gzip.compress(body), headers={**ME, "Content-Encoding": "gzip"}
    )
    assert await errcode(answer) == 47001
    assert broker.wechat.seen == []


@pytest.mark.parametrize("length", [500, 70_000, 5_000_000], ids=["sent whole", "kept", "streamed"])
async def test_a_service_that_does_not_send_its_body_has_idle_timeout_and_not_more(
    start: Start, length: int
) -> None:
    broker = await start(silence, idle_timeout=0.2)
    assert b'"errcode": -1' in await said(
        broker, HEAD + b"Content-Length: %d\r\n\r\nx" % length, PATIENCE_S - 1
    )
    assert broker.outcomes == [("main", "unreachable")]


async def test_the_time_for_a_token_is_not_the_time_for_an_answer(start: Start) -> None:
    """After the wait for a report's outcome, WeChat has idle_timeout again."""
    broker = await start(idle_timeout=0.2)
    broker.bench.clock.pass_(100)
    broker.bench.wechat.verdicts.append(Verdict.DEAD)

    async def refuse_then_nothing(
        seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if len(broker.wechat.seen) > 1:
            await silence(seen, reader, writer)
        await says({"errcode": 40001})(seen, reader, writer)

    broker.wechat.answers[GET] = refuse_then_nothing
    assert b'"errcode": -1' in await said(broker, HEAD + b"\r\n", PATIENCE_S - 1)
    assert len(broker.wechat.seen) == 2


async def test_who_leaves_in_the_middle_of_an_upload_takes_it_along(start: Start) -> None:
    broker = await start()
    broker.wechat.reads_bodies = False
    broker.wechat.answers[GET] = silence
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.http.port)
    writer.write(HEAD + b"Content-Length: 9000000\r\n\r\n" + b"x" * 200_000)
    await until(lambda: broker.wechat.seen)
    writer.transport.abort()
    await until(lambda: broker.outcomes)
    assert broker.outcomes[0][1] in {"abandoned", "cut", "unreachable"}
    assert not await reader.read()


async def test_an_answer_during_an_upload_is_the_answer_though_wechat_keeps_the_connection(
    start: Start,
) -> None:
    async def hasty(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await says({"errcode": 45009})(seen, reader, writer)
        await silence(seen, reader, writer)

    broker = await start(hasty)
    broker.wechat.reads_bodies = False
    assert b"45009" in await said(broker, HEAD + b"Content-Length: 9000000\r\n\r\n" + b"x" * 2000)


async def test_a_body_longer_than_it_says_is_a_request_of_its_own(start: Start) -> None:
    broker = await start()
    inner = b"POST /cgi-bin/token HTTP/1.1\r\nHost: localhost\r\n\r\n"
    await said(broker, HEAD + b"Content-Length: 3\r\n\r\nabc" + inner)
    assert [(seen.target.partition("?")[0], seen.body) for seen in broker.wechat.seen] == [
        (GET, b"abc")
    ]


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
    ],
)
async def test_a_body_of_doubtful_length_goes_nowhere(start: Start, framing: bytes) -> None:
    broker = await start()
    answer = await broker.raw(
        (HEAD + framing + b"Connection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n").decode()
    )
    assert b" 400 " in answer.split(b"\r\n")[0] or b'"errcode": 47001' in answer
    assert broker.wechat.seen == []


# --- WeChat ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "interim",
    [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"],
    ids=["100", "103"],
)
async def test_interim_answers_are_not_the_answer(start: Start, interim: bytes) -> None:
    broker = await start(raw(interim * 3 + OK, close=False))
    for _ in range(2):
        assert await (await broker.get(GET)).read() == b'{"ok":1}'


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
         b'8\r\n{"ok":1}\r\n0\r\n\r\n'),
        b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\nContent-Length: 9\r\n\r\n{"ok":1}',
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"y" * 20_000 + b"\r\nContent-Length: 2\r\n\r\n{}",
        b"".join([b"HTTP/1.1 200 OK\r\n", *(b"X-%d: 1\r\n" % n for n in range(1000)), b"\r\n{}"]),
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{"ok":',
    ],
    ids=["an upgrade", "TE and CL", "two CL", "a header of 20 KB", "1000 headers", "half a chunk"],
)  # fmt: skip
async def test_an_answer_that_may_be_read_in_two_ways_is_none_and_its_connection_is_not_used_again(
    start: Start, answer: bytes
) -> None:
    broker = await start(raw(answer))
    assert await errcode(await broker.get(GET)) == -1
    broker.wechat.answers[GET] = raw(OK, close=False)
    assert await (await broker.get(GET)).read() == b'{"ok":1}'
    assert (len(broker.wechat.seen), broker.wechat.connections) == (2, 2)


async def test_what_follows_an_answer_is_not_the_next_one(start: Start) -> None:
    broker = await start(
        raw(OK + b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"ok":2}', close=False)
    )
    for _ in range(4):
        assert await (await broker.get(GET)).read() == b'{"ok":1}'


async def test_what_follows_an_answer_without_a_body_is_not_the_next_one(start: Start) -> None:
    broker = await start(
        raw(b"HTTP/1.1 204 No Content\r\nContent-Length: 8\r\n\r\n" + b'{"no":1}', close=False)
    )
    answer = await broker.get(GET)
    assert b'{"no":1}' not in await answer.read()
    broker.wechat.answers[GET] = raw(OK, close=False)
    assert await (await broker.get(GET)).read() == b'{"ok":1}'


async def test_an_old_client_gets_a_chunked_answer_whole(start: Start) -> None:
    pieces = (
        b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (b"x" * 9000, b"y" * 9000))
        + b"0\r\n\r\n"
    )
    broker = await start(
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + pieces, close=False)
    )
    answer = await broker.raw(f"GET {GET} HTTP/1.0\r\nHost: localhost\r\nX-Token-Broker: 1\r\n\r\n")
    assert answer.partition(b"\r\n\r\n")[2] == b"x" * 9000 + b"y" * 9000


async def test_a_wechat_that_drips_has_total_timeout(start: Start) -> None:
    async def drip(
        _seen: Seen, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    broker = await start(drip, idle_timeout=0.3, total_timeout=0.8)
    async with asyncio.timeout(5):
        answer = await broker.raw(
            f"GET {GET} HTTP/1.1\r\nHost: localhost\r\nX-Token-Broker: 1\r\n\r\n"
        )
    assert 0 < len(answer.partition(b"\r\n\r\n")[2]) < 1000
    assert broker.outcomes == [("main", "cut")]


@pytest.mark.parametrize("quoted", ["97_/+=?&%", "97_%2F%2B%3D%3F%26%25", "97_%2f%2b%3d%3f%26%25"])
async def test_no_header_shows_the_token_however_it_is_written(bench: Bench, quoted: str) -> None:
    bench.wechat.answers.append(Minted(Secret(ODD), 7200))
    async with Hostile().serving() as wechat, Proxied(bench, wechat).serving() as broker:
        await broker.look()
        wechat.answers[GET] = says(
            b"", f"Location: /cgi-bin/x?access_token={quoted}", "X-Kept: 1", status="302 Found"
        )
        answer = await broker.get(GET)
        assert (answer.status, "Location" in answer.headers, answer.headers["X-Kept"]) == (
            302,
            False,
            "1",
        )
        assert wechat.seen[0].token == ODD


@pytest.mark.parametrize(
    "body",
    [
        b'{"errcode":40001,"x":' + b"[" * 7000 + b"}", b'{"errcode":' + b"9" * 5000 + b"}",
        b'{"errcode":40001', b'{"errcode":{"40001":40001}}',
        b'{"errcode":48001,"errmsg":"40001 invalid"}', b"\xff" + b'{"errcode":40001}',
        gzip.compress(b" " * 9000 + b'{"errcode":40001}'),
    ],
    ids=[
        "nested", "a long number", "half", "an object", "in words", "no UTF-8", "a bomb of blanks",
    ],
)  # fmt: skip
async def test_what_only_looks_like_a_refusal_is_passed_on(start: Start, body: bytes) -> None:
    broker = await start(
        says(body, *(["Content-Encoding: gzip"] if body.startswith(b"\x1f") else []))
    )
    broker.bench.clock.pass_(100)
    answer = await broker.get(GET, **{"Accept-Encoding": "gzip"})
    assert await answer.read() == body
    assert (broker.bench.wechat.checks, len(broker.wechat.seen)) == (0, 1)
