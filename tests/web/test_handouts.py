"""Which client was handed which version, and who still holds an old one, as asked after a leak."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientResponse

from broker.core.handouts import Handout
from broker.core.ports import StoreError
from broker.web.gate import Client, Gate
from broker.web.handed import Handed
from broker.web.handouts import MOST_PENDING, PRUNE_S, Handouts
from tests.harness import peers as polls
from tests.harness.api import Daemon
from tests.harness.doubles import ACCOUNT, APPID, CANARY, Bench
from tests.harness.peers import ASK, KEY, Peer, daemon_on, request, two_keys
from tests.harness.peers import Daemon as WholeDaemon

DAY = 86400.0
KEYS = {"orders": f"{CANARY}-orders", "ops": f"{CANARY}-ops"}


@pytest.fixture
async def daemon(bench: Bench) -> AsyncIterator[Daemon]:
    daemon = Daemon(bench)
    read = frozenset({"read", "report"})
    clients = [Client("orders", read), Client("ops", read | {"admin"})]
    keys = {hashlib.sha256(KEYS[client.name].encode()).hexdigest(): client for client in clients}
    await daemon.start(Gate(keys, []), drop_in=True)
    await daemon.look()
    yield daemon
    await daemon.http.close()


@pytest.fixture
async def whole(bench: Bench) -> AsyncIterator[WholeDaemon]:
    """The application on real sockets, beside the one that only this file has."""
    async with daemon_on(bench) as running:
        yield running


async def code(answer: ClientResponse) -> tuple[int, str]:
    return answer.status, (await answer.json())["code"]


def as_(client: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[client]}"}


async def handouts(daemon: Daemon) -> list[dict[str, Any]]:
    answer = await daemon.get("/v1/handouts/main", **as_("ops"))
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "no-store"
    text = await answer.text()
    assert CANARY not in text
    body = json.loads(text)
    assert (body["app"], body["appid"], body["kept_days"]) == ("main", APPID, 30)
    rows: list[dict[str, Any]] = body["handouts"]
    return rows


async def rotated(daemon: Daemon) -> str:
    daemon.bench.clock.pass_(30)
    keeper = daemon.registry.find("main")
    assert keeper is not None
    await keeper.refresh(5)
    return keeper.credential.version or ""


async def test_each_client_and_version_has_a_first_a_last_and_a_number(daemon: Daemon) -> None:
    for _ in range(3):
        version = (await (await daemon.get("/v1/tokens/main", **as_("orders"))).json())["version"]
        daemon.bench.clock.pass_(10)
    await daemon.get("/v1/tokens/main", **as_("ops"))
    assert await handouts(daemon) == [
        {
            "client": "ops",
            "version": version,
            "current": True,
            "count": 1,
            "first": "2026-09-21T14:13:50Z",
            "last": "2026-09-21T14:13:50Z",
            "held": 0,
            "last_held": None,
        },
        {
            "client": "orders",
            "version": version,
            "current": True,
            "count": 3,
            "first": "2026-09-21T14:13:20Z",
            "last": "2026-09-21T14:13:40Z",
            "held": 0,
            "last_held": None,
        },
    ]


async def test_who_asks_with_an_old_version_is_seen_to_hold_it(daemon: Daemon) -> None:
    old = (await (await daemon.get("/v1/tokens/main", **as_("orders"))).json())["version"]
    new = await rotated(daemon)
    await daemon.get("/v1/tokens/main", **as_("orders"), **{"If-None-Match": f'"{old}"'})
    await daemon.post("/v1/tokens/main/report", {"version": old}, **as_("orders"))
    rows = {row["version"]: row for row in await handouts(daemon) if row["client"] == "orders"}
    assert (rows[old]["current"], rows[old]["count"], rows[old]["held"]) == (False, 1, 2)
    assert rows[old]["last_held"] == "2026-09-21T14:13:50Z"
    assert (rows[new]["current"], rows[new]["count"], rows[new]["held"]) == (True, 2, 0)


async def test_an_sdk_on_wechats_own_path_is_counted_by_its_key(daemon: Daemon) -> None:
    query = f"grant_type=client_credential&appid={APPID}&secret={KEYS['orders']}"
    assert (await (await daemon.http.get(f"/cgi-bin/token?{query}")).json())["expires_in"]
    (row,) = await handouts(daemon)
    assert (row["client"], row["count"]) == ("orders", 1)


async def test_only_an_admin_may_look(daemon: Daemon) -> None:
    answer = await daemon.get("/v1/handouts/main", **as_("orders"))
    assert await code(answer) == (403, "insufficient-scope")
    assert await code(await daemon.get("/v1/handouts/none", **as_("ops"))) == (
        404,
        "unknown-app",
    )
    assert (await daemon.get("/v1/handouts/main?limit=5", **as_("ops"))).status == 400


@pytest.mark.parametrize("tag", ["*", '"x"', f'"{CANARY}-{"9" * 30}"', '"' + "a" * 4000 + '-1"'])
async def test_what_is_no_version_is_not_kept(daemon: Daemon, tag: str) -> None:
    await daemon.get("/v1/tokens/main", **as_("orders"), **{"If-None-Match": tag})
    (keeper,) = daemon.registry
    named = [] if tag == "*" else [keeper.credential.version]
    assert [row["version"] for row in await handouts(daemon)] == named


async def test_a_store_that_refuses_is_said_and_nothing_is_lost(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await daemon.bench.open()

    async def refuse(*_: object) -> None:
        raise StoreError("the disk is full")

    await daemon.get("/v1/tokens/main", **as_("orders"))
    with monkeypatch.context() as broken:
        broken.setattr(store, "add_handouts", refuse)
        answer = await daemon.get("/v1/handouts/main", **as_("ops"))
        assert await code(answer) == (503, "store-unavailable")
        await daemon.get("/v1/tokens/main", **as_("orders"))
    assert [row["count"] for row in await handouts(daemon)] == [2]


# --- the fast path and those who wait -------------------------------------------------------------


async def told(peer: Peer) -> list[dict[str, Any]]:
    answer = await peer.ask(request("/v1/handouts/main"))
    rows: list[dict[str, Any]] = json.loads(answer.partition(b"\r\n\r\n")[2])["handouts"]
    return rows


async def test_answers_of_the_fast_path_are_counted_by_socket_kind(whole: WholeDaemon) -> None:
    tcp, unix = await whole.peer(), await whole.peer(unix=True)
    for _ in range(5):
        await tcp.ask(ASK)
    for _ in range(3):
        await unix.ask(ASK)
    assert whole.repeated == 4 + 2
    rows = await told(tcp)
    assert {row["client"]: row["count"] for row in rows} == {"local": 5, "socket": 3}


async def test_an_unchanged_token_is_held_and_not_handed_out(whole: WholeDaemon) -> None:
    peer, version = await whole.peer(), polls.held(whole)
    for _ in range(3):
        await peer.ask(request("/v1/tokens/main", f'If-None-Match: "{version}"'))
    assert whole.repeated == 2
    (row,) = await told(peer)
    assert (row["version"], row["count"], row["held"]) == (version, 0, 3)
    assert row["first"] is None


async def test_those_who_wait_are_handed_the_next_version(bench: Bench) -> None:
    async with daemon_on(bench, two_keys()) as daemon:
        old = polls.held(daemon)
        chunk = polls.watch(daemon, polls.LONG, f"Authorization: Bearer {KEY}")
        waiting = [await polls.first(daemon, chunk)]
        waiting += [await polls.joined(daemon, chunk) for _ in range(3)]
        new = await polls.rotate(bench, daemon)
        await asyncio.gather(*(peer.answer() for peer in waiting))
        daemon.cache.account()
        rows = {row.version: row for row in await daemon.handouts.of(ACCOUNT.id)}
        assert (rows[new].count, rows[new].held) == (4, 0)
        assert (rows[old].count, rows[old].held) == (0, 4)


# --- what is kept ---------------------------------------------------------------------------------


async def test_rows_of_more_than_thirty_days_are_forgotten(bench: Bench) -> None:
    store = await bench.open()
    handouts = Handouts(store, bench.clock.now, bench.clock.wall)
    handouts.record("orders", Handed("wx1", "e-1"), 200, 1, bench.clock.now())
    assert len(await handouts.of("wx1")) == 1
    bench.clock.pass_(31 * DAY)
    assert bench.clock.now() > PRUNE_S
    assert await handouts.of("wx1") == []


async def test_memory_is_bounded_whatever_is_asked(bench: Bench) -> None:
    handouts = Handouts(await bench.open(), bench.clock.now, bench.clock.wall)
    for number in range(MOST_PENDING + 100):
        handouts.record("orders", Handed("wx1", None, (f"e-{number}",)), 304, 1, 0.0)
    assert handouts.dropped == 100
    assert len(await handouts.of("wx1", 10**6)) == MOST_PENDING


async def test_what_is_pending_is_written_when_the_daemon_stops(bench: Bench) -> None:
    handouts = Handouts(await bench.open(), bench.clock.now, bench.clock.wall)
    counted: list[int] = []
    async with handouts.kept(lambda: counted.append(1)):
        handouts.record("orders", Handed("wx1", "e-1"), 200, 7, bench.clock.now())
    assert counted == [1]
    assert await (await bench.open()).handouts("wx1", 10) == [
        Handout("orders", "wx1", "e-1", 7, bench.clock.wall(), bench.clock.wall())
    ]
