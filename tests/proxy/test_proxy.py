"""The proxy: what goes up, what comes down, and what becomes of a token that WeChat refuses."""

import asyncio
import gzip
import hashlib
import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from broker.core.credential import Endpoint
from broker.core.errcodes import Failure, FailureCode, Kind
from broker.core.ports import Verdict
from broker.web.gate import Client
from tests.harness.doubles import ACCOUNT, CANARY, Bench
from tests.harness.proxy_harness import (
    GOOD,
    ME,
    Hostile,
    Proxied,
    Seen,
    digests,
    errcode,
    raw,
    says,
    until,
)

GET = "/cgi-bin/user/get"
WECOM = replace(ACCOUNT, appid="ww0123456789abcdef", endpoint=Endpoint.WECOM)


def value(number: int) -> str:
    return f"{CANARY}-main-t{number}"


# --- the way up -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "sent"),
    [
        ("", "?access_token={}"),
        ("?", "?access_token={}"),
        ("?access_token=", "?access_token={}"),
        ("?next_openid=&lang=zh_CN", "?next_openid=&lang=zh_CN&access_token={}"),
        ("?b=2&access_token=mine&a=%E4%BD%A0+%2b&&c", "?b=2&access_token={}&a=%E4%BD%A0+%2b&&c"),
        ("?access%5Ftoken=mine&a=1", "?access_token={}&a=1"),
        ("?xaccess_token=1", "?xaccess_token=1&access_token={}"),
        ("?a=%c3%A4&b='()*!", "?a=%c3%A4&b='()*!&access_token={}"),
    ],
)
async def test_the_query_goes_on_byte_by_byte_but_for_the_token(
    broker: Proxied, query: str, sent: str
) -> None:
    assert (await broker.get(GET + query)).status == 200
    assert broker.wechat.seen[0].target == GET + sent.format(value(1))


async def test_headers_that_concern_one_hop_or_us_end_here(broker: Proxied) -> None:
    sent = {
        **ME,
        "X-Token-Broker-App": "main",
        "Authorization": "Bearer whatever",
        "Cookie": "a=b",
        "Connection": "keep-alive, X-Private",
        "X-Private": "1",
        "Keep-Alive": "timeout=5",
        "TE": "trailers",
        "Upgrade": "websocket",
        "X-Original-URL": "/cgi-bin/token",
        "X-HTTP-Method-Override": "DELETE",
        "X_Original_URL": "/cgi-bin/token",
        "Content_Length": "3",
        "Wechatmp-Signature": "abc",
        "User-Agent": "sdk/1",
        "Accept-Encoding": "br, gzip;q=0.5, zstd, deflate",
    }
    await broker.ask("GET", GET, headers=sent)
    (seen,) = broker.wechat.seen
    assert sorted((name.lower(), value) for name, value in seen.headers) == [
        ("accept", "*/*"),
        ("accept-encoding", "gzip;q=0.5, deflate"),
        ("host", f"127.0.0.1:{broker.wechat.port}"),
        ("user-agent", "sdk/1"),
        ("wechatmp-signature", "abc"),
    ]


@pytest.mark.parametrize("body", ["", "Content-Length: 3\r\n\r\nabc"])
async def test_no_header_is_added_but_what_http_needs(broker: Proxied, body: str) -> None:
    method = "POST" if body else "GET"
    head = f"{method} {GET} HTTP/1.1\r\nHost: localhost\r\nX-Token-Broker: 1\r\n"
    await broker.raw(f"{head}Connection: close\r\n{body or chr(13) + chr(10)}")
    (seen,) = broker.wechat.seen
    added = ["accept-encoding", *(["content-length"] if body else []), "host"]
    assert sorted(name.lower() for name, _ in seen.headers) == added
    assert seen.body.decode() == body[-3:]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_method_body_and_content_type_go_on(broker: Proxied, method: str) -> None:
    body = '{"名": "值"}'.encode()
    await broker.ask(method, GET, data=body, headers={**ME, "Content-Type": "text/xml"})
    (seen,) = broker.wechat.seen
    assert (seen.method, seen.body, seen.all("Content-Type"), seen.all("Content-Length")) == (
        method,
        body,
        ["text/xml"],
        [str(len(body))],
    )


