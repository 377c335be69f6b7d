"""What the companion answers when it cannot show anything.

Each reason has its status, its sentence, and the time after which to come back.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from broker.sandbox import SandboxOptions
from tests.harness.companion import BATCHGET, TTL, USER_GET, Scene, scene
from tests.harness.doubles import APPID

QUIET_DAY = 1_790_006_400.0  # 2026-09-22 00:00 in Beijing


async def refusal(there: Scene, path: str = "/avatars") -> dict[str, Any]:
    """The problem that it answers with, checked for what every problem has."""
    response = await there.ask(path)
    body: dict[str, Any] = await response.json()
    assert response.content_type == "application/problem+json"
    assert body["status"] == response.status
    assert response.headers.get("Retry-After") == (
        str(body["retry_after"]) if "retry_after" in body else None
    )
    return body


# --- the token ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "asked"), [(USER_GET, "/v1/avatars"), (BATCHGET, "/avatars/OPENID")]
)
async def test_a_killed_token_is_reported_replaced_and_the_call_repeated_once(
    there: Scene, path: str, asked: str
) -> None:
    openid = (await there.openids())[0]
    there.clock.pass_(TTL)
    await there.control("/kill", {"appid": APPID})
    calls = there.wire.calls.copy()
    response = await there.ask(asked.replace("OPENID", openid))
    assert response.status in {200, 302}
    assert "Warning" not in response.headers
    assert there.wire.calls["/cgi-bin/token"] == calls["/cgi-bin/token"] + 1
    assert there.wire.calls[path] == calls[path] + 2
    assert there.told == []


async def test_a_token_that_stays_refused_is_repeated_once_and_then_said(there: Scene) -> None:
    await there.fault(USER_GET, times=None, errcode=40001)
    body = await refusal(there)
    assert (body["status"], body["code"]) == (503, "token-refused")
    assert "(40001)" in body["detail"]
    assert there.wire.calls[USER_GET] == 2


# --- WeChat says no -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("errcode", "status", "code", "said"),
    [
        (48001, 502, "account-not-verified", "verify this account at mp.weixin.qq.com"),
        ("48001", 502, "account-not-verified", "verify this account"),
        (45009, 503, "quota-exhausted", "come back at midnight, Beijing time"),
        (
            40164,
            503,
            "ip-not-allowed",
            "this server's address 203.0.113.7 (40164): add it to the IP whitelist",
        ),
        (45011, 503, "slow-down", "Try again in a minute"),
        (-1, 503, "upstream-unavailable", "tried again by itself"),
        (50002, 502, "upstream-refused", "errcode 50002"),
    ],
)
@pytest.mark.parametrize("path", [USER_GET, BATCHGET])
async def test_an_errcode_becomes_a_sentence_that_says_what_to_do(
    there: Scene, path: str, errcode: int | str, status: int, code: str, said: str
) -> None:
    if isinstance(errcode, str):
        await there.fault(
            path, "garbage", body=json.dumps({"errcode": errcode, "errmsg": "api unauthorized"})
        )
    else:
        await there.fault(path, errcode=errcode)
    body = await refusal(there)
    assert (body["status"], body["code"]) == (status, code)
    assert said in body["detail"]
    assert ("retry_after" in body) == (status == 503)


async def test_a_spent_quota_says_when_the_beijing_day_ends(there: Scene) -> None:
    there.clock.unix = QUIET_DAY - 3600
    await there.fault(USER_GET, errcode=45009)
    assert (await refusal(there))["retry_after"] == 3600


async def test_after_a_refusal_wechat_is_left_alone_for_a_while(there: Scene) -> None:
    await there.fault(USER_GET, times=None, errcode=48001)
    for _ in range(10):
        assert (await refusal(there))["code"] == "account-not-verified"
    assert there.wire.calls[USER_GET] == 1
    there.clock.pass_(60)
    await there.control("/faults", {"kind": "drop", "path": "/none"})
    assert (await refusal(there))["code"] == "account-not-verified"
    assert there.wire.calls[USER_GET] == 2
    assert [event for event, _ in there.told] == ["trouble"]


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 502, "body": "<html>"},
        {"kind": "status", "status": 302, "headers": {"Location": "/elsewhere"}},
        {"kind": "drop"},
        {"kind": "reset"},
        {"kind": "garbage"},
        {"kind": "garbage", "body": ""},
        {"kind": "garbage", "body": "[]"},
        {"kind": "garbage", "body": '{"total":"many"}'},
        {"kind": "garbage", "body": '{"total":1,"data":{"openid":[1]}}'},
        {"kind": "garbage", "base64": "//79"},
        {"kind": "gzip_bomb"},
        {"kind": "endless_body"},
    ],
    ids=lambda fault: "-".join(map(str, fault.values()))[:40],
)
async def test_what_is_no_answer_is_a_503_and_not_repeated(
    there: Scene, fault: dict[str, Any]
) -> None:
    await there.fault(USER_GET, **fault)
    body = await refusal(there)
    assert (body["status"], body["code"], body["retry_after"]) == (503, "upstream-unavailable", 5)
    assert there.wire.calls[USER_GET] == 1
    assert there.wire.calls["/elsewhere"] == 0, "a redirect would take the token along"
    there.clock.pass_(5)
    assert (await there.get("/avatars"))[0] == 200


async def test_no_answer_in_time_is_said_with_the_time(tmp_path: Path) -> None:
    async with scene(tmp_path, timeout_s=0.2) as there:
        await there.fault(USER_GET, "silence")
        assert "no answer within 0.2 s" in (await refusal(there))["detail"]


# --- the daemon -----------------------------------------------------------------------------------


async def test_without_a_daemon_every_route_says_so_and_when_to_come_back(tmp_path: Path) -> None:
    async with scene(tmp_path, away=True) as there:
        for path in ("/avatars", "/v1/avatars", "/avatars/oabc"):
            body = await refusal(there, path)
            assert (body["status"], body["code"]) == (503, "broker-unavailable")
            assert body["retry_after"] >= 1
            assert "`token-broker serve`" in body["detail"]
            assert "http://127.0.0.1:9" in body["detail"]
        gallery = await there.ask("/")
        assert (gallery.status, gallery.content_type) == (503, "text/html")
        assert int(gallery.headers["Retry-After"]) >= 1
        assert "token-broker serve" in await gallery.text()
        assert (await there.get("/livez"))[0] == 200
        status, probe = await there.get("/readyz")
        assert (status, probe["status"]) == (503, "fail")
        assert "does not answer" in probe["output"]


async def test_a_daemon_that_goes_away_leaves_the_list_and_the_companion_ready(
    there: Scene,
) -> None:
    urls = (await there.get("/avatars"))[1]
    await there.daemon.aclose()
    there.clock.pass_(TTL - 1)
    assert (await there.get("/avatars"))[1] == urls
    assert (await there.get("/readyz"))[0] == 200


async def test_a_daemon_without_a_token_is_not_an_absent_one(tmp_path: Path) -> None:
    async with scene(tmp_path, away=True) as away:
        await away.control("/faults", {"kind": "errcode", "errcode": 40164, "times": None})
        await away.start_daemon()
        async with scene(tmp_path, away=True, broker=away.broker) as there:
            body = await refusal(there)
            assert (body["status"], body["code"]) == (503, "no-token")
            assert "203.0.113.7" in body["detail"]
            assert "upstream-refused" in body["detail"]
            assert (await there.get("/readyz"))[0] == 503


async def test_an_app_the_daemon_does_not_know_is_the_companions_own_configuration(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path, app="nobody") as there:
        body = await refusal(there)
        assert (body["status"], body["code"]) == (502, "broker-refused")
        assert "unknown-app" in body["detail"]
        assert "[avatars]" in body["detail"]


async def test_readyz_asks_the_daemon_and_never_wechat(there: Scene) -> None:
    assert await there.get("/readyz") == (200, {"status": "pass"})
    assert not [path for path in there.wire.calls if path.startswith("/cgi-bin/user")]


# --- in their language, and without a word too many -----------------------------------------------


async def test_the_page_says_it_in_chinese_to_who_reads_that(there: Scene) -> None:
    await there.fault(USER_GET, errcode=48001)
    response = await there.ask("/", **{"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.8"})
    page = await response.text()
    assert response.status == 502
    assert '<html lang="zh-CN">' in page
    assert "已认证的公众号" in page
    assert (response.headers["Content-Language"], response.headers["Vary"]) == (
        "zh-CN",
        "Accept-Language",
    )


async def test_a_wrong_address_is_a_page_for_people_too(there: Scene) -> None:
    response = await there.ask("/?cursor=nonsense")
    assert (response.status, response.content_type) == (400, "text/html")
    assert "This address is not right" in await response.text()


async def test_no_answer_and_no_line_holds_a_token(
    there: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    async with there.http.get(
        f"{there.broker}/v1/tokens/main", headers={"X-Token-Broker": "1"}
    ) as response:
        token = (await response.json())["access_token"]
    said = ""
    for fault in (
        {"kind": "drop"},
        {"kind": "status", "status": 500},
        {"errcode": 48001},
        {"kind": "garbage", "body": token},
    ):
        await there.fault(USER_GET, **fault)
        there.clock.pass_(61)
        for path in ("/avatars", "/", "/v1/avatars?limit=0"):
            response = await there.ask(path)
            said += await response.text() + str(response.headers)
    assert token not in said + str(there.told) + caplog.text


async def test_markup_in_a_nickname_stays_text(there: Scene) -> None:
    openids = await there.openids()
    there.clock.pass_(TTL)
    name = "<script>alert(1)</script>\"'&"
    url = 'http://thirdwx.qlogo.cn/mmopen/a"onerror="alert(1)/132'
    infos = [
        {"subscribe": 1, "openid": openid, "nickname": name, "headimgurl": url}
        for openid in openids
    ]
    await there.fault(BATCHGET, "answer", answer={"user_info_list": infos})
    page = (await there.get("/"))[1]
    assert "<script" not in page
    assert "onerror" not in page
    assert "&lt;script&gt;" in page


async def test_half_an_emoji_in_a_nickname_spoils_no_page(there: Scene) -> None:
    openids = await there.openids()
    there.clock.pass_(TTL)
    infos = [
        {"subscribe": 1, "openid": openid, "nickname": "half \ud83d\x1b[2J"} for openid in openids
    ]
    # As bytes: the sandbox would put a question mark in the place of the half.
    await there.fault(BATCHGET, "garbage", body=json.dumps({"user_info_list": infos}))
    status, page = await there.get("/")
    assert status == 200
    assert "half \ufffd[2J" in page


async def test_a_page_that_ends_while_others_wait_leaves_nothing_behind(tmp_path: Path) -> None:
    async with scene(tmp_path, SandboxOptions(followers=3)) as there:
        there.wire.gate.clear()
        asking = asyncio.create_task(there.get("/avatars"))
        while not there.wire.calls[USER_GET]:
            await asyncio.sleep(0)
        asking.cancel()
    assert not [task for task in asyncio.all_tasks() if "_fetch" in str(task.get_coro())]
