"""The sandbox's codes, users' tokens and WeCom's tickets (WECHAT.md W68, W75, W82)."""

from typing import Any

import pytest

from tests.harness.sandbox_bench import APP, SECRET, T0, SandboxBench

GRANT = {"grant_type": "authorization_code"}
CORP = "ww0123456789abcdef"


async def code(bench: SandboxBench, **order: Any) -> str:
    return str((await bench.post("/sandbox/code", {"appid": APP, **order}))["code"])


async def session(bench: SandboxBench, code: str, **more: str) -> dict[str, Any]:
    said = {"appid": APP, "secret": SECRET, "js_code": code, **GRANT, **more}
    return await bench.get("/sns/jscode2session", **{k: v for k, v in said.items() if v})


async def web_login(bench: SandboxBench, code: str) -> dict[str, Any]:
    said = {"appid": APP, "secret": SECRET, "code": code, **GRANT}
    return await bench.get("/sns/oauth2/access_token", **said)


async def test_a_code_is_good_once_and_for_five_minutes(bench: SandboxBench) -> None:
    given = await code(bench, openid="o1")
    first = await session(bench, given)
    assert first.keys() == {"openid", "session_key"}
    assert first["openid"] == "o1"
    assert (await session(bench, given))["errcode"] == 40163
    late = await code(bench)
    bench.time = T0 + 299
    assert "openid" in await session(bench, await code(bench))
    bench.time = T0 + 300
    assert (await session(bench, late))["errcode"] == 40029


async def test_a_code_is_of_one_app_and_one_kind(bench: SandboxBench) -> None:
    given = await code(bench)
    assert (await session(bench, given, appid="wxother"))["errcode"] == 40029
    assert (await web_login(bench, given))["errcode"] == 40029
    assert (await session(bench, "made-up"))["errcode"] == 40029
    assert "openid" in await session(bench, given)


@pytest.mark.parametrize(
    ("more", "errcode"),
    [
        ({"appid": ""}, 41002),
        ({"appid": "nobody"}, 40013),
        ({"secret": ""}, 41004),
        ({"secret": "wrong"}, 40125),
        ({"grant_type": "code"}, 40002),
        ({"js_code": ""}, 41008),
    ],
)
async def test_what_is_missing_or_wrong_leaves_the_code_alone(
    bench: SandboxBench, more: dict[str, str], errcode: int
) -> None:
    await bench.classic()  # by which the account has its secret
    given = await code(bench)
    assert (await session(bench, given, **more))["errcode"] == errcode
    assert "openid" in await session(bench, given)


async def test_a_blocked_user_and_the_hundredth_and_first_login_in_a_minute(
    bench: SandboxBench,
) -> None:
    assert (await session(bench, await code(bench, blocked=True)))["errcode"] == 40226
    for _ in range(100):
        assert "openid" in await session(bench, await code(bench, openid="o1"))
    assert (await session(bench, await code(bench, openid="o1")))["errcode"] == 45011
    assert "openid" in await session(bench, await code(bench, openid="o2"))
    bench.time = T0 + 60
    assert "openid" in await session(bench, await code(bench, openid="o1"))


async def test_a_web_login_gives_a_users_token_that_is_none_of_the_accounts(
    bench: SandboxBench,
) -> None:
    order = {"kind": "web", "openid": "o1", "unionid": "u1", "scope": "snsapi_userinfo"}
    told = await web_login(bench, await code(bench, **order, snapshot=True))
    assert {key: told[key] for key in ("openid", "unionid", "scope", "is_snapshotuser")} == {
        "openid": "o1",
        "unionid": "u1",
        "scope": "snsapi_userinfo",
        "is_snapshotuser": 1,
    }
    user = {"access_token": told["access_token"], "openid": "o1"}
    assert (await bench.get("/sns/auth", **user))["errcode"] == 0
    assert (await bench.get("/sns/userinfo", **user))["unionid"] == "u1"
    assert (await bench.get("/sns/userinfo", **user | {"openid": "o2"}))["errcode"] == 40003
    assert (await bench.get("/sns/auth", openid="o1"))["errcode"] == 41001
    assert await bench.errcode(told) == 40001
    bench.time = T0 + 7200
    assert (await bench.get("/sns/auth", **user))["errcode"] == 42001
    renew = {
        "appid": APP,
        "grant_type": "refresh_token",
        "refresh_token": told["refresh_token"],
    }
    again = await bench.get("/sns/oauth2/refresh_token", **renew)
    assert again["access_token"] != told["access_token"]
    assert (await bench.get("/sns/auth", access_token=again["access_token"], openid="o1"))[
        "errcode"
    ] == 0
    assert (await bench.get("/sns/oauth2/refresh_token", **renew | {"appid": "wxother"}))[
        "errcode"
    ] == 40030
    bench.time = T0 + 30 * 86_400
    assert (await bench.get("/sns/oauth2/refresh_token", **renew))["errcode"] == 42002