async def test_a_body_of_unknown_length_is_sent_as_it_comes(broker: Proxied) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(300):
            yield bytes([number % 256]) * 1000

    await broker.ask("POST", GET, data=pieces(), headers=ME)
    (seen,) = broker.wechat.seen
    assert len(seen.body) == 300_000
    assert seen.all("Transfer-Encoding") == ["chunked"]


async def test_ten_megabytes_go_up_unchanged(broker: Proxied) -> None:
    body = bytes(range(256)) * 40_960
    answer = await broker.ask(
        "POST", "/cgi-bin/media/upload?type=image", data=io.BytesIO(body), headers=ME
    )
    assert await answer.json() == {"total": 3}
    (seen,) = broker.wechat.seen
    assert hashlib.sha256(seen.body).digest() == hashlib.sha256(body).digest()


async def test_a_packed_body_is_refused_since_aiohttp_would_unpack_it(broker: Proxied) -> None:
    packed = gzip.compress(b"{}")
    headers = {**ME, "Content-Encoding": "gzip", "Content-Length": str(len(packed))}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.http.port)
    writer.write(
        f"POST {GET} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{head}\r\n".encode()
        + packed
    )
    assert b'"errcode": 47001' in await reader.read()
    assert broker.wechat.seen == []
    writer.close()


async def test_who_expects_to_be_asked_for_its_body_is_asked_by_us(broker: Proxied) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.http.port)
    head = (
        f"POST {GET} HTTP/1.1\r\nHost: localhost\r\nX-Token-Broker: 1\r\nExpect:"
        " 100-continue\r\nContent-Length: 200000\r\n\r\n"
    )
    writer.write(head.encode())
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"x" * 200_000)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
    (seen,) = broker.wechat.seen
    assert (len(seen.body), seen.all("Expect")) == (200_000, [])
    writer.close()


async def test_calls_share_connections_and_each_is_sent_once(broker: Proxied) -> None:
    for _ in range(20):
        assert (await broker.get(GET)).status == 200
    assert (broker.wechat.connections, len(broker.wechat.seen)) == (1, 20)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_connection_that_drops_costs_an_errcode_and_no_second_request(
    broker: Proxied, method: str
) -> None:
    await broker.get(GET)
    broker.wechat.answers[GET] = raw(b"")
    assert await errcode(await broker.ask(method, GET, headers=ME)) == -1
    assert len(broker.wechat.seen) == 2
    assert broker.outcomes[-1] == ("main", "unreachable")


# --- the way down ---------------------------------------------------------------------------------


async def test_an_answer_comes_back_without_cookies_and_hops(broker: Proxied) -> None:
    headers = [
        "Set-Cookie: a=b",
        "Connection: keep-alive, X-Hop",
        "X-Hop: 1",
        "Keep-Alive: timeout=9",
        "X-Req: 7",
        "Alt-Svc: h3",
    ]
    broker.wechat.answers[GET] = says(
        {"total": 3}, *headers, "Content-Type: text/plain", "Content-disposition: attachment"
    )
    answer = await broker.get(GET)
    assert await answer.json(content_type=None) == {"total": 3}
    assert not {"Set-Cookie", "X-Hop", "Keep-Alive", "Alt-Svc"} & set(answer.headers)
    assert (
        answer.headers["X-Req"],
        answer.headers["Content-Type"],
        answer.headers["Content-disposition"],
    ) == (
        "7",
        "text/plain",
        "attachment",
    )


