"""Tickets are kept like tokens, on demand (WECHAT.md W55, W57, W58).

Signatures are made without handing the tickets out.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from broker.core import signature
from broker.core.credential import Endpoint
from broker.core.errcodes import Failure, FailureCode, rule_for
from broker.core.ports import Minted, Verdict
from broker.core.secret import Secret
from broker.web.gate import Client, Gate
from tests.harness.api import Daemon
from tests.harness.doubles import ACCOUNT, APPID, CANARY, DOWN, Bench

KEY = f"{CANARY}-key"
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
async def daemon(bench: Bench) -> AsyncIterator[Daemon]:
    daemon = Daemon(bench)
    await daemon.start(Gate({}, []), drop_in=True)
    await daemon.look()
    yield daemon
    await daemon.http.close()


async def ticket(daemon: Daemon, kind: str = "jsapi", **headers: str) -> dict[str, Any]:
    answer = await daemon.get(f"/v1/tickets/main/{kind}", **headers)
    assert answer.status == 200, await answer.text()
    said: dict[str, Any] = await answer.json()
    return said


def test_the_official_vector_of_a_page() -> None:
    held = Secret(
        "sM4AOVdWfPE4DxkXGEs8VMCPGGVi4C3VM0P37wVUCFvkVAy_90u5h9nbSlYy3-Sl-HhTdfl2fzFy1AOcHKP7qg"
    )
    for url in (
        "http://mp.weixin.qq.com?params=value",
        "http://mp.weixin.qq.com?params=value#there",
    ):
        assert (
            signature.jsapi(held, "Wm3WZYTPz0wzccnW", 1414587457, url)
            == "0f9de62fce790f9a083d5c99e95740ceb90c27ed"
        )


def test_the_official_vector_of_a_card() -> None:
    values = ("1434008071", "1404896688", "pjZ8Yt1XGILfi-FUsewpnnolGgZk", "123")
    for said in (values, values[::-1]):
        assert (
            signature.card(Secret("ojZ8YtyVyr30HheH3CM73y7h4jJE"), *said)
            == "f137ab68b7f8112d20ee528ab6074564e2796250"
        )


async def test_a_ticket_is_fetched_when_first_asked_for_and_then_served(daemon: Daemon) -> None:
    assert daemon.bench.wechat.tickets == []
    first = await ticket(daemon)
    assert first["ticket"] == f"{CANARY}-jsapi-k1"
    assert (first["app"], first["appid"], first["type"], first["expires_in"]) == (
        "main",
        APPID,
        "jsapi",
        7200,
    )
    assert await ticket(daemon) == first
    assert (await ticket(daemon, "wx_card"))["ticket"] == f"{CANARY}-wx_card-k2"
    assert daemon.bench.wechat.tickets == [
        ("jsapi", f"{CANARY}-main-t1"),
        ("wx_card", f"{CANARY}-main-t1"),
    ]


async def test_a_ticket_is_counted_in_a_ledger_of_its_own(daemon: Daemon) -> None:
    await ticket(daemon)
    store = await daemon.bench.open()
    assert len(await store.history(0, ACCOUNT)) == 1
    assert [
        row["outcome"] for row in await store.history(0, replace(ACCOUNT, endpoint=Endpoint.JSAPI))
    ] == ["minted"]
    assert next(iter(daemon.registry)).usage().last_24h == 1


async def test_a_ticket_is_replaced_ahead_of_its_end_and_outlives_tokens_and_restarts(
    daemon: Daemon, bench: Bench
) -> None:
    first = await ticket(daemon)
    for _ in range(100):
        bench.clock.pass_(50)
        await look(daemon)
    assert bench.wechat.calls > 1
    assert (await ticket(daemon))["ticket"] == first["ticket"]  # 5000 s old
    await daemon.http.close()
    await bench.close()
    again = Daemon(bench)
    await again.start(Gate({}, []))
    assert (await ticket(again))["ticket"] == first["ticket"]
    for _ in range(30):
        bench.clock.pass_(50)
        await look(again)
    later = await ticket(again)
    await again.http.close()
    assert (later["ticket"], later["state"]) == (f"{CANARY}-jsapi-k2", "fresh")
    assert len(bench.wechat.tickets) == 2


async def look(daemon: Daemon) -> None:
    await daemon.look()
    daemon.tickets.tick()
    await daemon.tickets.drain()


async def test_a_ticket_nobody_asks_for_any_more_is_let_go_of(daemon: Daemon, bench: Bench) -> None:
    await ticket(daemon)
    for _ in range(3 * 86400 // 600):
        bench.clock.pass_(600)
        await look(daemon)
    spent = len(bench.wechat.tickets)
    assert spent < 20
    assert daemon.tickets.of("main") == {}
    for _ in range(20):
        bench.clock.pass_(600)
        await look(daemon)
    assert len(bench.wechat.tickets) == spent
    assert (await ticket(daemon))["ticket"] == f"{CANARY}-jsapi-k{spent + 1}"


async def test_a_refused_token_is_reported_and_the_ticket_asked_for_once_more(
    daemon: Daemon, bench: Bench
) -> None:
    bench.clock.pass_(60)
    bench.wechat.ticket_answers.append(Failure(rule_for(40001).kind, FailureCode.ERRCODE, 40001))
    bench.wechat.verdicts.append(Verdict.DEAD)
    assert (await ticket(daemon))["ticket"] == f"{CANARY}-jsapi-k2"
    assert bench.wechat.tickets == [("jsapi", f"{CANARY}-main-t1"), ("jsapi", f"{CANARY}-main-t2")]
    assert (bench.wechat.checks, bench.wechat.calls) == (1, 2)


async def test_a_token_that_lives_but_is_refused_costs_nothing_and_the_ticket_backs_off(
    daemon: Daemon, bench: Bench
) -> None:
    bench.clock.pass_(60)
    bench.wechat.ticket_answers.append(Failure(rule_for(40001).kind, FailureCode.ERRCODE, 40001))
    answer = await daemon.get("/v1/tickets/main/jsapi")
    said = await answer.json()
    assert (answer.status, said["code"]) == (503, "upstream-unavailable")
    assert said["detail"].startswith(
        "WeChat gave no ticket: WeChat refused the token that the ticket was asked for with."
    )
    assert int(answer.headers["Retry-After"]) == said["retry_after"] >= 1
    assert (bench.wechat.calls, len(bench.wechat.tickets)) == (1, 1)


async def test_fifty_callers_cause_one_fetch(daemon: Daemon, bench: Bench) -> None:
    bench.wechat.gate.clear()
    asking = [asyncio.create_task(ticket(daemon)) for _ in range(50)]
    while not bench.wechat.tickets:
        await asyncio.sleep(0)
    bench.wechat.gate.set()
    assert {one["ticket"] for one in await asyncio.gather(*asking)} == {f"{CANARY}-jsapi-k1"}
    assert len(bench.wechat.tickets) == 1


async def test_the_same_ticket_again_costs_a_few_calls_not_a_storm(
    daemon: Daemon, bench: Bench
) -> None:
    """Nobody says if WeChat repeats a ticket until its end.

    If it does, the end that it says counts.
    """
    await ticket(daemon)
    same = Secret(f"{CANARY}-jsapi-k1")
    end = bench.clock.now() + 7200
    while bench.clock.now() < end - 20:
        bench.clock.pass_(10)
        bench.wechat.ticket_answers.clear()
        bench.wechat.ticket_answers.append(Minted(same, end - bench.clock.now()))
        await look(daemon)
        assert (await ticket(daemon))["expires_in"] <= end - bench.clock.now()
    assert len(bench.wechat.tickets) < 10


async def test_who_has_the_ticket_hears_so_and_may_wait_for_the_next(daemon: Daemon) -> None:
    first = await ticket(daemon)
    held = {"If-None-Match": f'"{first["version"]}"'}
    for query in ("", "?wait=0.01"):
        answer = await daemon.get(f"/v1/tickets/main/jsapi{query}", **held)
        assert (answer.status, answer.headers["ETag"]) == (304, f'"{first["version"]}"')
    assert (await daemon.get("/v1/tickets/main/jsapi?min_ttl=7201")).status == 503


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("main/other", "unknown-ticket"),
        ("main/token", "unknown-ticket"),
        ("no/jsapi", "unknown-app"),
    ],
)
async def test_what_there_is_none_of_is_not_found(daemon: Daemon, path: str, code: str) -> None:
    answer = await daemon.get(f"/v1/tickets/{path}")
    assert (answer.status, (await answer.json())["code"]) == (404, code)


async def test_a_page_is_signed(daemon: Daemon, bench: Bench) -> None:
    answer = await daemon.post(
        "/v1/tickets/main/jsapi/signature", {"url": "https://shop.example/?a=1#top"}
    )
    said = await answer.json()
    assert answer.headers["Cache-Control"] == "no-store"
    assert said.keys() == {"appId", "timestamp", "nonceStr", "signature"}
    assert (said["appId"], said["timestamp"]) == (APPID, int(bench.clock.wall()))
    page = f"jsapi_ticket={CANARY}-jsapi-k1&noncestr={said['nonceStr']}&timestamp={said['timestamp']}&url=https://shop.example/?a=1"
    assert said["signature"] == hashlib.sha1(page.encode(), usedforsecurity=False).hexdigest()
    assert CANARY not in str(said)


async def test_a_card_is_signed(daemon: Daemon) -> None:
    answer = await daemon.post(
        "/v1/tickets/main/wx_card/signature", {"card_id": "pjZ8Yt", "code": "14"}
    )
    said = await answer.json()
    values = sorted([f"{CANARY}-wx_card-k1", said["timestamp"], said["nonce_str"], "pjZ8Yt", "14"])
    assert (
        said["signature"]
        == hashlib.sha1("".join(values).encode(), usedforsecurity=False).hexdigest()
    )
    assert CANARY not in str(said)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("jsapi", {}),
        ("jsapi", {"url": "shop.example"}),
        ("jsapi", {"url": "https://a b"}),
        ("jsapi", {"url": "https://a\n"}),
        ("jsapi", {"url": 1}),
        ("wx_card", {}),
        ("wx_card", {"card_id": ""}),
        ("wx_card", {"card_id": "x", "code": "y z"}),
        ("wx_card", {"card_id": "x", "more": "y"}),
    ],
)
async def test_what_cannot_be_signed_is_refused_with_a_sentence(
    daemon: Daemon, path: str, body: object
) -> None:
    answer = await daemon.post(f"/v1/tickets/main/{path}/signature", body)
    assert (answer.status, (await answer.json())["code"]) == (422, "invalid-body")


async def test_a_ticket_that_cannot_be_had_is_a_503_for_signatures_too(
    daemon: Daemon, bench: Bench
) -> None:
    bench.wechat.ticket_answers.append(DOWN)
    answer = await daemon.post("/v1/tickets/main/jsapi/signature", {"url": "https://shop.example/"})
    assert (answer.status, (await answer.json())["code"]) == (503, "upstream-unavailable")


async def test_status_shows_tickets_without_their_value(daemon: Daemon) -> None:
    await ticket(daemon)
    said = await (await daemon.get("/v1/status")).json()
    assert said["apps"][0]["tickets"]["jsapi"]["state"] == "fresh"
    assert CANARY not in str(said)


async def test_metrics_show_tickets_by_app_and_type_without_their_value(
    daemon: Daemon, bench: Bench
) -> None:
    assert "token_broker_ticket_usable{" not in await (await daemon.get("/metrics")).text()
    await ticket(daemon)
    bench.clock.pass_(100)
    bench.wechat.ticket_answers.append(DOWN)
    assert (await daemon.get("/v1/tickets/main/wx_card")).status == 503
    text = await (await daemon.get("/metrics")).text()
    for kind, usable, left, failures in (("jsapi", 1, 7100, 0), ("wx_card", 0, 0, 1)):
        labels = f'{{app="main",type="{kind}"}}'
        assert f"token_broker_ticket_usable{labels} {usable:.1f}\n" in text
        assert f"token_broker_ticket_expires_in_seconds{labels} {left:.1f}\n" in text
        assert f"token_broker_ticket_failures_in_a_row{labels} {failures:.1f}\n" in text
    assert CANARY not in text


async def test_a_client_gets_tickets_of_its_own_apps_only(bench: Bench) -> None:
    daemon = Daemon(bench)
    clients = {KEY: Client("shop", frozenset({"read"}), frozenset({"other"}))}
    await daemon.start(
        Gate(
            {hashlib.sha256(key.encode()).hexdigest(): client for key, client in clients.items()},
            [],
        )
    )
    answer = await daemon.get("/v1/tickets/main/jsapi", **BEARER)
    assert (answer.status, (await answer.json())["code"]) == (403, "insufficient-scope")
    assert bench.wechat.tickets == []
    await daemon.http.close()


# --- WeChat's own path ----------------------------------------------------------------------------


async def getticket(daemon: Daemon, **said: str) -> dict[str, Any]:
    answer = await daemon.http.get("/cgi-bin/ticket/getticket", params=said)
    assert (answer.status, answer.content_type) == (200, "application/json")
    read: dict[str, Any] = await answer.json()
    return read


async def test_who_has_the_token_gets_a_ticket_as_wechat_gives_it(
    daemon: Daemon, bench: Bench
) -> None:
    said = await getticket(daemon, access_token=f"{CANARY}-main-t1", type="jsapi")
    assert said == {
        "errcode": 0,
        "errmsg": "ok",
        "ticket": f"{CANARY}-jsapi-k1",
        "expires_in": 7200,
    }
    bench.clock.pass_(4000)
    await look(daemon)
    for token in ("t1", "t2"):  # the one before is good for the overlap
        assert (await getticket(daemon, access_token=f"{CANARY}-main-{token}", type="jsapi"))[
            "errcode"
        ] == 0
    bench.clock.pass_(301)
    assert (await getticket(daemon, access_token=f"{CANARY}-main-t1", type="jsapi"))[
        "errcode"
    ] == 40001
    assert len(bench.wechat.tickets) == 1


@pytest.mark.parametrize(
    ("said", "errcode"),
    [
        ({}, 41001),
        ({"access_token": "x" * 40, "type": "jsapi"}, 40001),
        ({"access_token": f"{CANARY}-main-t1"}, 47001),
        ({"access_token": f"{CANARY}-main-t1", "type": "token"}, 47001),
    ],
)
async def test_others_hear_wechats_numbers(
    daemon: Daemon, said: dict[str, str], errcode: int
) -> None:
    answer = await getticket(daemon, **said)
    assert answer["errcode"] == errcode
    assert not re.search(CANARY, str(answer))
