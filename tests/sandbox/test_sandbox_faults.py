"""The sandbox's faults, each once, as a client sees it on the wire."""

import asyncio
import gzip
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker.sandbox import faults, wire
from tests.harness.sandbox_bench import APP, SandboxBench

TOKEN = f"/cgi-bin/token?grant_type=client_credential&appid={APP}&secret=s3cret"


@asynccontextmanager
async def asking(bench: SandboxBench, path: str = TOKEN) -> AsyncIterator[asyncio.StreamReader]:
    """Ask over a bare socket, which repeats nothing by itself."""
    reader, writer = await asyncio.open_connection(bench.client.host, bench.client.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: sandbox\r\n\r\n".encode())
    try:
        async with asyncio.timeout(5):
            yield reader
    finally:
        writer.close()


async def order(bench: SandboxBench, kind: str, **fields: object) -> None:
    await bench.post("/sandbox/faults", {"kind": kind, **fields})


async def outcomes(bench: SandboxBench) -> list[tuple[int | str | None, bool]]:
    return [(call["outcome"], call["minted"]) for call in await bench.calls()]


def test_every_kind_in_the_catalogue_can_be_performed() -> None:
    assert set(faults.KINDS) == set(wire._BENT) | set(wire._LOST)


async def test_a_fault_lasts_as_many_calls_as_ordered_and_they_come_in_order(
    bench: SandboxBench,
) -> None:
    await order(bench, "errcode", errcode=-1, times=2)
    await order(bench, "errcode", errcode=45011)
    answers = [await bench.classic() for _ in range(4)]
    assert [answer.get("errcode") for answer in answers] == [-1, -1, 45011, None]


async def test_times_null_lasts_until_deleted(bench: SandboxBench) -> None:
    await order(bench, "errcode", errcode=-1, times=None)
    assert [(await bench.classic())["errcode"] for _ in range(5)] == [-1] * 5
    await bench.client.delete("/sandbox/faults")
    assert "access_token" in await bench.classic()


async def test_a_fault_concerns_its_appid_and_by_default_the_token_endpoints_only(
    bench: SandboxBench,
) -> None:
    token = await bench.classic()
    await order(bench, "errcode", errcode=-1, appid="wx_other", times=None)
    assert await bench.errcode(token) == 0
    assert "access_token" in await bench.stable()
    assert (await bench.stable(appid="wx_other"))["errcode"] == -1
    assert (await bench.classic("wx_other"))["errcode"] == -1


async def test_a_data_path_can_answer_a_false_40001(bench: SandboxBench) -> None:
    token = await bench.classic()
    await order(bench, "errcode", errcode=40001, path="/cgi-bin/get_api_domain_ip", appid=APP)
    assert [await bench.errcode(token), await bench.errcode(token)] == [40001, 0]


async def test_errcode_says_wechats_words_with_the_ip_for_40164_and_counts_the_call(
    bench: SandboxBench,
) -> None:
    await order(bench, "errcode", errcode=40164)
    await order(bench, "errcode", errcode=89507, errmsg="come back in an hour")
    words = "invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist rid: "
    assert (await bench.classic())["errmsg"].startswith(words)
    assert (await bench.classic())["errmsg"].startswith("come back in an hour rid: ")
    assert await outcomes(bench) == [(40164, False), (89507, False)]
    assert (await bench.account())["quota_used"]["token"] == 2


async def test_status_answers_any_status_body_and_headers(bench: SandboxBench) -> None:
    await order(bench, "status", status=503, body="busy", headers={"Retry-After": "120"})
    await order(bench, "status", status=302, headers={"Location": "http://127.0.0.1:1/"})
    busy = await bench.client.get(TOKEN)
    assert (busy.status, busy.headers["Retry-After"], await busy.text()) == (503, "120", "busy")
    moved = await bench.client.get(TOKEN, allow_redirects=False)
    assert (moved.status, moved.headers["Location"]) == (302, "http://127.0.0.1:1/")
    assert await outcomes(bench) == [("status", False)] * 2


async def test_silence_ends_when_its_seconds_are_over(bench: SandboxBench) -> None:
    await order(bench, "silence", seconds=0.01)
    async with asking(bench) as reader:
        assert await reader.read() == b""
    assert await outcomes(bench) == [("silence", False)]


async def test_silence_lasts_until_the_peer_hangs_up(bench: SandboxBench) -> None:
    await order(bench, "silence")
    async with asking(bench):
        while not await bench.calls():
            pass
        assert bench.state.calls.traffic(APP).in_flight == 1
    await idle(bench)
    assert await outcomes(bench) == [("silence", False)]


async def test_drop_closes_without_an_answer_and_mints_nothing(bench: SandboxBench) -> None:
    await order(bench, "drop")
    async with asking(bench) as reader:
        assert await reader.read() == b""
    assert await outcomes(bench) == [("drop", False)]
    account = await bench.account()
    assert (account["max_in_flight"], account["quota_used"]["token"], account["live_tokens"]) == (
        1,
        0,
        0,
    )


async def test_a_lost_answer_has_minted_counted_and_pushed_the_old_token_out(
    bench: SandboxBench,
) -> None:
    old = await bench.classic()
    await order(bench, "drop", mint=True)
    async with asking(bench) as reader:
        assert await reader.read() == b""
    assert await outcomes(bench) == [(0, True), ("drop", True)]
    assert (await bench.account())["quota_used"]["token"] == 2
    bench.time += 300
    assert await bench.errcode(old) == 40001


async def test_reset_is_a_reset(bench: SandboxBench) -> None:
    await order(bench, "reset")
    async with asking(bench) as reader:
        with pytest.raises(ConnectionResetError):
            await reader.read()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, b"<html>busy</html>"),
        ({"body": ""}, b""),
        ({"body": "null"}, b"null"),
        ({"base64": "//4A"}, b"\xff\xfe\x00"),
    ],
)
async def test_garbage_is_http_200_with_any_bytes(
    bench: SandboxBench, fields: dict[str, str], expected: bytes
) -> None:
    await order(bench, "garbage", content_type="text/plain", **fields)
    answer = await bench.client.get(TOKEN)
    assert (answer.status, answer.headers["Content-Type"], await answer.read()) == (
        200,
        "text/plain",
        expected,
    )


