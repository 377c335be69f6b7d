"""The sandbox's control routes: what was seen, the second issuer, the kill, the clock, the gate."""

import asyncio
import hashlib

import pytest
from pytest_aiohttp import AiohttpClient

from broker.sandbox import SandboxOptions
from tests.harness.sandbox_bench import APP, SECRET, T0, SandboxBench


async def until_in_flight(bench: SandboxBench, count: int) -> None:
    """Poll, by requests: as long as it takes, within reason."""
    async with asyncio.timeout(5):
        while (await bench.account())["in_flight"] != count:
            pass


async def test_the_description_has_options_accounts_faults_and_documentation(
    bench: SandboxBench,
) -> None:
    await bench.classic()
    await bench.stable()
    bench.time = T0 + 86_400
    await bench.classic("wx_other")
    await bench.post("/sandbox/faults", {"kind": "drop", "times": 3})
    await bench.post("/sandbox/faults", {"kind": "drop", "appid": "wx_other"})
    shown = await bench.get("/sandbox")
    assert shown["options"]["daily_quota"] == 2000
    assert "POST /sandbox/faults" in shown["routes"]
    assert "seconds" in shown["kinds"]["silence"]["fields"]
    assert [fault["left"] for fault in shown["faults"]] == [3, 1]
    assert (shown["token_calls"], shown["accounts"]["wx_other"]["faults"]) == (3, 2)
    assert shown["accounts"][APP] == {
        "calls": {"token": {"today": 0, "total": 1}, "stable_token": {"today": 0, "total": 1}},
        "in_flight": 0,
        "max_in_flight": 1,
        "quota_used": {"token": 0, "stable_token": 0, "force_refresh": 0, "user/get": 0},
        "live_tokens": 0,
        "followers": 24,
        "withhold": False,
        "held": False,
        "faults": 1,
    }


async def test_calls_are_logged_in_order_with_the_hash_of_the_token(bench: SandboxBench) -> None:
    minted = await bench.classic()
    await bench.classic(secret="wrong")
    bench.time = T0 + 5
    same = [await bench.stable(), await bench.stable(force=True)]
    calls = await bench.calls()
    assert [call["n"] for call in calls] == [1, 2, 3, 4]
    assert [call["outcome"] for call in calls] == [0, 40125, 0, 0]
    assert [call["minted"] for call in calls] == [True, False, True, True]
    assert [call["force"] for call in calls] == [False, False, False, True]
    assert (calls[3]["endpoint"], calls[3]["at"], calls[3]["by"]) == (
        "stable_token",
        T0 + 5,
        "client",
    )
    assert calls[1]["token_sha256"] is None
    for call, granted in zip([calls[0], *calls[2:]], [minted, *same], strict=True):
        assert call["token_sha256"] == hashlib.sha256(granted["access_token"].encode()).hexdigest()
    assert [call["n"] for call in await bench.calls(since=2)] == [3, 4]
    assert await bench.calls(since=99) == []


async def test_a_second_issuer_pushes_our_token_out_and_spends_our_quota(
    aiohttp_client: AiohttpClient,
) -> None:
    bench = await SandboxBench().opened(aiohttp_client, SandboxOptions(daily_quota=2))
    ours = await bench.classic()
    await bench.post("/sandbox/faults", {"kind": "drop", "times": None})
    call = await bench.post("/sandbox/issue", {"appid": APP})
    assert (call["by"], call["minted"], call["outcome"]) == ("second-issuer", True, 0)
    assert await bench.errcode(ours) == 0
    bench.time = T0 + 300
    assert await bench.errcode(ours) == 40001
    assert (await bench.post("/sandbox/issue", {"appid": APP}))["outcome"] == 45009
    assert (await bench.account())["quota_used"]["token"] == 2


async def test_kill_refuses_all_live_tokens_of_the_account_and_no_others(
    bench: SandboxBench,
) -> None:
    mine = [await bench.classic(), await bench.classic(), await bench.stable()]
    other = await bench.classic("wx_other")
    assert (await bench.account())["live_tokens"] == 3
    await bench.post("/sandbox/kill", {"appid": APP})
    assert [await bench.errcode(token) for token in [*mine, other]] == [40001, 40001, 40001, 0]
    assert (await bench.account())["live_tokens"] == 0


async def test_advance_moves_the_clock(bench: SandboxBench) -> None:
    token = await bench.classic()
    await bench.post("/sandbox/advance", {"seconds": 7199})
    assert await bench.errcode(token) == 0
    await bench.post("/sandbox/advance", {"seconds": 1.5})
    assert await bench.errcode(token) == 42001


async def test_followers_can_come_and_go_and_withhold(bench: SandboxBench) -> None:
    token = (await bench.classic())["access_token"]
    before = (await bench.get("/cgi-bin/user/get", access_token=token))["data"]["openid"]
    await bench.post("/sandbox/followers", {"appid": APP, "followers": 2, "withhold": True})
    assert (await bench.get("/cgi-bin/user/get", access_token=token))["data"]["openid"] == before[
        :2
    ]
    info = await bench.get("/cgi-bin/user/info", access_token=token, openid=before[0])
    assert (info["subscribe"], info["headimgurl"]) == (1, "")
    info = await bench.get("/cgi-bin/user/info", access_token=token, openid=before[2])
    assert info == {"subscribe": 0, "openid": before[2]}


