"""The sandbox's token endpoints, against WECHAT.md W1 to W14, W21 to W25, W61, W62, W88."""

import ast
import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientSession
from pytest_aiohttp import AiohttpClient

import broker.sandbox
from broker.sandbox import SandboxOptions, serve
from broker.sandbox.answers import WeChatRefusal
from broker.sandbox.state import SandboxState
from tests.harness.sandbox_bench import APP, SECRET, T0, SandboxBench

REFUSED = (
    "invalid credential, access_token is invalid or not latest, could get access_token by"
    " getStableAccessToken, more details at https://mmbizurl.cn/s/JtxxFh33r rid: "
)


def test_the_sandbox_imports_nothing_of_the_broker() -> None:
    home = Path(broker.sandbox.__file__).parent
    for file in home.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [(0, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.level, node.module or "")]
            else:
                continue
            for level, name in names:
                assert level == 1 or name.partition(".")[0] in {
                    "aiohttp",
                    "cryptography",  # an extra, for events in the encrypted mode
                    *sys.stdlib_module_names,
                }, (file, name)


async def test_success_has_a_token_and_seconds_and_no_errcode(bench: SandboxBench) -> None:
    answer = await bench.classic()
    assert set(answer) == {"access_token", "expires_in"}
    assert answer["expires_in"] == 7200
    assert len(answer["access_token"]) <= 512
    assert await bench.errcode(answer) == 0


async def test_errors_are_http_200_with_a_rid_that_begins_with_the_time(
    bench: SandboxBench,
) -> None:
    answer = await bench.client.get("/cgi-bin/token?appid=nonsense")
    assert (answer.status, answer.headers["Content-Type"]) == (
        200,
        "application/json; encoding=utf-8",
    )
    body = await answer.json(content_type=None)
    assert re.fullmatch(
        rf"invalid appid rid: {int(T0):x}-[0-9a-f]{{8}}-[0-9a-f]{{8}}", body["errmsg"]
    )


async def test_slashes_arrive_escaped(bench: SandboxBench) -> None:
    answer = await bench.client.get("/cgi-bin/get_api_domain_ip?access_token=" + "x" * 40)
    text = await answer.text()
    assert r"https:\/\/mmbizurl.cn\/s\/JtxxFh33r" in text
    assert "://" not in text


@pytest.mark.parametrize(
    ("query", "errcode", "words"),
    [
        ({"grant_type": "client_credential", "secret": "x"}, 41002, "appid missing"),
        ({"grant_type": "client_credential", "appid": APP}, 41004, "appsecret missing"),
        (
            {"grant_type": "client_credential", "appid": APP, "secret": ""},
            41004,
            "appsecret missing",
        ),
        ({"grant_type": "password", "appid": APP, "secret": "x"}, 40002, "invalid grant_type"),
        ({"appid": APP, "secret": "x"}, 40002, "invalid grant_type"),
        ({"grant_type": "client_credential", "appid": "wx", "secret": "x"}, 40013, "invalid appid"),
        (
            {"grant_type": "client_credential", "appid": "gh_1", "secret": "x"},
            40013,
            "invalid appid",
        ),
        (
            {"grant_type": "client_credential", "appid": "wx" + "1" * 63, "secret": "x"},
            40013,
            "invalid appid",
        ),
        (
            {"grant_type": "client_credential", "appid": "wx1\n", "secret": "x"},
            40013,
            "invalid appid",
        ),
    ],
)
async def test_bad_parameters_have_wechats_codes_and_words(
    bench: SandboxBench, query: dict[str, str], errcode: int, words: str
) -> None:
    for answer in (
        await bench.get("/cgi-bin/token", **query),
        await bench.post("/cgi-bin/stable_token", query),
    ):
        assert answer["errcode"] == errcode
        assert answer["errmsg"].startswith(words)


async def test_the_first_secret_is_bound_and_another_is_refused_and_costs_a_call(
    bench: SandboxBench,
) -> None:
    token = await bench.classic()
    refused = await bench.classic(secret="another")
    assert refused["errcode"] == 40125
    assert refused["errmsg"].startswith("invalid appsecret, rid: ")
    assert (await bench.account())["quota_used"]["token"] == 2
    assert await bench.errcode(token) == 0


