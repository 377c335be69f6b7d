"""The status page: what /v1/status says, for people, in their language.

It never holds a token.
"""

import asyncio
import hashlib
import inspect
import re
import shutil
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from html import unescape
from itertools import pairwise
from pathlib import Path

import pytest

from broker.cli import query as ask
from broker.config.load import load
from broker.config.notices import Notice, notices
from broker.core.credential import Account, Doubt, Endpoint, SecondIssuer, Suspicion
from broker.core.errcodes import Failure, FailureCode, Kind
from broker.core.ports import Node, StoreError
from broker.core.quota import until_next_day
from broker.http.language import CHINESE, ENGLISH, span
from broker.http.pages import Pages
from broker.web.client_stats import MOST, ClientStats
from broker.web.gate import Client, Gate
from broker.web.page import status
from broker.web.page.messages import PAGE
from broker.web.page.plot import HEIGHT, HOUR, HOURS, WIDTHS, Bar, Plot, Result, plot
from broker.web.page.status import APPS_A_PAGE, CLIENTS_SHOWN, POLICY
from tests.harness.api import Daemon
from tests.harness.doubles import ACCOUNT, APPID, CANARY, DOWN, LOST, NOON, Bench


@pytest.fixture
async def daemon(bench: Bench) -> AsyncIterator[Daemon]:
    daemon = Daemon(bench)
    await daemon.start(Gate({}, []))
    await daemon.look()
    yield daemon
    await daemon.http.close()


async def page(daemon: Daemon, query: str = "", language: str = "en") -> str:
    answer = await daemon.http.get(f"/{query}", headers={"Accept-Language": language})
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    return await answer.text()


def words(html: str) -> str:
    """What a reader sees."""
    html = re.sub(r"</?time[^>]*>", "", html)  # within a sentence, before its full stop
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html)))


def value(html: str, name: str) -> str:
    found = re.search(rf'data-value="{name}"(?: data-number="([^"]*)")?[^>]*>([^<]*)<', html)
    assert found, name
    return found[1] or found[2]


async def test_the_numbers_are_those_of_v1_status(daemon: Daemon) -> None:
    for _ in range(3):
        daemon.bench.clock.pass_(1000)
        html, (app,) = await page(daemon), (await (await daemon.get("/v1/status")).json())["apps"]
        assert value(html, "expires_in") == str(app["expires_in"])
        assert value(html, "next_refresh_in") == str(app["next_refresh_in"])
        assert value(html, "version") == app["version"]
        assert value(html, "used_today") == str(app["quota"]["used_today"])
        assert f'<progress aria-labelledby="left-1" max="7200" value="{app["expires_in"]}">' in html
        assert f"{app['quota']['used_24h']} in 24 h, {app['quota']['remaining']} left now" in words(
            html
        )


async def test_it_calls_nobody_and_holds_no_token(daemon: Daemon) -> None:
    before = (daemon.bench.wechat.calls, daemon.bench.wechat.checks)
    daemon.bench.clock.pass_(7100)  # a token call is due
    assert CANARY not in await page(daemon)
    assert (daemon.bench.wechat.calls, daemon.bench.wechat.checks) == before


async def test_only_what_is_ours_may_run_and_nothing_is_kept(daemon: Daemon) -> None:
    answer = await daemon.http.get("/")
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY
    assert answer.headers["Cache-Control"] == "no-store"
    html = await answer.text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|\bstyle=|\bon\w+=|<style", html)
    for address in re.findall(r'(?:src|href)="(/static/[^"]+)"', html):
        part = await daemon.http.get(address)
        assert part.status == 200
        assert "immutable" in part.headers["Cache-Control"]
        assert part.headers["X-Content-Type-Options"] == "nosniff"
    assert (await daemon.http.get("/static/status.css")).status == 404


async def test_the_gate_stands_before_it_but_a_browser_may_pass(daemon: Daemon) -> None:
    assert (await daemon.http.get("/", headers={"Host": "evil.example"})).status == 403
    assert (
        await daemon.http.get("/", headers={"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"})
    ).status == 200
    assert (await daemon.http.head("/")).status == 200
    assert (await daemon.http.post("/")).status == 405


