"""Whoever waits while rights change is judged anew before any answer."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from broker.web.gate import Client
from tests.harness.doubles import APPID, CANARY, Bench
from tests.harness.peers import LONG, Daemon, Peer, daemon_on, held, request, rotate, status

KEY, OTHER = f"{CANARY}-key-of-orders", f"{CANARY}-key-of-shop"
EVERY = frozenset({"read", "report", "login", "proxy", "admin"})
BEARER = f"Authorization: Bearer {KEY}"


def keys(**clients: Client) -> dict[str, Client]:
    """Clients by the digest of their key."""
    named = {"orders": KEY, "shop": OTHER}
    return {hashlib.sha256(named[name].encode()).hexdigest(): one for name, one in clients.items()}


BOTH = keys(orders=Client("orders", EVERY), shop=Client("shop", EVERY))
AFTER = {
    "no key": (keys(shop=Client("shop", EVERY)), 401),
    "no scope": (keys(orders=Client("orders", frozenset({"login"}))), 403),
    "no app": (keys(orders=Client("orders", EVERY, frozenset({"shop"}))), 403),
}


def watching(daemon: Daemon, *more: str, wait: float = LONG) -> bytes:
    tag = f'If-None-Match: "{held(daemon)}"'
    return request(f"/v1/tokens/main?wait={wait}", tag, BEARER, *more)


def posted(path: str, body: dict[str, object]) -> bytes:
    text = json.dumps(body)
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        BEARER,
        "Content-Type: application/json",
        f"Content-Length: {len(text)}",
        "",
        text,
    ]
    return "\r\n".join(lines).encode()


async def waits(daemon: Daemon, chunk: bytes, number: int = 1) -> Peer:
    """Return a peer whose request waits in a handler of aiohttp."""
    peer = await daemon.peer()
    peer.writer.write(chunk)
    async with asyncio.timeout(10):
        while daemon.cache.connections.waits.count("orders") < number:
            await asyncio.sleep(0)
    return peer


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("header", ["X-Note: -", "Connection: close"])
async def test_who_waits_for_the_next_version_is_told_at_the_reload(
    bench: Bench, after: str, header: str
) -> None:
    async with daemon_on(bench, BOTH) as daemon:
        peers = [await waits(daemon, watching(daemon, header), n + 1) for n in range(3)]
        admitted, refusal = AFTER[after]
        daemon.gate.admit(admitted, [])
        assert {status(await peer.answer()) for peer in peers} == {refusal}


async def test_who_waits_and_may_go_on_waits_on(bench: Bench) -> None:
    async with daemon_on(bench, BOTH) as daemon:
        peer = await waits(daemon, watching(daemon, "Connection: close"))
        daemon.gate.admit(keys(orders=Client("orders", frozenset({"read"}))), [])
        await rotate(bench, daemon)
        answer = await peer.answer()
        assert status(answer) == 200
        assert CANARY.encode() in answer


async def test_a_name_that_is_ours_no_more_is_refused_to_who_waits(bench: Bench) -> None:
    async with daemon_on(bench, BOTH) as daemon:
        daemon.gate.admit(BOTH, ["broker.example"])
        chunk = watching(daemon, "Connection: close").replace(b"localhost", b"broker.example")
        peer = await waits(daemon, chunk)
        daemon.gate.admit(BOTH, [])
        assert status(await peer.answer()) == 403


@pytest.mark.parametrize("after", AFTER)
async def test_who_waits_for_a_ticket_is_told_at_the_reload(bench: Bench, after: str) -> None:
    async with daemon_on(bench, BOTH) as daemon:
        path = "/v1/tickets/main/jsapi"
        answer = await (await daemon.peer()).ask(request(path, BEARER))
        tag = answer.partition(b"Etag: ")[2].partition(b"\r\n")[0].decode()
        peer = await waits(daemon, request(f"{path}?wait={LONG}", f"If-None-Match: {tag}", BEARER))
        admitted, refusal = AFTER[after]
        daemon.gate.admit(admitted, [])
        assert status(await peer.answer()) == refusal


def asked(path: str) -> Callable[[Daemon], bytes]:
    return lambda _: request(path, BEARER)


def reported(daemon: Daemon) -> bytes:
    return posted("/v1/tokens/main/report", {"version": held(daemon)})


COMPAT = f"/cgi-bin/token?grant_type=client_credential&appid={APPID}&secret={KEY}"
SLOW: dict[str, Callable[[Daemon], bytes]] = {
    "token": asked("/v1/tokens/main"),
    "token, waiting": asked(f"/v1/tokens/main?wait={LONG}"),
    "token with more left": asked("/v1/tokens/main?min_ttl=7000"),
    "report": reported,
    "refresh": lambda _: posted("/v1/tokens/main/refresh", {}),
    "ticket": asked("/v1/tickets/main/jsapi"),
    "signature": lambda _: posted("/v1/tickets/main/jsapi/signature", {"url": "https://a.example"}),
    "compat": asked(COMPAT),
    "compat, forced": asked(f"{COMPAT}&force_refresh=true"),
}


@pytest.mark.parametrize("what", SLOW)
async def test_who_waits_for_wechat_gets_nothing_that_was_revoked_meanwhile(
    bench: Bench, what: str
) -> None:
    async with daemon_on(bench, BOTH) as daemon:
        if "ticket" not in what and "signature" not in what:
            bench.clock.pass_(7300)  # there is no token, so all wait for the next one
        if what in {"report", "compat, forced"}:
            await rotate(bench, daemon)
            bench.clock.pass_(100)
        bench.wechat.arrived.clear()
        bench.wechat.gate.clear()
        peer = await daemon.peer()
        peer.writer.write(SLOW[what](daemon))
        await asyncio.wait_for(bench.wechat.arrived.wait(), 10)
        daemon.gate.admit(AFTER["no key"][0], [])
        bench.wechat.gate.set()
        answer = await peer.answer()
        assert CANARY.encode() not in answer
        body: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        if "compat" in what:
            assert (status(answer), body["errcode"]) == (200, 40125)
        else:
            assert (status(answer), body["code"]) == (401, "invalid-key")


async def test_a_kept_answer_ends_with_the_rights(bench: Bench) -> None:
    async with daemon_on(bench, BOTH) as daemon:
        peer, chunk = await daemon.peer(), request("/v1/tokens/main", BEARER)
        assert status(await peer.ask(chunk)) == status(await peer.ask(chunk)) == 200
        daemon.gate.admit(AFTER["no key"][0], [])
        assert status(await peer.ask(chunk)) == 401