@pytest.mark.parametrize("path", ["/cgi-bin/token", "//cgi-bin/token"])
async def test_the_classic_endpoint_takes_what_sdks_send(bench: SandboxBench, path: str) -> None:
    asked = {"grant_type": "client_credential", "appid": APP, "secret": SECRET}
    url = bench.client.make_url("/").with_path(path, encoded=True)
    for sent in ({"params": asked}, {"data": asked}, {"json": asked}):
        answer = await bench.client.session.post(url, **sent)  # type: ignore[arg-type]
        assert "access_token" in await answer.json(content_type=None)
    answer = await bench.client.session.get(url, params=asked)
    assert "access_token" in await answer.json(content_type=None)


async def test_stable_token_wants_a_post_with_a_json_body(bench: SandboxBench) -> None:
    asked = {"grant_type": "client_credential", "appid": APP, "secret": SECRET}
    assert (await bench.get("/cgi-bin/stable_token", **asked))["errcode"] == 43002
    form = await bench.client.post("/cgi-bin/stable_token", data=asked)
    assert (await form.json(content_type=None))["errcode"] == 41002
    assert "access_token" in await bench.post("/cgi-bin/stable_token", asked)
    assert [call["outcome"] for call in await bench.calls()] == [43002, 41002, 0]


@pytest.mark.parametrize(
    "body", [b"\xff\xfe", b"[1]", b"null", b"[" * 50_000, b'{"appid": 1}', b'{"appid": NaN}']
)
async def test_nonsense_bodies_are_missing_parameters(bench: SandboxBench, body: bytes) -> None:
    for path in ("/cgi-bin/token", "/cgi-bin/stable_token"):
        answer = await bench.client.post(path, data=body)
        assert (await answer.json(content_type=None))["errcode"] == 41002


# The classic endpoint: every call mints.


async def test_every_classic_call_mints_and_the_previous_token_works_for_exactly_the_overlap(
    bench: SandboxBench,
) -> None:
    first, second = await bench.classic(), await bench.classic()
    assert first["access_token"] != second["access_token"]
    bench.time = T0 + 299
    assert await bench.errcode(first) == 0
    bench.time = T0 + 300
    assert await bench.errcode(first) == 40001
    assert await bench.errcode(second) == 0


async def test_only_one_previous_generation_works(bench: SandboxBench) -> None:
    first, second, third = await bench.classic(), await bench.classic(), await bench.classic()
    assert [await bench.errcode(token) for token in (first, second, third)] == [40001, 0, 0]


async def test_a_token_dies_of_age_on_the_second(bench: SandboxBench) -> None:
    token = await bench.classic()
    bench.time = T0 + 7199.9
    assert await bench.errcode(token) == 0
    bench.time = T0 + 7200
    assert await bench.errcode(token) == 42001


async def test_the_overlap_does_not_lengthen_a_classic_tokens_life(bench: SandboxBench) -> None:
    old = await bench.classic()
    bench.time = T0 + 7100
    await bench.classic()
    bench.time = T0 + 7199
    assert await bench.errcode(old) == 0
    bench.time = T0 + 7200
    assert await bench.errcode(old) == 42001


async def test_the_options_set_lifetime_overlap_and_quota(aiohttp_client: AiohttpClient) -> None:
    bench = await SandboxBench().opened(
        aiohttp_client, SandboxOptions(expires_in=60, overlap=10, daily_quota=2)
    )
    first, second = await bench.classic(), await bench.classic()
    assert first["expires_in"] == 60
    assert (await bench.classic())["errcode"] == 45009
    bench.time = T0 + 10
    assert [await bench.errcode(first), await bench.errcode(second)] == [40001, 0]


async def test_the_quota_day_is_beijings_and_a_call_refused_by_it_pushes_nothing_out(
    aiohttp_client: AiohttpClient,
) -> None:
    bench = await SandboxBench().opened(aiohttp_client, SandboxOptions(daily_quota=2))
    bench.time = T0 + 86_399
    old, new = await bench.classic(), await bench.classic()
    assert (await bench.classic())["errcode"] == 45009
    assert [await bench.errcode(old), await bench.errcode(new)] == [0, 0]
    bench.time = T0 + 86_400
    assert "access_token" in await bench.classic()


async def test_accounts_do_not_touch_each_other(bench: SandboxBench) -> None:
    mine = await bench.classic()
    for _ in range(3):
        await bench.classic("wx_another-1")
    assert await bench.errcode(mine) == 0
    assert (await bench.account())["quota_used"]["token"] == 1


# The stable endpoint: the same token, until it rotates or is forced.