async def test_held_calls_wait_and_all_go_on_at_once_when_released(bench: SandboxBench) -> None:
    await bench.post("/sandbox/hold", {"appid": APP})
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(bench.classic()) for _ in range(5)]
        await until_in_flight(bench, 5)
        assert [call["outcome"] for call in await bench.calls()] == [None] * 5
        assert (await bench.account())["held"]
        assert "access_token" in await bench.classic("wx_other")
        await bench.post("/sandbox/release", {"appid": APP})
    assert len({task.result()["access_token"] for task in tasks}) == 5
    account = await bench.account()
    assert (account["in_flight"], account["max_in_flight"], account["held"]) == (0, 5, False)


async def test_a_held_call_whose_peer_hangs_up_mints_nothing_and_is_no_longer_in_flight(
    bench: SandboxBench,
) -> None:
    await bench.post("/sandbox/hold", {"appid": APP})
    task = asyncio.create_task(bench.classic())
    await until_in_flight(bench, 1)
    task.cancel()
    await until_in_flight(bench, 0)
    await bench.post("/sandbox/release", {"appid": APP})
    assert [(call["outcome"], call["minted"]) for call in await bench.calls()] == [
        ("hung-up", False)
    ]


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("faults", "[]", "JSON object"),
        ("faults", "{", "JSON"),
        ("faults", "{}", "kind"),
        ("faults", '{"kind": "nothing"}', "kind"),
        ("faults", '{"kind": ["drop"]}', "kind"),
        ("faults", '{"kind": "drop", "colour": 1}', "colour"),
        ("faults", '{"kind": "drop", "seconds": 1}', "seconds"),
        ("faults", '{"kind": "drop", "times": 0}', "times"),
        ("faults", '{"kind": "drop", "times": true}', "times"),
        ("faults", '{"kind": "drop", "appid": 7}', "appid"),
        ("faults", '{"kind": "drop", "mint": 1}', "mint"),
        ("faults", '{"kind": "errcode"}', "errcode"),
        ("faults", '{"kind": "errcode", "errcode": "40001"}', "errcode"),
        ("faults", '{"kind": "status", "status": 99}', "status"),
        ("faults", '{"kind": "status", "status": 302, "headers": {"A": "b\\r\\nC: d"}}', "headers"),
        ("faults", '{"kind": "garbage", "base64": "?"}', "base64"),
        ("faults", '{"kind": "silence", "seconds": -1}', "seconds"),
        ("faults", '{"kind": "silence", "seconds": NaN}', "seconds"),
        ("faults", '{"kind": "answer", "answer": []}', "answer"),
        ("faults", '{"kind": "same_token", "path": "/cgi-bin/user/get"}', "path"),
        ("faults", '{"kind": "drop", "mint": true, "path": "/cgi-bin/user/get"}', "path"),
        ("issue", "{}", "appid"),
        ("kill", '{"appid": "nonsense"}', "appid"),
        ("hold", '{"appid": "wx1", "for": 1}', "for"),
        ("release", '{"appid": null}', "appid"),
        ("advance", '{"seconds": -1}', "seconds"),
        ("advance", '{"seconds": "1"}', "seconds"),
        ("advance", '{"seconds": Infinity}', "seconds"),
        ("followers", '{"appid": "wx1", "followers": 1e3}', "followers"),
        ("followers", '{"appid": "wx1", "followers": 1000001}', "followers"),
        ("followers", '{"appid": "wx1", "withhold": 1}', "withhold"),
    ],
)
async def test_a_wrong_order_is_a_400_that_names_what_is_wrong(
    bench: SandboxBench, path: str, body: str, named: str
) -> None:
    answer = await bench.client.post(f"/sandbox/{path}", data=body)
    assert (answer.status, answer.content_type) == (400, "application/problem+json")
    assert named in (await answer.json())["detail"]


@pytest.mark.parametrize("since", ["x", "-1", "1" * 30, "²"])
async def test_since_must_be_a_number(bench: SandboxBench, since: str) -> None:
    assert (await bench.client.get("/sandbox/calls", params={"since": since})).status == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/sandbox/nothing"), ("POST", "/sandbox"), ("PUT", "/sandbox/kill")],
)
async def test_there_is_nothing_else_under_sandbox(
    bench: SandboxBench, method: str, path: str
) -> None:
    answer = await bench.client.request(method, path)
    assert (answer.status, answer.content_type) == (404, "application/problem+json")


async def test_faults_are_bounded_and_can_be_forgotten_all_or_by_appid(bench: SandboxBench) -> None:
    for _ in range(999):
        await bench.post("/sandbox/faults", {"kind": "drop", "appid": APP, "times": None})
    await bench.post("/sandbox/faults", {"kind": "drop", "appid": "wx_other"})
    assert (await bench.client.post("/sandbox/faults", json={"kind": "drop"})).status == 400
    deleted = await bench.client.delete("/sandbox/faults", params={"appid": APP})
    assert await deleted.json() == {"deleted": 999}
    assert [fault["appid"] for fault in (await bench.get("/sandbox"))["faults"]] == ["wx_other"]
    deleted = await bench.client.delete("/sandbox/faults")
    assert await deleted.json() == {"deleted": 1}


async def test_accounts_are_bounded(bench: SandboxBench) -> None:
    for number in range(10_000):
        bench.state.world.account(f"wx{number}")
    assert (await bench.classic("wx_one-more", SECRET))["errcode"] == -1
    assert "access_token" in await bench.classic("wx9999", SECRET)