@pytest.mark.parametrize(
    ("language", "said"),
    [("en", "Every app has a token."), ("zh-CN,zh;q=0.9,en;q=0.8", "所有应用都有可用的令牌。")],
)
async def test_it_speaks_english_and_chinese(daemon: Daemon, language: str, said: str) -> None:
    html = await page(daemon, language=language)
    assert said in words(html)
    assert f'<html lang="{CHINESE if "zh" in language else ENGLISH}">' in html


def test_both_languages_have_the_same_words_with_the_same_gaps() -> None:
    assert PAGE[ENGLISH].keys() == PAGE[CHINESE].keys()
    for key, english in PAGE[ENGLISH].items():
        assert sorted(re.findall(r"{\w+}", english)) == sorted(
            re.findall(r"{\w+}", PAGE[CHINESE][key])
        ), key


@pytest.mark.parametrize(
    ("seconds", "english", "chinese"),
    [
        (0, "0 s", "0 秒"),
        (59.9, "59 s", "59 秒"),
        (3600, "1 h 0 min", "1 小时 0 分"),
        (90_061, "1 d 1 h", "1 天 1 小时"),
    ],
)
def test_a_duration_is_said_in_its_two_largest_units(
    seconds: float, english: str, chinese: str
) -> None:
    assert (span(seconds, ENGLISH), span(seconds, CHINESE)) == (english, chinese)


# --- trouble --------------------------------------------------------------------------------------


async def trouble(daemon: Daemon, failure: Failure) -> None:
    daemon.bench.clock.pass_(7100)
    daemon.bench.wechat.answers.append(failure)
    await daemon.look()


async def test_the_address_to_whitelist_is_named(daemon: Daemon) -> None:
    await trouble(
        daemon,
        Failure(Kind.ADMISSION, FailureCode.ERRCODE, 40164, ip="203.0.113.9", rid="6a-7b-8c"),
    )
    said = words(await page(daemon))
    assert "Last token call failed" in said
    assert "IP whitelist" in said
    assert "203.0.113.9" in said
    assert "6a-7b-8c" in said
    assert "203.0.113.9" in words(await page(daemon, language="zh"))


@pytest.mark.parametrize(
    ("errcode", "english", "chinese"),
    [
        (40125, "does not accept the AppSecret", "不接受该 AppSecret"),
        (40013, "does not know this AppID", "不认识该 AppID"),
    ],
)
async def test_what_to_correct_is_told_apart(
    daemon: Daemon, errcode: int, english: str, chinese: str
) -> None:
    await trouble(daemon, Failure(Kind.CONFIGURATION, FailureCode.ERRCODE, errcode))
    assert english in words(await page(daemon))
    assert chinese in words(await page(daemon, language="zh"))


async def test_a_spent_quota_says_when_calls_come_back(daemon: Daemon) -> None:
    await trouble(daemon, Failure(Kind.QUOTA, FailureCode.ERRCODE, 45009))
    html = await page(daemon)
    assert "resume with the next quota day" in words(html)
    left = int(value(html, "next_refresh_in"))
    assert left > 3600
    back = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(daemon.bench.clock.wall() + left))
    assert back.endswith("16:00 UTC")  # midnight in Beijing
    assert f"The next call is made in {span(left, ENGLISH)}, at {back}." in words(html)
    chinese = words(await page(daemon, language="zh"))
    assert f"下次调用在{span(left, CHINESE)}后，即 {back}。" in chinese
    assert re.search("[0-9]+ 次不是由本服务发起的调用", chinese)
    assert "calls that this broker did not make" in words(html)


async def test_our_own_limit_is_said_to_be_reached_before_wechats(bench: Bench) -> None:
    bench.clock.pass_(until_next_day(NOON))  # so that all of it happens today
    daemon = Daemon(bench)
    await daemon.start(Gate({}, []), [replace(ACCOUNT, daily_quota=3)])
    for used in (1, 2):
        await daemon.look()
        html = await page(daemon)
        assert "No token call is left" not in words(html)
        assert re.search(rf'<meter [^>]*max="3" [^>]*value="{used}">{used} of 3</meter>', html)
        bench.clock.pass_(5000)
    await daemon.look()
    bench.clock.pass_(5000)
    await daemon.look()  # one more is due, and not made
    html = await page(daemon)
    assert bench.wechat.calls == 3
    assert re.search(r'<meter [^>]*max="3" [^>]*value="3">3 of 3</meter>', html)
    assert "All 3 of 24 hours are spent" in words(html)
    assert (
        f"The next call is made in {span(int(value(html, 'next_refresh_in')), ENGLISH)}"
        in words(html)
    )
    assert "attention is due" in words(html)
    await daemon.http.close()