async def test_a_redirect_is_an_answer_and_does_not_carry_the_token_out(broker: Proxied) -> None:
    async def elsewhere(seen: Seen, *streams: Any) -> None:
        await says(
            b"", f"Location: http://127.0.0.1:1{seen.target}", "X-Other: 1", status="302 Found"
        )(seen, *streams)

    broker.wechat.answers[GET] = elsewhere
    answer = await broker.get(GET)
    assert (answer.status, answer.headers["X-Other"]) == (302, "1")
    assert "Location" not in answer.headers
    assert len(broker.wechat.seen) == 1


@pytest.mark.parametrize("status", ["301 Moved", "303 See Other", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize("path", [GET, "/sns/userinfo"])
async def test_no_redirect_is_followed(broker: Proxied, path: str, status: str) -> None:
    async with Hostile().serving() as elsewhere:
        location = f"Location: http://127.0.0.1:{elsewhere.port}/cgi-bin/user/get"
        broker.wechat.answers[path] = says(b"{}", location, status=status)
        target = f"{path}?access_token=of-a-user" if path != GET else path
        answer = await broker.get(target)
        assert (answer.status, len(broker.wechat.seen)) == (int(status[:3]), 1)
        assert elsewhere.connections == 0


@pytest.mark.parametrize("size", [100, 100_000])
async def test_packed_bytes_pass_as_they_are(broker: Proxied, size: int) -> None:
    packed = gzip.compress(
        json.dumps(
            {"x": [hashlib.sha256(bytes([n % 256])).hexdigest() for n in range(size // 10)]}
        ).encode()
    )
    broker.wechat.answers[GET] = says(
        packed, "Content-Encoding: gzip", "Content-Type: application/json"
    )
    answer = await broker.get(GET, **{"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"
    assert await answer.read() == packed


async def test_an_answer_of_unknown_length_passes_in_pieces(broker: Proxied) -> None:
    pieces = b"".join(
        b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [b"{", b'"total"', b":3", b"}"]
    )
    broker.wechat.answers[GET] = raw(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n",
        close=False,
    )
    assert await (await broker.get(GET)).json(content_type=None) == {"total": 3}
    broker.wechat.answers[GET] = raw(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 200_000)
    assert await (await broker.get(GET)).read() == b"x" * 200_000


async def test_head_is_answered_with_the_length_and_no_body(broker: Proxied) -> None:
    broker.wechat.answers[GET] = raw(
        b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n", close=False
    )
    answer = await broker.ask("HEAD", GET, headers=ME)
    assert (answer.status, answer.headers["Content-Length"], await answer.read()) == (
        200,
        "1234",
        b"",
    )
    assert (await broker.get("/cgi-bin/other")).status == 200
    assert broker.wechat.connections == 1


@pytest.mark.parametrize(
    "status", ["204 No Content", "304 Not Modified", "404 Not Found", "502 Bad Gateway"]
)
async def test_other_statuses_pass(broker: Proxied, status: str) -> None:
    broker.wechat.answers[GET] = raw(
        f"HTTP/1.1 {status}\r\n{'' if status[0] != '4' else 'Content-Length: 0'}\r\n\r\n".encode()
    )
    assert (await broker.get(GET)).status == int(status[:3])


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"x" * 100_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n186a0\r\n"
        + b"x" * 100_000
        + b"\r\n",
    ],
    ids=["length", "chunked"],
)
async def test_an_answer_that_ends_early_is_cut_and_not_taken_for_whole(
    broker: Proxied, said: bytes
) -> None:
    broker.wechat.answers[GET] = raw(said)
    async with asyncio.timeout(10):
        with pytest.raises(aiohttp.ClientError):
            await (await broker.get(GET)).read()
    assert broker.outcomes == [("main", "cut")]


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\x00\x01\x02",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
    ],
    ids=["nothing", "garbage", "upgrade", "short", "headers"],
)
async def test_what_is_no_answer_is_minus_one_and_says_nothing_of_the_url(
    broker: Proxied, said: bytes
) -> None:
    broker.wechat.answers[GET] = raw(said)
    answer = await broker.get(GET)
    assert await errcode(answer) == -1
    text = await answer.text()
    assert CANARY not in text
    assert "127.0.0.1" not in text


async def test_header_bytes_that_cannot_be_repeated_are_left_out(broker: Proxied) -> None:
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Name: \xc4\xe3\r\nX-Utf: \xe4\xbd\xa0\r\n\r\n{}"
    )
    broker.wechat.answers[GET] = raw(head, close=False)
    answer = await broker.get(GET)
    assert (answer.status, "X-Name" in answer.headers, answer.headers["X-Utf"]) == (
        200,
        False,
        "你",
    )


# --- a token that is refused ----------------------------------------------------------------------


@pytest.mark.parametrize("errcode_", ["40001", '"40001"', "40014", "42001", "40001.0"])
async def test_a_dead_token_is_replaced_on_wechats_word_and_the_call_repeated_once(
    broker: Proxied, errcode_: str
) -> None:
    broker.bench.clock.pass_(3000)
    broker.wechat.dead, broker.wechat.refusal = (
        {value(1)},
        b'{"errcode":%b,"errmsg":"no"}' % errcode_.encode(),
    )
    broker.bench.wechat.verdicts.append(Verdict.DEAD)
    answer = await broker.ask("POST", GET, data=b"body", headers=ME)
    assert await answer.json() == {"total": 3}
    assert [(seen.token, seen.body) for seen in broker.wechat.seen] == [
        (value(1), b"body"),
        (value(2), b"body"),
    ]
    assert (broker.bench.wechat.calls, broker.bench.wechat.checks) == (2, 1)
    assert broker.outcomes == [("main", "retried")]


async def test_a_refusal_that_was_false_costs_a_check_and_is_repeated_once(broker: Proxied) -> None:
    broker.bench.clock.pass_(3000)
    broker.wechat.dead = {value(1)}
    assert (await (await broker.get(GET)).json(content_type=None))["errcode"] == 40001
    assert [seen.token for seen in broker.wechat.seen] == [value(1)] * 2
    assert (broker.bench.wechat.calls, broker.bench.wechat.checks) == (1, 1)


async def test_a_token_that_stays_dead_is_bounded(broker: Proxied) -> None:
    broker.bench.clock.pass_(3000)
    broker.wechat.dead = {value(number) for number in range(1000)}
    broker.bench.wechat.verdicts.extend([Verdict.DEAD] * 1000)
    for _ in range(100):
        broker.bench.clock.pass_(6)  # never so near to the next call that one would wait for it
        answer = await broker.get(GET)
        assert (await answer.json(content_type=None))["errcode"] in {40001, -1}
    assert len(broker.wechat.seen) <= 200
    assert broker.bench.wechat.calls <= 1 + 600 / broker.bench.policy.min_gap + 1


async def test_a_call_is_sent_twice_at_most_though_each_new_token_is_refused(
    broker: Proxied,
) -> None:
    broker.bench.clock.pass_(3000)
    broker.wechat.dead = {value(number) for number in range(10)}
    broker.bench.wechat.verdicts.extend([Verdict.DEAD] * 10)
    answer = await broker.get(GET)
    assert (await answer.json(content_type=None))["errcode"] == 40001
    assert [seen.token for seen in broker.wechat.seen] == [value(1), value(2)]


async def test_a_packed_refusal_is_found_too(broker: Proxied) -> None:
    broker.bench.clock.pass_(3000)
    broker.bench.wechat.verdicts.append(Verdict.DEAD)

    async def packed(seen: Seen, *streams: Any) -> None:
        body = broker.wechat.refusal if seen.token == value(1) else b'{"total":3}'
        await says(gzip.compress(body), "Content-Encoding: gzip")(seen, *streams)

    broker.wechat.answers[GET] = packed
    answer = await broker.get(GET, **{"Accept-Encoding": "gzip"})
    assert gzip.decompress(await answer.read()) == b'{"total":3}'


@pytest.mark.parametrize(
    "body",
    [
        b'{"errcode":45009,"errmsg":"40001"}',
        b'{"a":{"errcode":40001}}',
        b'[{"errcode":40001}]',
        b'{"errcode":40001' + b" " * 9000 + b"}",
        b"40001",
        b'\x89PNG{"errcode":40001}',
    ],
)
async def test_what_is_no_refusal_of_the_token_is_passed_on_and_not_reported(
    broker: Proxied, body: bytes
) -> None:
    broker.bench.clock.pass_(3000)
    broker.wechat.answers[GET] = says(body)
    assert await (await broker.get(GET)).read() == body
    assert (len(broker.wechat.seen), broker.bench.wechat.checks) == (1, 0)


async def test_a_body_too_large_to_keep_is_reported_and_the_refusal_passed_on(
    bench: Bench, wechat: Hostile
) -> None:
    async with Proxied(bench, wechat).serving(max_retry_body=1000) as broker:
        await broker.look()
        bench.clock.pass_(3000)
        wechat.dead = {value(1)}
        bench.wechat.verdicts.append(Verdict.DEAD)
        answer = await broker.ask("POST", GET, data=b"x" * 1001, headers=ME)
        assert (await answer.json(content_type=None))["errcode"] == 40001
        assert (len(wechat.seen), bench.wechat.calls) == (1, 2)
        again = await broker.ask("POST", GET, data=b"x" * 1001, headers=ME)
        assert await again.json() == {"total": 3}


async def test_a_body_is_sent_again_whole_though_wechat_answered_in_the_middle_of_it(
    broker: Proxied,
) -> None:
    broker.bench.clock.pass_(3000)
    broker.bench.wechat.verdicts.append(Verdict.DEAD)
    half, body = asyncio.Event(), bytes(range(250)) * 2000

    async def early(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if seen.token == value(1):
            await says(broker.wechat.refusal)(seen, reader, writer)
            half.set()
            return
        seen.body = await reader.readexactly(len(body))
        await GOOD(seen, reader, writer)

    async def pieces() -> AsyncIterator[bytes]:
        yield body[:100_000]
        await half.wait()
        await until(lambda: broker.bench.wechat.checks)
        yield body[100_000:]

    broker.wechat.reads_bodies = False
    broker.wechat.answers[GET] = early
    answer = await broker.ask(
        "POST", GET, data=pieces(), headers={**ME, "Content-Length": str(len(body))}
    )
    assert await answer.json() == {"total": 3}
    assert broker.wechat.seen[1].body == body


async def test_fifty_at_a_cold_start_are_one_token_call(bench: Bench, wechat: Hostile) -> None:
    async with Proxied(bench, wechat).serving() as broker:
        answers = await asyncio.gather(*(broker.get(GET) for _ in range(50)))
        assert [await answer.json() for answer in answers] == [{"total": 3}] * 50
        assert bench.wechat.calls == 1


async def test_without_a_token_it_is_minus_one_with_the_reason(
    bench: Bench, wechat: Hostile
) -> None:
    bench.wechat.answers.append(
        Failure(Kind.TRANSIENT, FailureCode.HTTP_STATUS, facts={"status": "502"})
    )
    async with Proxied(bench, wechat).serving() as broker:
        answer = await broker.get(GET)
        assert await errcode(answer) == -1
        assert "HTTP 502" in await answer.text()
        assert (wechat.seen, broker.outcomes) == ([], [("main", "no-token")])


# --- bounds ---------------------------------------------------------------------------------------


async def test_a_client_has_its_rate(bench: Bench, wechat: Hostile) -> None:
    keys = {
        "a" * 20: Client("a", frozenset({"proxy"})),
        "b" * 20: Client("b", frozenset({"proxy"})),
    }
    async with Proxied(bench, wechat).serving(keys, rate=2, burst=5) as broker:
        await broker.look()

        async def codes(key: str, count: int) -> list[int | None]:
            answers = [
                await broker.ask("GET", GET, headers={"Authorization": f"Bearer {key}"})
                for _ in range(count)
            ]
            return [(await answer.json()).get("errcode") for answer in answers]

        assert await codes("a" * 20, 7) == [None] * 5 + [45011] * 2
        assert await codes("b" * 20, 1) == [None]
        bench.clock.pass_(1)
        assert await codes("a" * 20, 3) == [None] * 2 + [45011]
        assert broker.outcomes.count(("main", "too-fast")) == 3


async def test_an_app_has_so_many_calls_under_way(bench: Bench, wechat: Hostile) -> None:
    gate = asyncio.Event()

    async def slow(*call: Any) -> None:
        await gate.wait()
        await GOOD(*call)

    wechat.answers[GET] = slow
    async with Proxied(bench, wechat).serving(max_concurrency=3) as broker:
        await broker.look()
        asking = [asyncio.create_task(broker.get(GET)) for _ in range(3)]
        await until(lambda: len(wechat.seen) == 3)
        assert await errcode(await broker.get(GET)) == 45011
        assert broker.outcomes == [("main", "busy")]
        gate.set()
        assert [(await one).status for one in asking] == [200] * 3
        assert (await broker.get(GET)).status == 200


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_has_a_bound(
    bench: Bench,
    wechat: Hostile,
    declared: bool,  # noqa: FBT001
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x" * 1001

    async with Proxied(bench, wechat).serving(max_body=1000) as broker:
        await broker.look()
        body: Any = b"x" * 1001 if declared else pieces()
        answer = await broker.ask("POST", GET, data=body, headers=ME)
        assert await errcode(answer) == 47001
        assert "1000 bytes" in await answer.text()
        assert all(len(seen.body) <= 1000 for seen in wechat.seen)
        assert broker.outcomes == [("main", "too-large")]


async def test_silence_of_wechats_ends_at_the_deadline(bench: Bench, wechat: Hostile) -> None:
    wechat.answers[GET] = lambda *_: asyncio.Event().wait()  # type: ignore[assignment]
    async with Proxied(bench, wechat).serving(idle_timeout=0.2) as broker:
        await broker.look()
        async with asyncio.timeout(15):
            assert await errcode(await broker.get(GET)) == -1


async def test_who_hangs_up_takes_the_call_with_it(broker: Proxied) -> None:
    async def endless(
        _seen: Seen, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    broker.wechat.answers[GET] = endless
    answer = await broker.get(GET)
    await answer.content.readexactly(100_000)
    answer.close()
    async with asyncio.timeout(10):
        await broker.wechat.hung_up.wait()
    await until(lambda: broker.outcomes in ([("main", "cut")], [("main", "abandoned")]))


# --- the next token -------------------------------------------------------------------------------


async def test_a_call_in_the_gap_between_two_wecom_tokens_waits_for_the_next(
    bench: Bench, wechat: Hostile
) -> None:
    async with Proxied(bench, wechat).serving(accounts=[WECOM]) as broker:
        await broker.look()
        bench.clock.pass_(7199)  # the token is not served any more, and not replaced before 7202
        asking = asyncio.create_task(broker.get(GET))
        await until(lambda: broker.limits.under_way("main"))
        assert (broker.outcomes, wechat.seen) == ([], [])
        bench.clock.pass_(3)
        await broker.look()
        assert await (await asking).json() == {"total": 3}
        assert [seen.token for seen in wechat.seen] == [value(2)]


async def test_a_call_whose_client_lost_its_key_while_it_waited_is_not_sent(
    bench: Bench, wechat: Hostile
) -> None:
    clients = {"a" * 20: Client("a", frozenset({"proxy"}))}
    async with Proxied(bench, wechat).serving(clients, accounts=[WECOM]) as broker:
        await broker.look()
        bench.clock.pass_(7199)
        headers = {"Authorization": f"Bearer {'a' * 20}"}
        asking = asyncio.create_task(broker.ask("GET", GET, headers=headers))
        await until(lambda: broker.limits.under_way("main"))
        broker.gate.admit(digests({"b" * 20: Client("b", frozenset({"proxy"}))}), [])
        bench.clock.pass_(3)
        await broker.look()
        assert b"total" not in await (await asking).read()
        assert wechat.seen == []


async def test_a_call_whose_token_is_refused_just_before_its_replacement_waits_and_is_sent_again(
    broker: Proxied,
) -> None:
    broker.bench.clock.pass_(27)  # another call is allowed 30 s after the last
    broker.wechat.dead = {value(1)}
    broker.bench.wechat.verdicts.append(Verdict.DEAD)
    asking = asyncio.create_task(broker.ask("POST", GET, data=b"body", headers=ME))
    await until(lambda: broker.bench.wechat.checks)
    await broker.look()
    assert (broker.outcomes, broker.bench.wechat.calls) == ([], 1)
    broker.bench.clock.pass_(3)
    await broker.look()
    assert await (await asking).json() == {"total": 3}
    assert [(seen.token, seen.body) for seen in broker.wechat.seen] == [
        (value(1), b"body"),
        (value(2), b"body"),
    ]
    assert broker.outcomes == [("main", "retried")]


async def test_a_call_refused_in_a_wecom_tokens_last_seconds_waits_for_the_next_unverified(
    bench: Bench, wechat: Hostile
) -> None:
    async with Proxied(bench, wechat).serving(accounts=[WECOM]) as broker:
        await broker.look()
        bench.clock.pass_(7198)
        bench.wechat.verdicts.append(Verdict.UNKNOWN)
        wechat.dead = {value(1)}
        asking = asyncio.create_task(broker.get(GET))
        await until(lambda: bench.wechat.checks)
        bench.clock.pass_(4)
        await broker.look()
        assert await (await asking).json() == {"total": 3}
        assert broker.outcomes == [("main", "retried")]


async def test_a_refused_call_does_not_wait_where_no_replacement_is_near(broker: Proxied) -> None:
    broker.bench.clock.pass_(11)
    broker.wechat.dead = {value(1)}
    broker.bench.wechat.verdicts.append(Verdict.DEAD)
    assert (await (await broker.get(GET)).json(content_type=None))["errcode"] == 40001
    assert broker.outcomes == [("main", "token-refused")]


async def test_a_refused_body_that_is_not_kept_does_not_wait(bench: Bench, wechat: Hostile) -> None:
    async with Proxied(bench, wechat).serving(max_retry_body=1000) as broker:
        await broker.look()
        bench.clock.pass_(27)
        wechat.dead = {value(1)}
        bench.wechat.verdicts.append(Verdict.DEAD)
        answer = await broker.ask("POST", GET, data=b"x" * 1001, headers=ME)
        assert (await answer.json(content_type=None))["errcode"] == 40001
        assert len(wechat.seen) == 1


async def test_a_refusal_that_was_read_replaces_the_token_where_wechat_gives_no_verdict(
    broker: Proxied,
) -> None:
    broker.bench.clock.pass_(3000)
    broker.wechat.dead = {value(1)}
    broker.bench.wechat.verdicts.extend([Verdict.UNDECIDED] * 2)
    assert await (await broker.get(GET)).json() == {"total": 3}
    assert [seen.token for seen in broker.wechat.seen] == [value(1), value(2)]
    assert broker.outcomes == [("main", "retried")]
    assert [row["lane"] for row in await broker.bench.rows()] == ["scheduled", "report"]
