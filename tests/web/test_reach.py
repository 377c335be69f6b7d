"""Sinks, notifications and hand-outs: on the page, in /v1/status, metrics and the command."""

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.cli import query
from broker.http.language import CHINESE, ENGLISH
from broker.notify.result import Trouble
from broker.notify.states import StateKind
from broker.sinks.outcome import SinkFault
from broker.web.gate import Gate
from broker.web.page.messages import PAGE
from broker.web.reach import Reach
from tests.harness.api import Daemon
from tests.harness.doubles import CANARY, Bench

AT = "2026-09-21T14:13:20Z"
NOTIFICATIONS = {
    "receivers": [
        {
            "receiver": "wecom qyapi.weixin.qq.com",
            "sent": 3,
            "lost": 1,
            "waiting": 0,
            "last_sent": AT,
            "trouble": {"code": "refused", "number": 93000, "since": AT},
        },
        {
            "receiver": "hook notify",
            "sent": 0,
            "lost": 0,
            "waiting": 0,
            "last_sent": None,
            "trouble": None,
        },
    ],
    "told": [{"event": "ip-not-whitelisted", "app": "main", "about": "", "since": AT}],
    "held_back": True,
}
SINKS: list[dict[str, Any]] = [
    {
        "sink": "redis 127.0.0.1:6379/0 token-broker:main",
        "state": "behind",
        "version": None,
        "written": None,
        "trouble": {"code": "wrong-password", "since": AT},
    },
    {
        "sink": "file /run/x/main.json",
        "state": "current",
        "version": "e-1",
        "written": AT,
        "trouble": None,
    },
]


@pytest.fixture
async def daemon(bench: Bench) -> AsyncIterator[Daemon]:
    daemon = Daemon(bench)
    await daemon.start(Gate({}, []), reach=Reach(lambda: NOTIFICATIONS, lambda _: SINKS))
    await daemon.look()
    yield daemon
    await daemon.http.close()


async def page(daemon: Daemon, language: str) -> str:
    answer = await daemon.http.get("/", headers={"Accept-Language": language})
    html = await answer.text()
    assert answer.status == 200
    assert CANARY not in html
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


async def test_the_page_shows_all_three_in_both_languages(daemon: Daemon) -> None:
    await daemon.get("/v1/tokens/main")
    english, chinese = await page(daemon, "en"), await page(daemon, "zh-CN")
    for said in (
        "redis 127.0.0.1:6379/0 token-broker:main behind: wrong password 2026-09-21 14:13 UTC",
        "file /run/x/main.json holds the token in force",
        "wecom qyapi.weixin.qq.com refused (code 93000)",
        "IP not whitelisted ( main ) 2026-09-21 14:13 UTC",
        "More has happened than is told in an hour",
        "this machine (no clients configured)",
        "(in force) 1 2026-09-21 14:13 UTC",
    ):
        assert said in english
    for said in ("未更新： 密码错误", "被拒绝（代码 93000）", "IP 不在白名单", "（当前） 1"):
        assert said in chinese.replace("：密码", "： 密码")


async def test_status_and_metrics_say_what_is_behind(daemon: Daemon) -> None:
    status = await (await daemon.get("/v1/status")).json()
    assert status["notifications"] == NOTIFICATIONS
    assert status["apps"][0]["sinks"] == SINKS
    text = await (await daemon.get("/metrics")).text()
    assert (
        'token_broker_sink_behind{app="main",sink="redis 127.0.0.1:6379/0 token-broker:main"} 1.0'
        in text
    )
    assert 'token_broker_sink_behind{app="main",sink="file /run/x/main.json"} 0.0' in text
    assert (
        'token_broker_notifications_total{outcome="lost",receiver="wecom qyapi.weixin.qq.com"} 1.0'
        in text
    )
    assert 'token_broker_receiver_failing{receiver="hook notify"} 0.0' in text
    table = query.table(status)
    assert "main: redis 127.0.0.1:6379/0 token-broker:main is behind: wrong-password" in table
    assert "wecom qyapi.weixin.qq.com: not told: refused 93000" in table
    status["apps"][0]["store_error"] = "\x1b[2J \ud83d"
    assert "main: the store: \ufffd[2J \ufffd" in query.table(status)


def test_each_code_has_words_in_both_languages() -> None:
    keys = {f"trouble_{code.value}" for code in (*Trouble, *SinkFault)}
    keys |= {f"event_{kind.value}" for kind in StateKind}
    keys |= {f"sink_{state}" for state in ("current", "behind", "waiting", "empty")}
    for language in (ENGLISH, CHINESE):
        assert keys <= PAGE[language].keys()


async def test_times_are_elements_that_a_script_can_put_into_the_readers_zone(
    daemon: Daemon,
) -> None:
    html = await (await daemon.http.get("/")).text()
    assert f'<time datetime="{AT}">2026-09-21 14:13 UTC</time>' in html
    outside = re.sub(r"<time[^>]*>[^<]*</time>|<title>[^<]*</title>", "", html)
    assert " UTC" not in outside