async def test_an_app_without_a_token_is_said_to_have_none_in_the_headline(daemon: Daemon) -> None:
    daemon.bench.wechat.answers.extend([DOWN] * 9)
    daemon.bench.clock.pass_(7300)
    await daemon.look()
    html = await page(daemon)
    assert "No token for 1 of 1 apps." in words(html)
    assert "No token" in words(html)
    assert '<progress aria-labelledby="left-1" max="7200" value="0">' in html


async def test_a_token_in_doubt_is_said_to_be(daemon: Daemon) -> None:
    await trouble(daemon, LOST)
    said = words(await page(daemon))
    assert "In doubt" in said
    assert "attention is due at 1 of 1" in said


async def test_a_token_in_doubt_is_no_older_than_it_is(daemon: Daemon) -> None:
    daemon.bench.clock.pass_(4000)
    daemon.bench.wechat.answers.append(LOST)
    await daemon.look()
    html, (app,) = await page(daemon), (await (await daemon.get("/v1/status")).json())["apps"]
    assert (
        app["expires_in"] <= daemon.bench.policy.overlap
    )  # all that may still be served of 3200 s
    assert "Age 1 h 6 min" in words(html)


async def test_a_second_issuer_is_named_and_a_first_sign_is_not_yet_one(daemon: Daemon) -> None:
    (keeper,) = daemon.registry
    keeper._live.credential = replace(keeper.credential, second_issuer=SecondIssuer(1, NOON, NOON))
    assert "Three are a second issuer" in words(await page(daemon))
    keeper._live.credential = replace(keeper.credential, second_issuer=SecondIssuer(3, NOON, NOON))
    said = words(await page(daemon))
    assert "Somebody else seems to fetch tokens" in said
    assert "3 tokens died before their time, since 2026-" in said


async def test_a_broken_store_is_said_and_the_page_goes_on(daemon: Daemon) -> None:
    (keeper,) = daemon.registry
    keeper._sync.found("database or disk is full")

    async def broken(_since: float, _account: Account) -> list[dict[str, object]]:
        raise StoreError("disk I/O error")

    daemon.wired.history = broken
    said = words(await page(daemon))
    assert "database or disk is full" in said
    assert "The ledger cannot be read just now." in said


async def test_a_daemon_that_stops_or_no_longer_looks_says_so(daemon: Daemon) -> None:
    daemon.bench.clock.pass_(60)
    assert "The schedule has stopped" in words(await page(daemon))
    daemon.registry.stop()
    assert "The broker is stopping." in words(await page(daemon))


async def test_what_others_wrote_is_text(bench: Bench) -> None:
    account = Account("<script>alert(1)</script>", "wx<b>", ACCOUNT.secret)
    daemon = Daemon(bench)
    await daemon.start(Gate({}, []), [account])
    await trouble(
        daemon, Failure(Kind.TRANSIENT, FailureCode.NOT_HTTP, facts={"error": "<img src=x>"})
    )
    html = await page(daemon)
    assert "<script>alert" not in html
    assert "<img src=x>" not in html
    assert "<b>" not in html
    assert "<img src=x>" in words(html)
    await daemon.http.close()


# --- many apps ------------------------------------------------------------------------------------


async def test_a_thousand_apps_are_shown_a_dozen_at_a_time_the_troubled_first(bench: Bench) -> None:
    daemon = Daemon(bench)
    await daemon.start(
        Gate({}, []), [replace(ACCOUNT, name=f"a{n:04}", appid=f"wx{n}") for n in range(1000)]
    )
    bench.wechat.answers.extend([DOWN])
    await daemon.look()
    html = await page(daemon)
    assert "No token for 1 of 1000 apps." in words(html)
    assert html.count("<article") == APPS_A_PAGE
    assert "No token" in words(html[: html.index("</article>")])
    assert len(html) < 100_000
    last = await page(daemon, "?page=84")
    assert last.count("<article") == 1000 - 83 * APPS_A_PAGE
    assert last.count("<article") == (await page(daemon, "?page=999999")).count("<article")
    assert html.count("<article") == (await page(daemon, "?page=-1")).count("<article")
    one = await page(daemon, "?app=a0999")
    assert one.count("<article") == 1
    assert "a0999" in one
    assert "There is no app of that name." in words(await page(daemon, "?app=nope"))
    await daemon.http.close()