async def test_drip_sends_the_true_answer_byte_by_byte(bench: SandboxBench) -> None:
    await order(bench, "drip", interval=0, mint=True)
    async with asking(bench) as reader:
        assert await reader.read(1) == b"H"
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"TTP/1.1 200 OK\r\n")
    assert "access_token" in json.loads(body)
    assert await outcomes(bench) == [("drip", True)]


async def test_a_drip_nobody_waits_for_ends(bench: SandboxBench) -> None:
    await order(bench, "drip", interval=0.001)
    async with asking(bench) as reader:
        assert await reader.read(1) == b"H"
    await idle(bench)


async def idle(bench: SandboxBench) -> None:
    """Wait until no token call is in flight: the sandbox has noticed that we left."""
    async with asyncio.timeout(5):
        while bench.state.calls.traffic(APP).in_flight:
            await asyncio.sleep(0)


@pytest.mark.parametrize(("kind", "ended"), [("endless_headers", False), ("endless_body", True)])
async def test_headers_or_a_body_never_end_until_the_peer_hangs_up(
    bench: SandboxBench, kind: str, *, ended: bool
) -> None:
    await order(bench, kind)
    async with asking(bench) as reader:
        received = await reader.readexactly(300_000)
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert (b"\r\n\r\n" in received) is ended
    await idle(bench)


async def test_an_endless_body_waits_for_a_slow_reader_instead_of_filling_memory(
    bench: SandboxBench,
) -> None:
    await order(bench, "endless_body")
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.setblocking(False)  # noqa: FBT003 - the standard library's
        loop = asyncio.get_running_loop()
        await loop.sock_connect(peer, (bench.client.host, bench.client.port))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await loop.sock_sendall(peer, f"GET {TOKEN} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert await loop.sock_recv(peer, 4) == b"HTTP"
        for _ in range(2000):
            await asyncio.sleep(0)
        assert buffered(bench) < 1_000_000
    await idle(bench)


def buffered(bench: SandboxBench) -> int:
    """Count the bytes that the sandbox's sockets still hold in user space."""
    runner = bench.client.server.runner
    assert runner is not None
    assert runner.server is not None
    return sum(
        c.transport.get_write_buffer_size() for c in runner.server.connections if c.transport
    )


async def test_a_gzip_bomb_is_48_kb_that_inflate_to_50_mb(bench: SandboxBench) -> None:
    await order(bench, "gzip_bomb")
    async with asking(bench) as reader:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert "Content-Encoding: gzip" in head
        packed = await reader.readexactly(int(head.split("Content-Length: ")[1].split("\r")[0]))
    assert 40_000 < len(packed) < 60_000
    assert len(gzip.decompress(packed)) > 50_000_000


async def test_slow_gives_the_true_answer_which_was_made_before_the_wait(
    bench: SandboxBench,
) -> None:
    await order(bench, "slow", seconds=0.01)
    assert await bench.errcode(await bench.classic()) == 0
    await order(bench, "slow", seconds=60)
    async with asking(bench):
        while len(await bench.calls()) < 2:
            pass
        assert await outcomes(bench) == [("slow", True)] * 2
    await idle(bench)


async def test_same_token_repeats_it_with_the_remaining_seconds(bench: SandboxBench) -> None:
    first = await bench.classic()
    bench.time += 100
    await order(bench, "same_token")
    assert await bench.classic() == first | {"expires_in": 7100}
    assert (await outcomes(bench))[1] == ("same_token", False)
    assert (await bench.classic())["access_token"] != first["access_token"]


async def test_same_token_stops_even_a_forced_or_a_due_rotation(bench: SandboxBench) -> None:
    first = await bench.stable()
    await order(bench, "same_token", times=2)
    assert await bench.stable(force=True) == first
    bench.time += 7100
    assert await bench.stable() == first | {"expires_in": 100}
    assert (await bench.stable())["access_token"] != first["access_token"]


async def test_answer_changes_values_of_the_true_answer_and_null_removes_a_key(
    bench: SandboxBench,
) -> None:
    await order(bench, "answer", answer={"expires_in": "7200", "access_token": None, "extra": 1})
    assert await bench.classic() == {"expires_in": "7200", "extra": 1}
    await order(bench, "answer", answer={"count": -1}, path="/cgi-bin/user/get")
    token = (await bench.classic())["access_token"]
    assert (await bench.get("/cgi-bin/user/get", access_token=token))["count"] == -1


async def test_a_fault_on_an_upload_leaves_the_body_unread(bench: SandboxBench) -> None:
    token = (await bench.classic())["access_token"]
    await order(bench, "status", status=502, path="/cgi-bin/media/upload")
    path = f"/cgi-bin/media/upload?access_token={token}"
    assert (await bench.client.post(path, data=b"x" * 1_000_000)).status == 502
    assert (await bench.get("/sandbox"))["media"] == {}
