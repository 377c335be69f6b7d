"""WeCom's tickets: a company's once, an app's for each app, in an hour's limits (WECHAT.md W68)."""

import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.core import signature
from broker.core.credential import CORP_TICKETS, Account, Credential, Endpoint, HeldToken, Policy
from broker.core.errcodes import WECOM_RULES, Advice, Failure, FailureCode, rule_for
from broker.core.quota import HOUR, HOURLY, Entry, Lane, QuotaLimits, full
from broker.core.secret import Secret
from broker.core.transitions import minted
from broker.store.rows import account_of, key_of
from broker.web.gate import Gate
from broker.web.words import english
from tests.harness.api import Daemon, problem
from tests.harness.doubles import ACCOUNT, CANARY, Bench
from tests.harness.processes import House

CORP = "ww0123456789abcdef"
HR = replace(ACCOUNT, name="hr", appid=CORP, endpoint=Endpoint.WECOM)
CRM = replace(HR, name="crm", secret=Secret(f"{CANARY}-of-crm"))
PAGE = "https://hr.example/form?id=7"


@pytest.fixture
async def daemon(bench: Bench) -> AsyncIterator[Daemon]:
    daemon = Daemon(bench)
    await daemon.start(Gate({}, []), [HR, CRM, ACCOUNT], drop_in=True)
    await daemon.look()
    yield daemon
    await daemon.http.close()


async def ticket(daemon: Daemon, app: str, kind: str) -> dict[str, Any]:
    answer = await daemon.get(f"/v1/tickets/{app}/{kind}")
    assert answer.status == 200, await answer.text()
    said: dict[str, Any] = await answer.json()
    return said


def token(daemon: Daemon, app: str) -> str:
    keeper = daemon.registry.find(app)
    served = keeper and keeper.serve()
    assert served
    return served.token.value.reveal()


async def test_a_companys_ticket_is_kept_once_whatever_app_asks(daemon: Daemon) -> None:
    said = [await ticket(daemon, app, "jsapi") for app in ("hr", "crm", "hr")]
    assert {one["ticket"] for one in said} == {f"{CANARY}-corp_jsapi-k1"}
    assert [(one["app"], one["appid"], one["type"]) for one in said[:2]] == [
        ("hr", CORP, "jsapi"),
        ("crm", CORP, "jsapi"),
    ]
    assert len(daemon.bench.wechat.tickets) == 1
    apps = (await (await daemon.get("/v1/status")).json())["apps"]
    assert {app["app"]: list(app["tickets"]) for app in apps} == {
        "hr": ["jsapi"],
        "crm": ["jsapi"],
        "main": [],
    }


async def test_an_apps_ticket_is_its_own_and_asked_for_with_its_token(daemon: Daemon) -> None:
    said = [await ticket(daemon, app, "agent_config") for app in ("hr", "crm", "hr")]
    assert said[0]["ticket"] == said[2]["ticket"] != said[1]["ticket"]
    assert daemon.bench.wechat.tickets == [
        ("agent_config", token(daemon, "hr")),
        ("agent_config", token(daemon, "crm")),
    ]


async def test_a_companys_ticket_needs_the_token_of_any_app_that_has_one(bench: Bench) -> None:
    daemon = Daemon(bench)
    bench.wechat.answers.append(
        Failure(rule_for(40001, wecom=True).kind, FailureCode.ERRCODE, 40001, wecom=True)
    )
    await daemon.start(Gate({}, []), [HR, CRM])
    await daemon.look()
    without, other = sorted(("hr", "crm"), key=lambda app: _has_token(daemon, app))
    assert not _has_token(daemon, without)
    await ticket(daemon, without, "jsapi")
    assert daemon.bench.wechat.tickets == [("corp_jsapi", token(daemon, other))]
    own = await daemon.get(f"/v1/tickets/{without}/agent_config")
    assert (await problem(own))[0] == 503
    assert len(daemon.bench.wechat.tickets) == 1
    await daemon.http.close()