async def test_stable_repeats_the_token_with_its_remaining_seconds(bench: SandboxBench) -> None:
    first = await bench.stable()
    bench.time = T0 + 6900
    assert await bench.stable() == {"access_token": first["access_token"], "expires_in": 300}


async def test_stable_rotates_in_the_last_300_seconds_and_then_both_work_5_minutes(
    bench: SandboxBench,
) -> None:
    first = await bench.stable()
    bench.time = T0 + 7150
    second = await bench.stable()
    assert (first["access_token"] != second["access_token"], second["expires_in"]) == (True, 7200)
    bench.time = T0 + 7150 + 299
    assert [await bench.errcode(first), await bench.errcode(second)] == [0, 0]
    bench.time = T0 + 7150 + 300
    assert [await bench.errcode(first), await bench.errcode(second)] == [40001, 0]


async def test_a_short_lived_stable_token_rotates_at_half_its_life(
    aiohttp_client: AiohttpClient,
) -> None:
    bench = await SandboxBench().opened(aiohttp_client, SandboxOptions(expires_in=60))
    first = await bench.stable()
    bench.time = T0 + 30
    assert (await bench.stable())["expires_in"] == 30
    bench.time = T0 + 31
    assert (await bench.stable())["access_token"] != first["access_token"]


async def test_an_expired_stable_token_is_not_revived_by_its_successor(bench: SandboxBench) -> None:
    first = await bench.stable()
    bench.time = T0 + 7200
    second = await bench.stable()
    assert [await bench.errcode(first), await bench.errcode(second)] == [42001, 0]


async def test_force_refresh_kills_the_old_token_at_once(bench: SandboxBench) -> None:
    first = await bench.stable()
    second = await bench.stable(force=True)
    assert first["access_token"] != second["access_token"]
    assert [await bench.errcode(first), await bench.errcode(second)] == [40001, 0]


async def test_force_refresh_within_30_seconds_silently_does_nothing(bench: SandboxBench) -> None:
    first = await bench.stable(force=True)
    bench.time = T0 + 29
    assert await bench.stable(force=True) == {
        "access_token": first["access_token"],
        "expires_in": 7171,
    }
    bench.time = T0 + 30
    assert (await bench.stable(force=True))["access_token"] != first["access_token"]
    assert (await bench.account())["quota_used"]["force_refresh"] == 2


async def test_force_refresh_is_allowed_20_times_a_day(bench: SandboxBench) -> None:
    for _ in range(20):
        token = await bench.stable(force=True)
        bench.time += 30
    assert (await bench.stable(force=True))["errcode"] == 45009
    assert await bench.stable() == token | {"expires_in": 7170}
    bench.time = T0 + 86_400
    assert "access_token" in await bench.stable(force=True)


async def test_after_a_40001_normal_mode_repeats_the_bad_token_and_only_force_changes_it(
    bench: SandboxBench,
) -> None:
    bad = await bench.stable()
    await bench.post("/sandbox/kill", {"appid": APP})
    assert await bench.stable() == bad
    assert await bench.errcode(bad) == 40001
    assert await bench.errcode(await bench.stable(force=True)) == 0


async def test_after_a_40001_the_next_classic_call_gives_a_good_token(bench: SandboxBench) -> None:
    bad = await bench.classic()
    await bench.post("/sandbox/kill", {"appid": APP})
    assert await bench.errcode(bad) == 40001
    good = await bench.classic()
    assert [await bench.errcode(bad), await bench.errcode(good)] == [40001, 0]


async def test_the_two_endpoints_are_isolated(bench: SandboxBench) -> None:
    stable = await bench.stable()
    classic = [await bench.classic() for _ in range(3)]
    await bench.stable(force=True)
    assert [await bench.errcode(token) for token in (stable, classic[2])] == [40001, 0]
    assert (await bench.account())["quota_used"] == {
        "token": 3,
        "stable_token": 2,
        "force_refresh": 1,
        "user/get": 0,
    }


async def test_stable_has_its_own_quota_of_10_000_a_minute_and_500_000_a_day() -> None:
    world = SandboxState(SandboxOptions(), lambda: T0).world
    account = world.account(APP)
    for _ in range(10_000):
        account.spend("stable_token", T0)
    with pytest.raises(WeChatRefusal) as slow_down:
        account.spend("stable_token", T0 + 59)
    for minute in range(1, 50):
        for _ in range(10_000):
            account.spend("stable_token", T0 + 60 * minute)
    with pytest.raises(WeChatRefusal) as quota:
        account.spend("stable_token", T0 + 3000)
    assert (slow_down.value.errcode, quota.value.errcode) == (45011, 45009)


