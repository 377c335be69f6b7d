"""Receivers over real sockets: the sandbox's robots, webhooks, a hook, what Apprise reaches."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from broker.config.complaints import ConfigError
from broker.config.settings import NotifySettings
from broker.core.secret import Secret
from broker.notify import apprise
from broker.notify.events import Event, StateChange
from broker.notify.hook import Hook
from broker.notify.receivers import receivers
from broker.notify.result import TAKEN, Receiver, SendResult, Trouble
from broker.notify.robots import LONGEST_TEXT, shortened
from broker.notify.states import StateKind, TroubleState
from broker.sandbox import SandboxOptions, create_app
from broker.sandbox.robots import MOST_A_MINUTE, SECRET
from broker.sandbox.state import STATE
from broker.system import log
from tests.harness.doubles import APPID, CANARY, NOON

STATE_40164 = TroubleState(
    StateKind.IP_NOT_ALLOWED,
    "main",
    facts={"appid": APPID, "platform": "wechat", "errcode": 40164, "ip": "203.0.113.7"},
)
EVENT = Event(StateChange.ENTERED, NOON + 300, STATE_40164, NOON, language="zh-CN")
OVER = Event(StateChange.LEFT, NOON + 900, STATE_40164, NOON)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def told(*urls: str, hook: Path | None = None) -> list[Receiver]:
    lines = tuple((number, Secret(url)) for number, url in enumerate(urls, start=1))
    return receivers(NotifySettings(hook=hook, urls=lines))


async def send(url: str, event: Event = EVENT) -> SendResult:
    (receiver,) = told(url)
    return await receiver.send(event)


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/{path:.*}", handler)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


@pytest.fixture
async def sandbox() -> AsyncIterator[TestServer]:
    server = TestServer(create_app(SandboxOptions()))
    await server.start_server(access_log=None)  # it is not WeChat's log that must keep still
    yield server
    await server.close()


ROBOTS = {
    "wecom": "/cgi-bin/webhook/send?key={}",
    "dingtalk": "/robot/send?access_token={}",
    "feishu": "/open-apis/bot/v2/hook/{}",
}


def url_of(sandbox: TestServer, robot: str, key: str = "k") -> str:
    return f"http://127.0.0.1:{sandbox.port}{ROBOTS[robot].format(key)}"


def said(sandbox: TestServer) -> list[dict[str, str]]:
    return list(sandbox.app[STATE].robots.said)


# --- robots ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("robot", ROBOTS)
async def test_each_robot_gets_what_a_person_must_do_with_the_ip(
    sandbox: TestServer, robot: str
) -> None:
    assert await send(url_of(sandbox, robot)) == TAKEN
    (message,) = said(sandbox)
    assert message["robot"] == robot
    assert "203.0.113.7" in message["text"]
    assert "IP 白名单" in message["text"]
    assert "北京时间 2026-09-21 22:13（2026-09-21 14:13 UTC）" in message["text"]


@pytest.mark.parametrize(
    ("robot", "errcode"), [("wecom", 93000), ("dingtalk", 300005), ("feishu", 19001)]
)
async def test_a_robots_errcode_is_read_though_it_answers_200(
    sandbox: TestServer, robot: str, errcode: int
) -> None:
    assert await send(url_of(sandbox, robot, "wrong")) == SendResult(Trouble.REFUSED, errcode)
    assert said(sandbox) == []


@pytest.mark.parametrize(
    ("robot", "mark", "errcode"), [("dingtalk", "&", 310000), ("feishu", "?", 19021)]
)
async def test_a_robot_that_wants_signatures_gets_them(
    sandbox: TestServer, robot: str, mark: str, errcode: int
) -> None:
    url = url_of(sandbox, robot, "signed")
    assert await send(url) == SendResult(Trouble.REFUSED, errcode)
    assert await send(f"{url}{mark}secret=another") == SendResult(Trouble.REFUSED, errcode)
    assert await send(f"{url}{mark}secret={SECRET}") == TAKEN
    assert len(said(sandbox)) == 1


@pytest.mark.parametrize(
    ("robot", "errcode"), [("wecom", 45009), ("dingtalk", 130101), ("feishu", 11232)]
)
async def test_a_robot_that_is_told_too_much_says_so(
    sandbox: TestServer, robot: str, errcode: int
) -> None:
    for _ in range(MOST_A_MINUTE):
        assert await send(url_of(sandbox, robot)) == TAKEN
    assert await send(url_of(sandbox, robot)) == SendResult(Trouble.REFUSED, errcode)


@pytest.mark.parametrize(
    ("status", "answer", "result"),
    [
        (200, b"<html>", SendResult(Trouble.NO_ANSWER_OF_ITS_KIND)),
        (200, b'{"errcode": "0"}', SendResult(Trouble.NO_ANSWER_OF_ITS_KIND)),
        (200, b"[" * 100_000, SendResult(Trouble.NO_ANSWER_OF_ITS_KIND)),
        (502, b"{}", SendResult(Trouble.HTTP_STATUS, 502)),
        (400, b'{"errcode": 40008}', SendResult(Trouble.REFUSED, 40008)),
        (302, b"", SendResult(Trouble.HTTP_STATUS, 302)),
    ],
)
async def test_whatever_a_robots_address_answers_is_said_by_its_kind(
    status: int, answer: bytes, result: SendResult
) -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.path == "/cgi-bin/webhook/send", "a redirect is not followed"
        return web.Response(status=status, body=answer, headers={"Location": "/elsewhere"})

    async with serving(handler) as base:
        assert await send(f"{base}/cgi-bin/webhook/send?key=k") == result


def test_a_long_text_is_cut_where_every_robot_takes_it() -> None:
    assert shortened("好" * 10) == "好" * 10
    assert len(shortened("好" * 2000).encode()) <= LONGEST_TEXT + 3


# --- plain webhooks -------------------------------------------------------------------------------


async def test_a_webhook_gets_what_alertmanager_would_post() -> None:
    bodies: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        return web.Response()

    async with serving(handler) as base:
        assert await send(f"{base}/alerts") == TAKEN
        assert await send(f"{base}/alerts", OVER) == TAKEN
    firing, resolved = bodies
    assert (firing["version"], firing["status"], resolved["status"]) == ("4", "firing", "resolved")
    (alert,), (over,) = firing["alerts"], resolved["alerts"]
    assert alert["labels"] == {
        "alertname": "ip-not-whitelisted",
        "severity": "critical",
        "app": "main",
    }
    assert (alert["startsAt"], alert["endsAt"]) == ("2026-09-21T14:13:20Z", "0001-01-01T00:00:00Z")
    assert (over["startsAt"], over["endsAt"]) == ("2026-09-21T14:13:20Z", "2026-09-21T14:28:20Z")
    assert alert["fingerprint"] == over["fingerprint"]
    assert firing["event"]["facts"]["ip"] == "203.0.113.7"


async def test_a_webhook_that_nobody_serves_or_that_hangs_costs_its_deadline_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("broker.notify.webhook.DEADLINE_S", 0.2)
    hanging = asyncio.Event()

    async def handler(_request: web.Request) -> web.Response:
        await hanging.wait()
        return web.Response()

    async with serving(handler) as base:
        assert await send(f"{base}/x") == SendResult(Trouble.TIMEOUT)
        hanging.set()
    assert await send(f"{base}/x") == SendResult(Trouble.UNREACHABLE)


async def test_an_endless_answer_is_cut() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(b"x" * 1024)
        return response

    async with serving(handler) as base:
        assert await send(f"{base}/cgi-bin/webhook/send?key=k") == SendResult(
            Trouble.NO_ANSWER_OF_ITS_KIND
        )


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"nothing-of-this://{CANARY}", "line 1 is no URL that Apprise knows"),
        (CANARY, "line 1 is no URL"),
        ("https://", "line 1 names no host"),
        (f"http://example.org/robot/send?access_token={CANARY}", "line 1 must be https"),
        (f"https://example.org:x/{CANARY}", "line 1 is no URL"),
    ],
)
def test_a_url_that_will_not_do_is_named_by_its_line_and_not_quoted(url: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        told(url)
    (error,) = caught.value.errors
    assert error.startswith("notify.urls_file: ")
    assert says in error
    assert CANARY not in error


def test_without_the_extra_apprise_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apprise, "is_installed", lambda: False)
    with pytest.raises(ConfigError, match=r"wechat-token-broker\[notify\]"):
        told("bark://example.org/key")


def test_labels_tell_receivers_apart_and_hold_no_key() -> None:
    url = f"https://oapi.dingtalk.com/robot/send?access_token={CANARY}"
    labels = [one.label for one in told(url, url + "2", f"https://u:{CANARY}@example.org/x")]
    assert labels == [
        "dingtalk oapi.dingtalk.com #1",
        "dingtalk oapi.dingtalk.com #2",
        "webhook example.org",
    ]


# --- Apprise --------------------------------------------------------------------------------------


async def test_apprise_reaches_what_it_knows() -> None:
    bodies: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        return web.Response(status=200 if len(bodies) == 1 else 500)

    async with serving(handler) as base:
        url = base.replace("http", "json")
        assert await send(url) == TAKEN
        assert await send(url) == SendResult(Trouble.NOT_DELIVERED)
    assert "203.0.113.7" in bodies[0]["message"]
    assert bodies[0]["type"] == "failure"


async def test_no_url_gets_into_a_log_even_at_debug(
    sandbox: TestServer,
) -> None:
    stream = io.StringIO()
    log.configure("debug", stream)
    try:
        for url in (
            url_of(sandbox, "wecom", CANARY),
            url_of(sandbox, "wecom", f"wrong{CANARY}"),
            f"json://127.0.0.1:{sandbox.port}/{CANARY}",
            f"json://127.0.0.1:9/{CANARY}",
            f"https://127.0.0.1:9/{CANARY}",
        ):
            await send(url)
        logging.getLogger("broker.test").debug("we are at debug")
        log.tell("store-failed", reason="\x9b2J \ud83d")
    finally:
        logging.basicConfig(handlers=[], force=True)
    assert "we are at debug" in stream.getvalue()
    assert '"reason": "\ufffd2J \ufffd"' in stream.getvalue()  # nothing steers a terminal
    assert CANARY not in stream.getvalue()


# --- the hook -------------------------------------------------------------------------------------


def script(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hook"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return path


async def test_the_hook_gets_the_event_on_stdin_and_its_name_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN_BROKER_SECRET_MAIN", CANARY)
    out = tmp_path / "out"
    hook = Hook(script(tmp_path, f"cat > {out}.json; env > {out}.env"))
    assert await hook.send(EVENT) == TAKEN
    event = json.loads(Path(f"{out}.json").read_text())
    assert event == EVENT.as_json()
    environ = Path(f"{out}.env").read_text()
    assert "TOKEN_BROKER_EVENT=ip-not-whitelisted\n" in environ
    assert "TOKEN_BROKER_APP=main\n" in environ
    assert CANARY not in environ


async def test_a_hook_that_fails_says_with_what(tmp_path: Path) -> None:
    assert await Hook(script(tmp_path, "exit 3")).send(EVENT) == SendResult(Trouble.EXIT, 3)
    assert await Hook(tmp_path / "none").send(EVENT) == SendResult(Trouble.NOT_STARTED)


async def test_a_hook_need_not_read_what_it_is_told(tmp_path: Path) -> None:
    assert await Hook(script(tmp_path, "exec 0<&-; true")).send(EVENT) == TAKEN


async def test_a_hook_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    hook = Hook(script(tmp_path, f"sleep 1000 & echo $$ $! > {pids}; wait"), deadline_s=0.5)
    assert await hook.send(EVENT) == SendResult(Trouble.TIMEOUT)
    async with asyncio.timeout(10):
        for pid in pids.read_text().split():
            while _runs(pid):
                await asyncio.sleep(0.01)


def _runs(pid: str) -> bool:
    """Whether a process runs; a zombie whose parent has not asked does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_a_child_left_behind_does_not_outlive_the_hook(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    hook = Hook(script(tmp_path, f"sleep 1000 > /dev/null 2>&1 & echo $! > {pid}"))
    assert await hook.send(EVENT) == TAKEN
    async with asyncio.timeout(10):
        while _runs(pid.read_text().strip()):
            await asyncio.sleep(0.01)


async def test_one_hook_runs_at_a_time(tmp_path: Path) -> None:
    busy = tmp_path / "busy"
    hook = Hook(script(tmp_path, f"mkdir {busy} || exit 7; sleep 0.1; rmdir {busy}"))
    results = await asyncio.gather(*(hook.send(EVENT) for _ in range(4)))
    assert results == [TAKEN] * 4


async def test_what_a_hook_prints_is_logged_at_debug_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(log, "tell", lambda _event, **facts: lines.append(facts["output"]))
    hook = Hook(script(tmp_path, "head -c 100000 /dev/zero | tr '\\0' x; echo >&2 end"))
    assert await hook.send(EVENT) == TAKEN
    assert 16 * 1024 - 10 <= sum(map(len, lines)) <= 16 * 1024
    assert log._level("hook-output") == logging.DEBUG