def _has_token(daemon: Daemon, app: str) -> bool:
    keeper = daemon.registry.find(app)
    return keeper is not None and keeper.serve() is not None


async def test_each_platform_has_its_kinds(daemon: Daemon) -> None:
    for path in ("hr/wx_card", "main/agent_config", "main/corp_jsapi", "hr/x"):
        answer = await daemon.get(f"/v1/tickets/{path}")
        detail = (await answer.json())["detail"]
        assert await problem(answer) == (404, "unknown-ticket")
        assert ("agent_config" in detail) is path.startswith("hr")
    assert daemon.bench.wechat.tickets == []


async def test_pages_are_signed_with_either(daemon: Daemon) -> None:
    company, app = await ticket(daemon, "hr", "jsapi"), await ticket(daemon, "hr", "agent_config")
    for kind, held, name in (("jsapi", company, "appId"), ("agent_config", app, "corpid")):
        answer = await daemon.post(f"/v1/tickets/hr/{kind}/signature", {"url": f"{PAGE}#top"})
        said = await answer.json()
        assert said.keys() == {name, "timestamp", "nonceStr", "signature"}
        assert said[name] == CORP
        assert said["signature"] == signature.jsapi(
            Secret(held["ticket"]), said["nonceStr"], said["timestamp"], PAGE
        )
    bad = await daemon.post("/v1/tickets/hr/agent_config/signature", {"url": "hr.example"})
    assert await problem(bad) == (422, "invalid-body")


@pytest.mark.parametrize("slashes", ["/", "//"])
async def test_sdks_ask_on_wecoms_own_paths(daemon: Daemon, slashes: str) -> None:
    company = await ticket(daemon, "hr", "jsapi")
    apps = {app: (await ticket(daemon, app, "agent_config"))["ticket"] for app in ("hr", "crm")}

    async def ask(path: str, **said: str) -> dict[str, Any]:
        url = str(daemon.http.make_url("/")).rstrip("/") + slashes + path
        async with daemon.http.session.get(url, params=said) as answer:
            assert answer.status == 200
            read: dict[str, Any] = await answer.json()
            return read

    for app, own in apps.items():
        held = {"access_token": token(daemon, app)}
        assert await ask("cgi-bin/get_jsapi_ticket", **held) == {
            "errcode": 0,
            "errmsg": "ok",
            "ticket": company["ticket"],
            "expires_in": 7200,
        }
        assert (await ask("cgi-bin/ticket/get", type="agent_config", **held))["ticket"] == own
        wrong = await ask("cgi-bin/ticket/get", type="wx_card", **held)
        assert wrong["errcode"] == 47001
        assert "agent_config" in wrong["errmsg"]
    assert (await ask("cgi-bin/get_jsapi_ticket"))["errcode"] == 41001
    assert (await ask("cgi-bin/get_jsapi_ticket", access_token="x"))["errcode"] == 40001
    assert len(daemon.bench.wechat.tickets) == 3


async def test_a_ticket_that_wecom_repeats_is_not_prolonged(bench: Bench) -> None:
    for endpoint in CORP_TICKETS:
        held = Credential("e", HeldToken(Secret("t"), 1, 100.0, 7300.0))
        again = minted(held, 2, 6000.0, (Secret("t"), 7200.0), endpoint)
        assert again.token is not None
        assert again.token.expires_at == 7300.0
    assert bench.wechat.calls == 0


# --- the ledger -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "most"), [(Endpoint.CORP_JSAPI, 400), (Endpoint.AGENT_CONFIG, 100)]
)
def test_an_hour_has_a_limit_of_its_own(endpoint: Endpoint, most: int) -> None:
    assert HOURLY[endpoint] == most
    limits = QuotaLimits.of(2000, endpoint, Policy())
    now = 50_000.0
    spent = [Entry(now - HOUR + 1 + number, 0.0, Lane.SCHEDULED) for number in range(most)]
    assert full(spent[1:], limits, Lane.SCHEDULED, now) is None
    reached = full(spent, limits, Lane.SCHEDULED, now)
    assert reached is not None
    assert (reached.limit, reached.until) == ("hourly_quota", now + 1)
    assert full(spent, limits, Lane.SCHEDULED, now + 1) is None
    assert full(spent, QuotaLimits.of(2000, Endpoint.JSAPI, Policy()), Lane.SCHEDULED, now) is None


