"""A whole daemon that reaches out: to robots, a hook, a file and Redis; and what its log says."""

import json
import re
from typing import Any

import pytest

from tests.harness.doubles import APPID, CANARY
from tests.harness.processes import House, run, until
from tests.harness.redis_server import RedisServer

ROBOTS = (
    "/cgi-bin/webhook/send?key=k-{}",
    "/robot/send?access_token=signed-{}&secret=SECsandbox",
    "/open-apis/bot/v2/hook/signed-{}?secret=SECsandbox",
)


@pytest.fixture
def told(house: House) -> House:
    """A house whose [notify] names the three robots and a hook; `hold` is a second."""
    urls = house.home / "notify.urls"
    urls.write_text("".join(f"{house.sandbox}{path.format(CANARY)}\n" for path in ROBOTS))
    urls.chmod(0o600)
    hook = house.home / "hook"
    hook.write_text(f"#!/bin/sh\ncat >> {house.home}/hooked\n")
    hook.chmod(0o700)
    house.home.chmod(0o700)
    notify = '[notify]\nhook = "./hook"\nurls_file = "./notify.urls"\nhold = 1\n'
    house.configure(policy="min_gap = 0.2\nmax_backoff = 0.2", more=f'{notify}language = "zh-CN"')
    return house


def said(house: House) -> list[str]:
    texts: list[str] = [one["text"] for one in house.control("/robots")]
    return texts


def hooked(house: House) -> list[dict[str, Any]]:
    path = house.home / "hooked"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_40164_is_told_with_the_ip_once_and_again_when_it_is_over(told: House) -> None:
    told.control("/faults", {"kind": "errcode", "errcode": 40164, "times": 1000})
    with told.serving():
        until(lambda: len(said(told)) >= 6, "three robots hear of both states")
        texts = "\n".join(said(told))
        assert texts.count("微信拒绝了本服务器的 IP（main）") == 3
        assert texts.count("main 没有可用的令牌") == 3
        assert re.search(r"请在微信公众平台（mp.weixin.qq.com）把 \d+\.\d+\.\d+\.\d+ 加入", texts)
        until(lambda: len(hooked(told)) == 2, "so does the hook")
        assert {one["event"] for one in hooked(told)} == {"ip-not-whitelisted", "no-token"}
        status = told.get("/v1/status")[1]["notifications"]
        assert [one["trouble"] for one in status["receivers"]] == [None] * 4
        assert CANARY not in json.dumps(status)
    with told.serving():
        until(lambda: told.get("/v1/status")[1]["notifications"]["told"], "it is remembered")
        assert len(said(told)) == 6, "nothing is told twice over a restart"
    assert CANARY not in (told.home / "daemon.log").read_text()


def test_the_test_command_says_what_came_back(told: House) -> None:
    done = run("notify", "--test", "--config", str(told.config))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "hook hook: taken",
        "wecom 127.0.0.1: taken",
        "dingtalk 127.0.0.1: taken",
        "feishu 127.0.0.1: taken",
    ]
    assert sum("测试" in text for text in said(told)) == 3
    told.control("/robots", {"errcode": 93000})
    done = run("notify", "--test", "--config", str(told.config), TOKEN_BROKER_LOG_LEVEL="debug")
    assert done.returncode == 1
    assert "wecom 127.0.0.1: refused with errcode 93000 (the key in the URL is no" in done.stdout
    assert CANARY not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("gopher://example.org/x", "line 1 is no URL that Apprise knows"),
        (f"http://example.org/robot/send?access_token={CANARY}", "line 1 must be https"),
    ],
)
def test_a_url_that_will_not_do_is_refused_at_the_start_and_by_check(
    told: House, line: str, says: str
) -> None:
    (told.home / "notify.urls").write_text(line + "\n")
    for command in ("check", "serve"):
        done = run(command, "--config", str(told.config))
        assert (done.returncode, CANARY in done.stderr) == (78, False)
        assert f"notify.urls_file: {says}" in done.stderr


def test_nobody_named_is_said(house: House) -> None:
    done = run("notify", "--test", "--config", str(house.config))
    assert done.returncode == 78
    assert "names nobody" in done.stderr


@pytest.mark.needs("redis-server")
def test_the_token_is_where_programs_look_from_the_start_on(
    house: House, redis: RedisServer
) -> None:
    house.home.chmod(0o700)
    sinks = (
        '[[apps.main.sinks]]\nkind = "file"\npath = "./main.json"\n'
        '[[apps.main.sinks]]\nkind = "file"\npath = "./main.token"\nformat = "token"\n'
        f'[[apps.main.sinks]]\nkind = "redis"\nurl = "{redis.url}"\nformat = "wechatpy"\n'
    )
    house.configure(more=sinks)
    with house.serving():
        until((house.home / "main.token").exists, "a token")
        status, token = house.get("/v1/tokens/main")
        assert status == 200
        assert (house.home / "main.token").read_text() == token["access_token"]
        held = json.loads((house.home / "main.json").read_text())
        assert (held["access_token"], held["appid"]) == (token["access_token"], APPID)
        until(
            lambda: (
                [one["state"] for one in house.get("/v1/status")[1]["apps"][0]["sinks"]]
                == ["current"] * 3
            ),
            "all three have it",
        )
        redis.stop()
        house.post("/v1/tokens/main/refresh")
    log = (house.home / "daemon.log").read_text()
    assert token["access_token"] not in log