# --- the plot -------------------------------------------------------------------------------------


def call(
    hours_ago: float, lane: str = "scheduled", outcome: str | None = "minted"
) -> dict[str, object]:
    return {"lane": lane, "outcome": outcome, "wall_at": NOON - hours_ago * HOUR}


def bars(drawn: Plot) -> list[Bar]:
    return [bar for hour in drawn.hours for bar in hour.bars]


def test_calls_are_stacked_in_the_hour_they_were_made() -> None:
    made = [
        call(0),
        call(0, "report"),
        call(0, "report", "errcode 40164"),
        call(0, "admin", "lost"),
        call(46),
        call(49),
    ]
    drawn = plot(made, NOON)
    assert (drawn.total, *map(drawn.count, Result)) == (5, 3, 1, 1)
    assert [hour.began for hour in drawn.hours] == [
        NOON // HOUR * HOUR - 46 * HOUR,
        NOON // HOUR * HOUR,
    ]
    now = drawn.hours[-1].bars
    assert [(bar.lane, bar.result) for bar in now] == [
        ("scheduled", Result.MINTED),
        ("report", Result.MINTED),
        ("report", Result.FAILED),
        ("admin", Result.SILENT),
    ]
    assert {bar.x + bar.width / 2 for bar in now} == {(HOURS - 0.5) * 10}
    assert now[0].y + now[0].height == HEIGHT
    assert all(abs(upper.y + upper.height - lower.y) < 0.02 for lower, upper in pairwise(now))
    assert len(set(WIDTHS.values())) == 3  # told apart without colour


@pytest.mark.parametrize(
    ("outcome", "result"),
    [
        ("minted", Result.MINTED),
        ("errcode 45009", Result.FAILED),
        ("transient", Result.FAILED),
        ("lost", Result.SILENT),
        (None, Result.SILENT),
    ],
)
def test_what_came_of_a_call_is_one_of_three(outcome: str | None, result: Result) -> None:
    assert plot([call(0, outcome=outcome)], NOON).count(result) == 1


def test_many_calls_fit_and_what_was_only_assumed_is_not_drawn() -> None:
    drawn = plot(
        [
            *(call(0.01, "admin") for _ in range(90)),
            call(0, outcome="assumed"),
            call(0, outcome=None),
        ],
        NOON,
    )
    assert drawn.most == drawn.total == 91
    assert min(bar.y for bar in bars(drawn)) >= 0


async def test_the_ledgers_calls_are_drawn_and_said(daemon: Daemon) -> None:
    await trouble(daemon, DOWN)
    html = await page(daemon)
    assert "Calls: 2, of which failed: 1, without an answer: 0." in words(html)
    picture = re.search(r'<svg viewBox[^>]* role="img".*?</svg>', html, re.DOTALL)
    assert picture
    assert re.findall(r'<rect class="(\w+ \w+)"', picture[0]) == [
        "scheduled minted",
        "scheduled failed",
    ]
    assert picture[0].count('fill="url(#hatch)"') == 1
    assert picture[0].count("<title>2026-") == 2
    assert len(re.findall(r'<th scope="row"><time datetime="2026-', html)) == 2


async def test_the_ledger_is_read_again_only_where_it_says_something_else(daemon: Daemon) -> None:
    read, history = [], daemon.wired.history

    async def counted(since: float, account: Account) -> list[dict[str, object]]:
        read.append(account.appid)
        return await history(since, account)

    daemon.wired.history = counted
    for _ in range(5):
        assert "Calls: 1, of which failed: 0" in words(await page(daemon))
    assert len(read) == 1
    await trouble(daemon, DOWN)
    assert "Calls: 2, of which failed: 1" in words(await page(daemon))
    daemon.bench.clock.pass_(30)
    await daemon.look()
    assert "Calls: 3, of which failed: 1" in words(await page(daemon))
    daemon.bench.clock.pass_(49 * HOUR)
    assert "No token call in two days." in words(await page(daemon))


# --- who asks -------------------------------------------------------------------------------------