async def test_an_app_whose_hour_is_spent_is_told_so_and_asks_nobody(bench: Bench) -> None:
    bench.policy = Policy(min_gap=0.5, max_backoff=0.5)
    daemon = Daemon(bench)
    await daemon.start(Gate({}, []), [HR])
    await daemon.look()
    bench.wechat.ticket_answers.extend(
        [Failure(rule_for(-1, wecom=True).kind, FailureCode.ERRCODE, -1, wecom=True)] * 100
    )
    for _ in range(100):
        await daemon.get("/v1/tickets/hr/agent_config")
        bench.clock.pass_(1)
    assert len(bench.wechat.tickets) == 100
    answer = await daemon.get("/v1/tickets/hr/agent_config")
    assert await problem(answer) == (503, "quota-exhausted")
    assert 3400 < int(answer.headers["Retry-After"]) <= 3600
    assert len(bench.wechat.tickets) == 100
    await daemon.http.close()


def test_the_store_keeps_them_apart_and_names_them_again() -> None:
    def kept(account: Account, endpoint: Endpoint, kind: str) -> Account:
        owner = account.appid if endpoint is Endpoint.CORP_JSAPI else account.name
        return replace(account, name=f"{owner}/{kind}", endpoint=endpoint)

    tickets = [
        kept(HR, Endpoint.CORP_JSAPI, "jsapi"),
        kept(HR, Endpoint.AGENT_CONFIG, "agent_config"),
        kept(CRM, Endpoint.AGENT_CONFIG, "agent_config"),
    ]
    rows = [key_of(account) for account in (HR, CRM, *tickets)]
    assert len({tuple(row.values()) for row in rows}) == 5
    assert key_of(kept(CRM, Endpoint.CORP_JSAPI, "jsapi")) == rows[2]
    assert [account_of(row).id for row in rows] == [row["appid"] for row in rows]


def test_42012_is_explained() -> None:
    assert WECOM_RULES[42012].advice is Advice.WECOM_OTHER_TICKET
    told = english.FAILURES.advices[Advice.WECOM_OTHER_TICKET]
    assert re.search(r"wx\.config.*jsapi.*wx\.agentConfig.*agent_config", told)


# --- for real -------------------------------------------------------------------------------------


def test_a_daemon_keeps_them_across_a_restart_with_a_corpid_of_any_kind(tmp_path: Path) -> None:
    house, corpid = House(tmp_path), "wpabcdefghijklmnop"
    with house.sandboxed():
        more = f'[wecom]\napi_base = "{house.sandbox}"\n'
        for name in ("hr", "crm"):
            secret = f"{CANARY}-{hashlib.sha256(name.encode()).hexdigest()}"
            more += f'[apps.{name}]\nappid = "{corpid}"\nsecret = "{secret}"\nendpoint = "wecom"\n'
        house.configure(more=more).chmod(0o600)
        paths = [
            f"/v1/tickets/{path}" for path in ("hr/jsapi", "hr/agent_config", "crm/agent_config")
        ]

        def held() -> list[str]:
            return [house.get(path)[1]["ticket"] for path in paths]

        with house.serving() as first:
            tickets = held()
            assert len(set(tickets)) == 3
            assert house.get("/v1/tickets/crm/jsapi")[1]["ticket"] == tickets[0]
            first.end()
        with house.serving():
            assert held() == tickets
            assert house.get("/v1/tickets/crm/jsapi")[1]["ticket"] == tickets[0]
        rows = [row for row in house.ledger() if row["endpoint"] in set(CORP_TICKETS)]
        assert len(rows) == 3
        assert CANARY not in (tmp_path / "daemon.log").read_text()