# What data APIs say of a token, and the neighbours.


@pytest.mark.parametrize(
    ("token", "errcode"),
    [("", 41001), ("short", 40014), ("x" * 20 + " " + "x" * 20, 40014), ("x" * 40, 40001)],
)
async def test_a_data_api_judges_the_token(bench: SandboxBench, token: str, errcode: int) -> None:
    answer = await bench.get("/cgi-bin/get_api_domain_ip", access_token=token)
    assert answer["errcode"] == errcode
    assert errcode != 40001 or answer["errmsg"].startswith(REFUSED)


async def test_wecom_repeats_one_token_per_secret_and_says_errcode_0(bench: SandboxBench) -> None:
    first = await bench.get("/cgi-bin/gettoken", corpid="ww1", corpsecret="a")
    other = await bench.get("/cgi-bin/gettoken", corpid="ww1", corpsecret="b")
    assert (first["errcode"], first["expires_in"]) == (0, 7200)
    assert first["access_token"] != other["access_token"]
    bench.time = T0 + 100
    assert await bench.get("/cgi-bin/gettoken", corpid="ww1", corpsecret="a") == first | {
        "expires_in": 7100
    }
    bench.time = T0 + 7200
    assert (await bench.get("/cgi-bin/gettoken", corpid="ww1", corpsecret="a"))[
        "expires_in"
    ] == 7200
    assert (await bench.get("/cgi-bin/gettoken", corpid="gh1", corpsecret="a"))["errcode"] == 40013
    assert (await bench.get("/cgi-bin/gettoken", corpsecret="a"))["errcode"] == 41002
    assert (await bench.get("/cgi-bin/gettoken", corpid="ww1"))["errcode"] == 41004


# The server itself.


@asynccontextmanager
async def serving(capsys: pytest.CaptureFixture[str]) -> AsyncIterator[int]:
    """Run `serve` on a free port, which is what it prints."""
    task, line = asyncio.create_task(serve(SandboxOptions(), 0)), ""
    async with asyncio.timeout(5):
        while not line:
            await asyncio.sleep(0)
            line = capsys.readouterr().out
    found = re.fullmatch(r"sandbox listening on http://127\.0\.0\.1:([1-9]\d*)\n", line)
    assert found
    yield int(found[1])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_serve_prints_where_it_listens_and_stops_when_cancelled(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with serving(capsys) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_serve_logs_no_secret_and_no_token_even_of_malformed_requests(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    received = b""
    async with serving(capsys) as port:
        for version in (b"1.1", b"9.9x"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            target = b"/cgi-bin/token?grant_type=client_credential&appid=wx1&secret=hidden-secret"
            writer.write(
                b"GET %b HTTP/%b\r\nHost: x\r\nConnection: close\r\n\r\n" % (target, version)
            )
            received += await reader.read()
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /cgi-bin/token HTTP/1.1\r\nHost: x\r\nContent-Length:"
            b" 99\r\n\r\nsecret=hidden-secret"
        )
        writer.close()
        await reader.read()
    assert b"access_token" in received
    assert "Traceback" not in caplog.text
    assert "Error handling request" in caplog.text
    assert "hidden-secret" not in caplog.text
    assert "97_" not in caplog.text


async def test_serve_notices_by_itself_that_the_peer_of_a_held_or_silenced_call_hung_up(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with (
        serving(capsys) as port,
        ClientSession(f"http://127.0.0.1:{port}") as session,
        asyncio.timeout(5),
    ):
        await session.post("/sandbox/hold", json={"appid": "wx_held"})
        await session.post("/sandbox/faults", json={"kind": "silence", "appid": "wx_silenced"})
        for appid in ("wx_held", "wx_silenced"):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET /cgi-bin/token?appid={appid} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            while appid not in await (await session.get("/sandbox/calls")).text():
                pass
            writer.close()
        while any(
            call["outcome"] is None for call in await (await session.get("/sandbox/calls")).json()
        ):
            pass
        while (await (await session.get("/sandbox")).json())["accounts"]["wx_held"]["in_flight"]:
            pass


async def test_the_description_shows_no_secret_and_no_token(bench: SandboxBench) -> None:
    granted = await bench.classic(secret="hidden-secret")
    shown = str(await bench.get("/sandbox")) + str(await bench.calls())
    assert "hidden-secret" not in shown
    assert granted["access_token"] not in shown