async def test_who_asks_is_counted_by_client_and_who_is_refused_is_not(bench: Bench) -> None:
    daemon, key = Daemon(bench), "orders-key-of-some-length"
    digest = hashlib.sha256(key.encode()).hexdigest()
    await daemon.start(Gate({digest: Client("orders", frozenset({"read"}))}, []))
    await daemon.look()
    assert "Nobody has asked" in words(await page(daemon))
    for _ in range(3):
        await daemon.get("/v1/tokens/main", Authorization=f"Bearer {key}")
    await daemon.get("/v1/tokens/main", Authorization="Bearer wrong")
    assert "orders 3 just now" in words(await page(daemon))
    assert key not in await page(daemon)
    await daemon.http.close()


def test_visitors_are_listed_latest_first() -> None:
    client_stats = ClientStats(lambda: 100.0)
    client_stats.record("a", 5, 10.0)
    client_stats.record("b", 1, 20.0)
    client_stats.record("a", 1, 5.0)
    assert [(one.name, one.requests, one.last_at) for one in client_stats] == [
        ("b", 1, 20.0),
        ("a", 6, 10.0),
    ]


async def test_a_client_is_called_by_its_own_name_whatever_it_is(daemon: Daemon) -> None:
    for name in ("report", "title", "<i>x</i>", "local"):
        daemon.wired.client_stats.record(name, 1, 10_000.0)
    html = await page(daemon)
    assert re.findall(r'<th scope="row">([^<2][^<]*)</th>', html) == [
        "report",
        "title",
        "&lt;i&gt;x&lt;/i&gt;",
        "this machine (no clients configured)",
    ]


async def test_visitors_are_bounded_in_memory_and_on_the_page(daemon: Daemon) -> None:
    for number in range(MOST + 5):
        daemon.wired.client_stats.record(f"c{number}", 1, float(number))
    assert len(daemon.wired.client_stats) == MOST
    assert next(iter(daemon.wired.client_stats)).name == f"c{MOST + 4}"
    assert min(one.last_at for one in daemon.wired.client_stats) == 5
    html = await page(daemon)
    assert len(re.findall(r'<th scope="row">c\d+</th>', html)) == CLIENTS_SHOWN
    assert f"and {MOST - CLIENTS_SHOWN} more" in words(html)


# --- who shares the store -------------------------------------------------------------------------


def shared_by(daemon: Daemon, *nodes: Node) -> None:
    daemon.wired.nodes = nodes


async def test_who_shares_the_store_is_shown_with_what_they_serve(daemon: Daemon) -> None:
    version = next(iter(daemon.registry)).credential.version
    here = Node("here", 1000.0, None, {APPID: version})
    shared_by(
        daemon,
        here,
        Node("there", 999.0, 880.0, {APPID: version}),
        Node("gone", 940.0, 100.0, {APPID: "k3f9-1"}),
    )
    said = (await (await daemon.get("/v1/status")).json())["nodes"]
    assert said[2] == {
        "node": "gone",
        "seen_ago": 60,
        "notified_ago": 900,
        "versions": {"main": "k3f9-1"},
    }
    assert [node["seen_ago"] for node in said] == [0, 1, 60]
    text = words(await page(daemon))
    assert "here just now never the same as this one" in text
    assert "there just now 2 min 0 s ago the same as this one" in text
    assert "gone 1 min 0 s ago 15 min 0 s ago another version of 1 app(s)" in text
    assert "与本实例相同" in await page(daemon, language="zh")
    table = ask.table(await (await daemon.get("/v1/status")).json())
    assert "node gone: seen 60 s ago, told of a change 900 s ago, serves main k3f9-1" in table


async def test_a_store_that_nobody_shares_shows_no_nodes(daemon: Daemon) -> None:
    assert (await (await daemon.get("/v1/status")).json())["nodes"] == []
    assert "share the store" not in await page(daemon)


async def test_tickets_are_shown_without_their_value(daemon: Daemon) -> None:
    await daemon.get("/v1/tickets/main/jsapi")
    daemon.bench.wechat.ticket_answers.append(DOWN)
    await daemon.get("/v1/tickets/main/wx_card")
    html = await page(daemon)
    assert CANARY not in html
    assert "Ticket jsapi valid, 2 h 0 min left" in words(html)
    assert "Ticket wx_card none cannot connect" in words(html)


# --- what the configuration permits, and which endpoint is the better choice ----------------------

DANGEROUS = f"""
[server]
trusted_proxies = ["10.0.0.0/8"]
[wechat]
api_base = "http://relay.example"
allow_plaintext = true
[compat]
enabled = true
[apps.main]
appid = "{APPID}"
secret = "{CANARY}-secret"
"""


