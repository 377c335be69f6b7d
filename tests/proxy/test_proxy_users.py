"""Calls with users' tokens go on as they came, and nothing of the account's with them."""

from collections.abc import AsyncIterator

import pytest

from broker.web.gate import Client
from broker.web.proxy.users import OF_USERS
from tests.harness.doubles import ACCOUNT, APPID, CANARY, Bench
from tests.harness.proxy_harness import ME, Hostile, Proxied, errcode, raw, says

PATHS = ["/sns/oauth2/refresh_token", "/sns/userinfo", "/sns/auth"]
KEYS = {name: f"{CANARY}-{name}" for name in ("login", "proxy", "read")}
CLIENTS = {
    key: Client(scope, frozenset({scope}), frozenset({"main"})) for scope, key in KEYS.items()
}
PROFILE = b'{"openid":"o1","nickname":"\xe5\xb0\x8f\xe6\x9e\x97","unionid":"u1"}'
AUTH = "/sns/auth?access_token=USERS&openid=o1"


@pytest.fixture
async def wechat() -> AsyncIterator[Hostile]:
    async with Hostile().serving() as wechat:
        wechat.otherwise = says(PROFILE, "Content-Type: text/plain", "X-Their: header")
        yield wechat


@pytest.fixture
async def local(bench: Bench, wechat: Hostile) -> AsyncIterator[Proxied]:
    async with Proxied(bench, wechat).serving(rate=1, burst=3) as broker:
        await broker.look()
        yield broker


@pytest.fixture
async def guarded(bench: Bench, wechat: Hostile) -> AsyncIterator[Proxied]:
    async with Proxied(bench, wechat).serving(CLIENTS) as broker:
        await broker.look()
        yield broker


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


@pytest.mark.parametrize("slashes", ["/", "//"])
@pytest.mark.parametrize("path", PATHS)
async def test_a_call_goes_on_byte_by_byte_and_its_answer_comes_back(
    local: Proxied, path: str, slashes: str
) -> None:
    query = "b=%2f%41+x&access_token=USERS%2B&a=&openid=o1&lang=zh_CN&appid=wxelse"
    answer = await local.ask("GET", f"{slashes}{path[1:]}?{query}")
    assert (answer.status, answer.content_type) == (200, "text/plain")
    assert await answer.read() == PROFILE
    assert answer.headers["X-Their"] == "header"
    assert answer.headers["Cache-Control"] == "no-store"
    (seen,) = local.wechat.seen
    assert (seen.method, seen.target) == ("GET", f"{path}?{query}")
    assert CANARY not in f"{seen}"


@pytest.mark.parametrize("name", ["login", "proxy"])
async def test_clients_with_login_or_proxy_may(guarded: Proxied, name: str) -> None:
    answer = await guarded.ask("GET", AUTH, headers=bearer(name))
    assert await answer.read() == PROFILE
    (seen,) = guarded.wechat.seen
    assert CANARY not in f"{seen}"
    assert guarded.outcomes == [(OF_USERS, "passed")]


async def test_others_may_not_and_are_told_in_errcodes(guarded: Proxied) -> None:
    assert await errcode(await guarded.ask("GET", AUTH, headers=bearer("read"))) == 48001
    assert await errcode(await guarded.ask("GET", AUTH)) == 40001
    wrong = await guarded.ask("GET", AUTH, headers={"Authorization": f"Bearer {CANARY}"})
    assert await errcode(wrong) == 40001
    browser = await guarded.ask(
        "GET", AUTH, headers={**bearer("login"), "Sec-Fetch-Site": "cross-site"}
    )
    assert await errcode(browser) == 48001
    assert guarded.wechat.seen == []


async def test_neither_a_key_nor_a_handle_gets_as_far_as_wechat(guarded: Proxied) -> None:
    refresh = f"/sns/oauth2/refresh_token?appid={APPID}&refresh_token=r&secret={KEYS['login']}"
    assert await errcode(await guarded.ask("GET", refresh, headers=bearer("login"))) == 47001
    said = {"grant_type": "client_credential", "appid": APPID, "secret": KEYS["proxy"]}
    handle = (await (await guarded.http.get("/cgi-bin/token", params=said)).json())["access_token"]
    assert handle.startswith("tb_")
    answer = await guarded.ask("GET", f"/sns/auth?access_token={handle}", headers=bearer("proxy"))
    assert await errcode(answer) == 40001
    assert guarded.wechat.seen == []


@pytest.mark.parametrize(
    "target", ["/sns/%61uth?access_token=x", "/sns//auth?access_token=x", "/sns/auth/"]
)
async def test_paths_that_are_written_oddly_are_not_passed_on(local: Proxied, target: str) -> None:
    assert await errcode(await local.ask("GET", target, headers=ME)) == 48001
    assert local.wechat.seen == []


@pytest.mark.parametrize(
    "answer",
    [raw(b""), raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"), says(b"x" * 70_000)],
    ids=["drop", "cut", "large"],
)
async def test_an_answer_that_does_not_come_is_an_errcode_after_one_try(
    local: Proxied, answer: object
) -> None:
    local.wechat.otherwise = answer  # type: ignore[assignment]
    assert await errcode(await local.ask("GET", AUTH)) == -1
    assert len(local.wechat.seen) == 1
    assert local.outcomes == [(OF_USERS, "unreachable")]


async def test_redirects_and_errors_of_wechats_are_passed_on_as_they_are(local: Proxied) -> None:
    local.wechat.otherwise = says(b"", "Location: http://127.0.0.1:9/", status="302 Found")
    answer = await local.ask("GET", AUTH)
    assert (answer.status, answer.headers["Location"]) == (302, "http://127.0.0.1:9/")
    local.wechat.otherwise = says(b"busy", status="503 Service Unavailable")
    assert (await local.ask("GET", AUTH)).status == 503


async def test_who_is_too_fast_is_told_so(local: Proxied) -> None:
    for _ in range(3):
        assert (await local.ask("GET", AUTH)).status == 200
    assert await errcode(await local.ask("GET", AUTH)) == 45011
    assert len(local.wechat.seen) == 3
    assert ACCOUNT.secret.reveal() not in f"{local.wechat.seen}"