async def test_a_secret_that_was_reset_is_the_only_one_from_then_on(bench: SandboxBench) -> None:
    given = await code(bench)
    await bench.post("/sandbox/secret", {"appid": APP, "secret": "new"})
    assert (await session(bench, given))["errcode"] == 40125
    assert (await bench.classic())["errcode"] == 40125
    assert "openid" in await session(bench, given, secret="new")
    assert (await bench.client.post("/sandbox/secret", json={"appid": APP})).status == 400


async def test_a_base_scope_shows_no_profile_and_no_unionid(bench: SandboxBench) -> None:
    told = await web_login(bench, await code(bench, kind="web"))
    assert not {"unionid", "is_snapshotuser"} & told.keys()
    user = {"access_token": told["access_token"], "openid": told["openid"]}
    assert (await bench.get("/sns/userinfo", **user))["errcode"] == 48001


async def test_logins_call_themselves_text_are_counted_and_can_be_made_to_fail(
    bench: SandboxBench,
) -> None:
    await bench.post(
        "/sandbox/faults", {"kind": "errcode", "errcode": -1, "path": "/sns/jscode2session"}
    )
    given = await code(bench)
    assert (await session(bench, given))["errcode"] == -1
    answer = await bench.client.get("/sns/auth")
    assert answer.content_type == "text/plain"
    assert (await bench.get("/sns/none"))["errcode"] == 40066
    assert (await bench.get("/sandbox"))["login_calls"] == {
        "/sns/jscode2session": 1,
        "/sns/auth": 1,
        "other": 1,
    }
    assert "openid" in await session(bench, given)


@pytest.mark.parametrize(
    "order",
    [{"kind": "qr"}, {"openid": 7}, {"unionid": 7}, {"snapshot": "yes"}, {"scope": "x"}, {"x": 1}],
)
async def test_an_order_for_a_code_that_is_none_is_refused(
    bench: SandboxBench, order: dict[str, Any]
) -> None:
    answer = await bench.client.post("/sandbox/code", json={"appid": APP, **order})
    assert answer.status == 400
    assert next(iter(order)) in await answer.text()


# --- WeCom's tickets ------------------------------------------------------------------------------


async def corp_token(bench: SandboxBench, secret: str) -> str:
    return str(
        (await bench.get("/cgi-bin/gettoken", corpid=CORP, corpsecret=secret))["access_token"]
    )


async def test_wecoms_tickets_are_one_a_company_and_one_an_app(bench: SandboxBench) -> None:
    one, two = await corp_token(bench, "a"), await corp_token(bench, "b")
    company = [
        await bench.get("/cgi-bin/get_jsapi_ticket", access_token=token) for token in (one, two)
    ]
    assert company[0] == company[1]
    assert (company[0]["errcode"], company[0]["expires_in"]) == (0, 7200)
    apps = [
        await bench.get("/cgi-bin/ticket/get", access_token=token, type="agent_config")
        for token in (one, two, one)
    ]
    tickets = [said["ticket"] for said in apps]
    assert tickets[0] == tickets[2]
    assert len({*tickets, company[0]["ticket"]}) == 3
    bench.time = T0 + 7000
    again = await bench.get("/cgi-bin/get_jsapi_ticket", access_token=one)
    assert again["ticket"] == company[0]["ticket"]
    assert again["expires_in"] == 200


async def test_wecoms_tickets_have_limits_by_the_hour(bench: SandboxBench) -> None:
    tokens = [await corp_token(bench, name) for name in "abcde"]

    async def errcode(token: str) -> int:
        return int((await bench.get("/cgi-bin/get_jsapi_ticket", access_token=token))["errcode"])

    assert {await errcode(tokens[0]) for _ in range(100)} == {0}
    assert await errcode(tokens[0]) == 45009
    for token in tokens[1:4]:
        assert {await errcode(token) for _ in range(99)} == {0}
    assert await errcode(tokens[4]) == 0
    assert await errcode(tokens[4]) == 0
    assert await errcode(tokens[4]) == 45009  # 400 of the company
    bench.time = T0 + 3600
    assert await errcode(tokens[0]) == 0


async def test_wecom_knows_its_own_tokens_only(bench: SandboxBench) -> None:
    other = (await bench.classic())["access_token"]
    for path in ("/cgi-bin/get_jsapi_ticket", "/cgi-bin/ticket/get"):
        assert (await bench.get(path, access_token=other))["errcode"] == 40014
        assert (await bench.get(path))["errcode"] == 41001
    token = await corp_token(bench, "a")
    assert (await bench.get("/cgi-bin/ticket/get", access_token=token))["errcode"] == 40035
    assert (await bench.get("/cgi-bin/user/get", access_token=token))["errcode"] == 40066
    assert "ip_list" in await bench.get("/cgi-bin/get_api_domain_ip", access_token=token)
    bench.time = T0 + 7200
    assert (await bench.get("/cgi-bin/get_jsapi_ticket", access_token=token))["errcode"] == 42001