@pytest.mark.parametrize("language", [ENGLISH, CHINESE])
async def test_what_is_dangerous_in_the_configuration_is_said(
    daemon: Daemon, tmp_path: Path, language: str
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(DANGEROUS)
    config.chmod(0o600)
    found = notices(load(config))
    codes = ["compat-without-clients", "plaintext", "trusted-proxies-without-clients"]
    assert sorted(one.code for one in found) == codes
    assert (await (await daemon.get("/v1/status")).json())["notices"] == []
    assert 'class="notices"' not in await page(daemon, language=language)
    daemon.wired.notices[:] = found
    html = await page(daemon, language=language)
    text = unescape(re.sub(r"<[^>]+>", "", html))
    for one in found:
        assert PAGE[language][f"notice_{one.code}"].replace("`", "") in text
    status = await (await daemon.get("/v1/status")).json()
    assert sorted(one["code"] for one in status["notices"]) == codes


@pytest.mark.parametrize("language", [ENGLISH, CHINESE])
def test_every_notice_can_be_said(language: str) -> None:
    codes = re.findall(r'Notice\(\s*"([a-z-]+)"', inspect.getsource(sys.modules[Notice.__module__]))
    assert len(codes) == 6
    assert [code for code in codes if f"notice_{code}" not in PAGE[language]] == []


async def test_the_page_shows_our_promise_and_wechats_own_end(daemon: Daemon) -> None:
    daemon.bench.clock.pass_(100)
    html, (app,) = await page(daemon), (await (await daemon.get("/v1/status")).json())["apps"]
    assert app["expires_in"] < app["token_expires_in"] == 7100
    assert value(html, "token_expires_in") == "7100"
    ends = '<progress class="ends" aria-labelledby="ends-1" max="7200" value="7100">'
    assert ends in html
    assert "WeChat's own end in 1 h 58 min" in words(html)


@pytest.mark.parametrize("endpoint", [Endpoint.TOKEN, Endpoint.STABLE])
@pytest.mark.parametrize("why", ["second-issuer", "lost-answer", "quota", ""])
async def test_it_says_when_the_stable_endpoint_is_the_better_choice(
    bench: Bench, why: str, endpoint: Endpoint
) -> None:
    daemon = Daemon(bench)
    quota = 2 if why == "quota" else 2000
    await daemon.start(Gate({}, []), [replace(ACCOUNT, endpoint=endpoint, daily_quota=quota)])
    for _ in range(2):
        await daemon.look()
        bench.clock.pass_(7000)
    (keeper,) = daemon.registry
    held = keeper.credential
    if why == "second-issuer":
        held = replace(held, second_issuer=SecondIssuer(1, NOON))
    elif why == "lost-answer":
        held = replace(held, suspicion=Suspicion(Doubt.LOST_ANSWER, 10_000.0, 10_200.0))
    keeper._live.credential = held
    for language in (ENGLISH, CHINESE):
        text = unescape(re.sub(r"<[^>]+>", "", await page(daemon, language=language)))
        said = [
            reason
            for reason in ("second-issuer", "lost-answer", "quota")
            if PAGE[language][f"stable_{reason}"].replace("`", "") in text
        ]
        assert said == ([why] if why and endpoint is Endpoint.TOKEN else [])
    await daemon.http.close()


# --- an installation that is replaced while it runs -----------------------------------------------


def test_pages_need_no_file_once_they_are_there(tmp_path: Path) -> None:
    here = tmp_path / "page"
    shutil.copytree(Path(status.__file__).parent, here)
    pages = Pages(here)
    shutil.rmtree(here)
    pages.prepare()
    facts = dict.fromkeys(("receivers", "nodes", "cards", "notices", "client_stats"), ())
    text = pages.render("status.html", ENGLISH, PAGE[ENGLISH], {**facts, **EMPTY})
    assert "Every app has a token." in text


EMPTY = {
    "headline": {"tone": "good", "text": PAGE[ENGLISH]["all_well"]},
    "is_one_of_many": False,
    "pages": 1,
    "page": 1,
    "version": "0",
    "uptime": "1 s",
}


async def test_what_makes_pages_is_imported_a_moment_after_the_start(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(status.FILES, "prepare", lambda: loop.call_soon_threadsafe(prepared.set))
    async with daemon.wired.page.prepared(0):
        await asyncio.wait_for(prepared.wait(), 10)
