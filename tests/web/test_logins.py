"""Logins over a real socket: one call each, the answer as it is, nothing of a user's kept."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import ClientResponse
from yarl import URL

from broker.core.credential import Endpoint
from broker.core.errcodes import Failure, FailureCode, Kind
from broker.core.login import LoginKind
from broker.core.secret import Secret
from broker.logins.logins import REREAD_GAP_S
from broker.web.gate import Client, Gate
from broker.wechat import WeChat
from tests.harness.api import Daemon, problem
from tests.harness.doubles import ACCOUNT, APPID, CANARY, Bench
from tests.harness.proxy_harness import Hostile, raw, says

SESSION = f"{CANARY}-session-key"
KEYS = {name: f"{CANARY}-{name}" for name in ("shop", "reader", "other")}
SITE = replace(ACCOUNT, name="site", appid="wxsite", endpoint=Endpoint.NONE)
CORP = replace(ACCOUNT, name="corp", appid="ww0123456789", endpoint=Endpoint.WECOM)
ACCOUNTS = [ACCOUNT, SITE, CORP]
SHOP = {"Authorization": f"Bearer {KEYS['shop']}"}
JSCODE, OAUTH = "/sns/jscode2session", "/sns/oauth2/access_token"
GOOD = b'{"session_key":"' + SESSION.encode() + b'","openid":"o\\/1","unionid":"u1"}'


def gate() -> Gate:
    login = frozenset({"login"})
    clients = [
        Client("shop", login),
        Client("reader", frozenset({"read", "report"})),
        Client("other", login, frozenset({"elsewhere"})),
    ]
    return Gate({hashlib.sha256(KEYS[one.name].encode()).hexdigest(): one for one in clients}, [])


class Logged(Daemon):
    """A broker whose logins go to a WeChat on a socket."""

    def __init__(self, bench: Bench, wechat: Hostile) -> None:
        super().__init__(bench)
        self.wechat = wechat

    async def log_in(self, body: Any, app: str = "main", **headers: str) -> ClientResponse:
        return await self.http.post(f"/v1/logins/{app}", json=body, headers={**SHOP, **headers})

    async def sdk(self, path: str, method: str = "GET", **said: Any) -> dict[str, Any]:
        """Ask as an SDK does; what WeChat's words and status promise is checked."""
        answer = await self.http.request(method, path, **said)
        assert (answer.status, answer.content_type) == (200, "application/json")
        assert answer.headers["Cache-Control"] == "no-store"
        read: dict[str, Any] = await answer.json()
        return read

    def sent(self) -> list[URL]:
        return [URL(one.target, encoded=True) for one in self.wechat.seen]


@asynccontextmanager
async def daemon_over(bench: Bench, timeout_s: float = 5) -> AsyncIterator[Logged]:
    """A broker, and a WeChat that answers logins well."""
    async with Hostile().serving() as wechat:
        wechat.otherwise = says(GOOD, "Content-Type: text/plain")
        async with WeChat.connect(f"http://127.0.0.1:{wechat.port}", timeout_s) as upstream:
            daemon = Logged(bench, wechat)
            daemon.exchanger = upstream
            daemon.login_limits = {"max_concurrency": 2, "rate": 1, "burst": 4}
            await daemon.start(gate(), ACCOUNTS, drop_in=True)
            try:
                yield daemon
            finally:
                await daemon.http.close()
                assert daemon.crashes == []


@pytest.fixture
async def daemon(bench: Bench) -> AsyncIterator[Logged]:
    async with daemon_over(bench) as daemon:
        yield daemon


def given(**more: str) -> dict[str, str]:
    return {
        "appid": APPID,
        "secret": KEYS["shop"],
        "js_code": "c1",
        "grant_type": "authorization_code",
        **more,
    }


# --- /v1 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "path", "name"), [("miniprogram", JSCODE, "js_code"), ("web", OAUTH, "code")]
)
async def test_a_code_goes_to_wechat_with_the_appsecret_and_the_answer_comes_back_as_it_is(
    daemon: Logged, kind: str, path: str, name: str
) -> None:
    answer = await daemon.log_in({"kind": kind, "code": "a+b/c=&d"})
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert answer.headers["Cache-Control"] == "no-store"
    assert await answer.read() == GOOD
    (sent,) = daemon.sent()
    assert sent.path == path
    assert dict(sent.query) == {
        "appid": APPID,
        "secret": ACCOUNT.secret.reveal(),
        name: "a+b/c=&d",
        "grant_type": "authorization_code",
    }


@pytest.mark.parametrize("errcode", [40029, 40163, 40226, 45011, -1, 40125, 40013, 40164, 61111])
async def test_every_errcode_of_wechats_is_the_callers_business(
    daemon: Logged, errcode: int
) -> None:
    said = b'{"errcode":%d,"errmsg":"no, rid: 65ecc868-261f3825-3e9c4795"}' % errcode
    daemon.wechat.otherwise = says(said, "Content-Type: text/plain")
    answer = await daemon.log_in({"kind": "web", "code": "c1"})
    assert (answer.status, await answer.read()) == (200, said)
    assert await daemon.sdk(JSCODE, params=given()) == json.loads(said)


@pytest.mark.parametrize("name", ["site", "wxsite", "main", APPID])
async def test_apps_are_named_by_name_or_appid_with_a_token_or_without(
    daemon: Logged, name: str
) -> None:
    assert (await daemon.log_in({"kind": "web", "code": "c1"}, name)).status == 200
    assert (await daemon.sdk(JSCODE, params=given(appid=name)))["unionid"] == "u1"
    appids = {sent.query["appid"] for sent in daemon.sent()}
    assert appids == {"wxsite" if "site" in name else APPID}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"kind": "qr", "code": "c"}, 422, "invalid-body"),
        ({"code": "c"}, 422, "invalid-body"),
        ({"kind": "web"}, 422, "invalid-body"),
        ({"kind": "web", "code": ""}, 422, "invalid-body"),
        ({"kind": "web", "code": "c" * 4096}, 422, "invalid-body"),
        ({"kind": "web", "code": "c c"}, 422, "invalid-body"),
        ({"kind": "web", "code": "\ud800"}, 422, "invalid-body"),
        ({"kind": "web", "code": 7}, 422, "invalid-body"),
        ({"kind": "web", "code": "c", "appid": "wx"}, 422, "invalid-body"),
        ([], 422, "invalid-body"),
    ],
)
async def test_bad_input_is_refused_by_name_and_costs_no_call(
    daemon: Logged, body: Any, status: int, code: str
) -> None:
    assert await problem(await daemon.log_in(body)) == (status, code)
    assert daemon.wechat.seen == []


async def test_a_code_that_is_given_twice_is_refused(daemon: Logged) -> None:
    body = b'{"kind":"web","code":"one","code":"two"}'
    headers = {**SHOP, "Content-Type": "application/json"}
    answer = await daemon.http.post("/v1/logins/main", data=body, headers=headers)
    assert await problem(answer) == (422, "invalid-body")
    assert daemon.wechat.seen == []


async def test_who_may_not_log_in_learns_nothing_and_wecom_is_told_its_way(daemon: Logged) -> None:
    body = {"kind": "web", "code": "c1"}
    reader, other = ({"Authorization": f"Bearer {KEYS[name]}"} for name in ("reader", "other"))
    for headers, app in ((reader, "main"), (reader, "nobody"), (other, "main"), (other, "nobody")):
        answer = await daemon.log_in(body, app, **headers)
        assert await problem(answer) == (403, "insufficient-scope")
    assert await problem(await daemon.log_in(body, "nobody")) == (404, "unknown-app")
    assert await problem(await daemon.log_in(body, "corp")) == (422, "no-code-exchange")
    nobody = await daemon.log_in(body, Authorization=f"Bearer {CANARY}")
    assert await problem(nobody) == (401, "invalid-key")
    assert daemon.wechat.seen == []


# --- as an SDK asks -------------------------------------------------------------------------------


@pytest.mark.parametrize("slashes", ["/", "//", "///"])
@pytest.mark.parametrize(("path", "name"), [(JSCODE, "js_code"), (OAUTH, "code")])
async def test_wechats_paths_take_the_clients_key_for_the_secret(
    daemon: Logged, path: str, name: str, slashes: str
) -> None:
    url = str(daemon.http.make_url("/")).rstrip("/") + slashes + path.lstrip("/")
    said = {name: "c1", "secret": KEYS["shop"], "appid": APPID, "lang": "zh"}
    async with daemon.http.session.get(url, params=said) as answer:
        assert await answer.read() == GOOD
    ways: tuple[dict[str, Any], ...] = ({"json": said}, {"data": said}, {"params": said})
    for way in ways:
        async with daemon.http.session.post(url, **way) as answer:
            assert (await answer.json(), answer.content_type) == (
                json.loads(GOOD),
                "application/json",
            )
    sent = daemon.sent()
    assert [one.path for one in sent] == [path] * 4
    assert {one.query["secret"] for one in sent} == {ACCOUNT.secret.reveal()}
    assert all(set(one.query) == {"appid", "secret", name, "grant_type"} for one in sent)


@pytest.mark.parametrize(
    ("more", "errcode", "words"),
    [
        ({"appid": ""}, 41002, "appid missing"),
        ({"secret": ""}, 41004, "appsecret missing"),
        ({"secret": "wrong"}, 40125, "invalid appsecret"),
        ({"secret": ACCOUNT.secret.reveal()}, 40125, "invalid appsecret"),
        ({"secret": KEYS["reader"]}, 48001, "api unauthorized"),
        ({"secret": KEYS["other"]}, 40013, "invalid appid"),
        ({"appid": "wxnobody"}, 40013, "invalid appid"),
        ({"appid": CORP.appid}, 40013, "WeCom"),
        ({"grant_type": "client_credential"}, 40002, "invalid grant_type"),
        ({"js_code": ""}, 41008, "missing code"),
        ({"js_code": "c" * 4096}, 40029, "invalid code"),
        ({"js_code": "c\n"}, 40029, "invalid code"),
    ],
)
async def test_our_own_refusals_are_wechats_numbers_and_words(
    daemon: Logged, more: dict[str, str], errcode: int, words: str
) -> None:
    said = await daemon.sdk(JSCODE, params=given(**more))
    assert said["errcode"] == errcode
    assert words in said["errmsg"]
    assert CANARY not in said["errmsg"]
    assert daemon.wechat.seen == []


@pytest.mark.parametrize(
    "asked",
    [
        {"params": [*given().items(), ("js_code", "c2")]},
        {"method": "POST", "params": {"js_code": "c2"}, "data": given()},
        {"method": "POST", "data": b'{"js_code":"a","js_code":"b","appid":"x","secret":"y"}'},
        {"method": "POST", "data": b'{"js_code":{"a":1},"appid":"x","secret":"y"}'},
        {"method": "POST", "data": b"{"},
        {"method": "POST", "data": b"\xff\xfe"},
        {"method": "POST", "data": b"[" * 10_000},
        {"method": "POST", "data": b"{" + b'"a":{' * 5_000},
        {"method": "POST", "data": b"x" * 100_000},
    ],
)
async def test_doubled_and_broken_parameters_are_an_errcode_too(
    daemon: Logged, asked: dict[str, Any]
) -> None:
    assert (await daemon.sdk(JSCODE, **asked))["errcode"] in {47001, 41002}
    assert daemon.wechat.seen == []


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Origin": "https://x.example"}],
)
async def test_what_the_gate_refuses_is_an_errcode_on_wechats_paths(
    daemon: Logged, headers: dict[str, str]
) -> None:
    said = await daemon.sdk(JSCODE, params=given(), headers=headers)
    assert said["errcode"] == 48001
    assert "token-broker" in said["errmsg"]
    answer = await daemon.log_in({"kind": "web", "code": "c1"}, **headers)
    assert (await problem(answer))[0] == 403
    assert daemon.wechat.seen == []


# --- a WeChat that fails --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        says(b"<html>busy</html>", "Content-Type: text/html"),
        says(b""),
        says(b"null"),
        says(b'{"ok":true}'),
        says(b'{"openid":7}'),
        says(GOOD, status="502 Bad Gateway"),
        says(GOOD, "Location: http://evil.example/", status="302 Found"),
        says(b'{"openid":"o","x":"' + b"x" * 70_000 + b'"}'),
        raw(b""),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"),
    ],
    ids=["html", "empty", "null", "no-openid", "odd-openid", "502", "302", "large", "drop", "cut"],
)
async def test_an_answer_that_is_none_is_told_once_and_never_asked_for_again(
    daemon: Logged, answer: Any
) -> None:
    daemon.wechat.otherwise = answer
    refused = await daemon.log_in({"kind": "miniprogram", "code": "c1"})
    body = await refused.json()
    assert await problem(refused) == (502, "upstream-unavailable")
    assert "counts as used" in body["detail"]
    said = await daemon.sdk(JSCODE, params=given(js_code="c2"))
    assert said["errcode"] == -1
    assert "counts as used" in said["errmsg"]
    assert CANARY not in f"{body} {said}"
    assert [sent.query["js_code"] for sent in daemon.sent()] == ["c1", "c2"]


async def test_a_wechat_that_hangs_has_a_deadline(bench: Bench) -> None:
    async with daemon_over(bench, timeout_s=0.05) as daemon:
        daemon.wechat.otherwise = raw(close=False)
        refused = await daemon.log_in({"kind": "web", "code": "c1"})
        assert await problem(refused) == (502, "upstream-unavailable")
        assert len(daemon.wechat.seen) == 1


# --- limits ---------------------------------------------------------------------------------------


async def test_a_storm_of_logins_starves_no_token_and_no_other_client(bench: Bench) -> None:
    daemon = Daemon(bench)
    daemon.login_limits = {"max_concurrency": 2, "rate": 100, "burst": 100}
    everyone = frozenset({"login", "read"})
    shop, other = Client("shop", everyone), Client("other", everyone)
    keys = {hashlib.sha256(KEYS[one.name].encode()).hexdigest(): one for one in (shop, other)}
    await daemon.start(Gate(keys, []), ACCOUNTS, drop_in=True)
    await daemon.look()
    bench.wechat.gate.clear()
    body = {"kind": "web", "code": "c"}
    others = {"Authorization": f"Bearer {KEYS['other']}"}

    async def log_in(headers: dict[str, str], app: str = "main") -> ClientResponse:
        return await daemon.http.post(f"/v1/logins/{app}", json=body, headers=headers)

    waiting = [asyncio.create_task(log_in(SHOP)) for _ in range(2)]
    while len(bench.wechat.logins) < 2:
        await asyncio.sleep(0)
    busy = await log_in(SHOP)
    assert await problem(busy) == (429, "login-throttled")
    assert (await daemon.http.get("/v1/tokens/main", headers=SHOP)).status == 200
    waiting += [asyncio.create_task(log_in(others)), asyncio.create_task(log_in(SHOP, "site"))]
    while len(bench.wechat.logins) < 4:
        await asyncio.sleep(0)
    bench.wechat.gate.set()
    assert [(await one).status for one in waiting] == [200] * 4
    record = daemon.logins.record("main")
    assert record is not None
    assert record.by_outcome() == {"busy": 1, "good": 3}
    await daemon.http.close()


async def test_too_many_a_second_are_refused_without_a_call(daemon: Logged) -> None:
    for number in range(4):
        assert (await daemon.log_in({"kind": "web", "code": f"c{number}"})).status == 200
    refused = await daemon.log_in({"kind": "web", "code": "c5"})
    assert "still good" in (await refused.json())["detail"]
    assert await problem(refused) == (429, "login-throttled")
    assert (await daemon.sdk(JSCODE, params=given()))["errcode"] == 45011
    assert (await daemon.log_in({"kind": "web", "code": "c5"}, "site")).status == 200
    daemon.bench.clock.pass_(1)
    assert (await daemon.log_in({"kind": "web", "code": "c5"})).status == 200
    assert len(daemon.wechat.seen) == 6


async def test_a_broker_that_stops_leaves_the_code_alone(daemon: Logged) -> None:
    daemon.logins.stop()
    assert await problem(await daemon.log_in({"kind": "web", "code": "c"})) == (503, "stopping")
    said = await daemon.sdk(JSCODE, params=given())
    assert said["errcode"] == -1
    assert "still good" in said["errmsg"]
    assert daemon.wechat.seen == []


# --- what is known of it afterwards ---------------------------------------------------------------


async def test_logins_are_counted_by_app_kind_and_outcome_and_nothing_else_is_kept(
    daemon: Logged, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    await daemon.log_in({"kind": "web", "code": f"{CANARY}-1"})
    daemon.wechat.otherwise = says(b'{"errcode":40163,"errmsg":"code been used"}')
    await daemon.log_in({"kind": "miniprogram", "code": f"{CANARY}-2"})
    daemon.wechat.otherwise = says(b'{"errcode":99999,"errmsg":"new"}')
    await daemon.log_in({"kind": "miniprogram", "code": f"{CANARY}-3"})
    daemon.wechat.otherwise = says(b"<html>")
    await daemon.log_in({"kind": "miniprogram", "code": f"{CANARY}-4"})
    metrics = await (await daemon.get("/metrics")).text()
    counted = {
        line.removeprefix("token_broker_logins_total")
        for line in metrics.splitlines()
        if line.startswith("token_broker_logins_total")
    }
    assert counted == {
        '{app="main",kind="web",outcome="good"} 1.0',
        '{app="main",kind="miniprogram",outcome="errcode 40163"} 1.0',
        '{app="main",kind="miniprogram",outcome="errcode other"} 1.0',
        '{app="main",kind="miniprogram",outcome="lost"} 1.0',
    }
    status = await (await daemon.get("/v1/status")).text()
    logins = json.loads(status)["apps"][0]["logins"]
    assert logins["outcomes"] == {"errcode 40163": 1, "errcode other": 1, "good": 1, "lost": 1}
    assert logins["last_failure"]["kind"] == "miniprogram"
    assert logins["last_failure"]["reason"].startswith("not an answer of WeChat's")
    assert logins["news"] is None
    page = await (await daemon.http.get("/")).text()
    assert "1 of 4 let in" in page
    assert CANARY not in f"{metrics} {status} {page} {caplog.text} {daemon.bench.events}"


async def test_a_client_that_hangs_up_is_counted_and_leaves_its_place(bench: Bench) -> None:
    daemon = Daemon(bench)
    daemon.login_limits = {"max_concurrency": 1}
    await daemon.start(gate(), ACCOUNTS)
    bench.wechat.gate.clear()
    asking = asyncio.create_task(
        daemon.logins.exchange("shop", ACCOUNT, LoginKind.WEB, Secret("c"))
    )
    while not bench.wechat.logins:
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    bench.wechat.gate.set()
    await daemon.logins.exchange("shop", ACCOUNT, LoginKind.WEB, Secret("d"))
    record = daemon.logins.record("main")
    assert record is not None
    assert record.by_outcome() == {"abandoned": 1, "good": 1}
    await daemon.http.close()


@pytest.mark.parametrize(
    ("errcode", "errmsg", "advice"),
    [
        (40125, "invalid appsecret", "AppSecret"),
        (40164, "invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist", "203.0.113.7"),
    ],
)
async def test_a_wrong_secret_or_address_is_news_until_wechat_takes_it(
    daemon: Logged, errcode: int, errmsg: str, advice: str
) -> None:
    daemon.wechat.otherwise = says(
        {"errcode": errcode, "errmsg": f"{errmsg} rid: 65ecc868-261f3825-3e9c4795"}
    )
    for number in range(2):
        await daemon.log_in({"kind": "miniprogram", "code": f"c{number}"}, "site")

    async def news() -> Any:
        apps = (await (await daemon.get("/v1/status")).json())["apps"]
        return next(app["logins"]["news"] for app in apps if app["app"] == "site")

    assert (await news())["errcode"] == errcode
    assert advice in (await news())["advice"]
    assert (await news())["rid"] == "65ecc868-261f3825-3e9c4795"
    assert "WeChat refuses logins" in await (await daemon.http.get("/")).text()
    health = await (await daemon.get("/health")).json()
    assert health["checks"]["logins:site"][0]["status"] == "warn"
    assert len(daemon.bench.told("logins-refused")) == 1
    daemon.wechat.otherwise = says(b'{"errcode":40029,"errmsg":"invalid code"}')
    await daemon.log_in({"kind": "miniprogram", "code": "c3"}, "site")
    assert await news() is None
    assert len(daemon.bench.told("logins-accepted")) == 1


async def test_a_refused_secret_is_read_again_at_most_every_ten_seconds_and_used_at_once(
    daemon: Logged,
) -> None:
    daemon.wechat.otherwise = says(b'{"errcode":40125,"errmsg":"invalid appsecret"}')
    for number in range(2):
        await daemon.log_in({"kind": "web", "code": f"c{number}"})
    assert daemon.refused_secrets == ["main"]
    daemon.bench.clock.pass_(REREAD_GAP_S)
    await daemon.log_in({"kind": "web", "code": "c2"})
    assert daemon.refused_secrets == ["main", "main"]
    daemon.logins.use(ACCOUNT)  # the same as before
    assert daemon.logins.news().keys() == {"main"}
    daemon.logins.use(replace(ACCOUNT, secret=Secret(f"{CANARY}-new")))
    assert daemon.logins.news() == {}
    await daemon.log_in({"kind": "web", "code": "c3"})
    assert [sent.query["secret"] for sent in daemon.sent()] == [
        *[ACCOUNT.secret.reveal()] * 3,
        f"{CANARY}-new",
    ]


# --- apps without a token -------------------------------------------------------------------------


async def test_an_app_without_a_token_is_ready_and_shown_for_what_it_is(bench: Bench) -> None:
    daemon = Daemon(bench)
    await daemon.start(Gate({}, []), [SITE], drop_in=True)
    await daemon.look()
    assert bench.wechat.calls == 0
    for probe in ("/readyz", "/readyz?app=site", "/readyz?app=wxsite"):
        assert (await daemon.get(probe)).status == 200
    assert (await (await daemon.get("/health")).json())["status"] == "pass"
    (app,) = (await (await daemon.get("/v1/status")).json())["apps"]
    assert (app["app"], app["endpoint"], app["state"]) == ("site", "none", "login-only")
    assert (app["version"], app["quota"]["limit"]) == (None, 0)
    assert await problem(await daemon.get("/v1/tokens/site")) == (404, "no-token")
    answer = await daemon.post("/v1/logins/site", {"kind": "web", "code": "c1"})
    assert (await answer.json())["openid"] == "o-1"
    page = await (await daemon.http.get("/")).text()
    assert "Keeps no token" in page
    assert "Time left" not in page
    assert "token_broker_token_usable{" not in await (await daemon.get("/metrics")).text()
    await daemon.http.close()


async def test_without_clients_any_word_is_a_key_as_on_the_token_paths(bench: Bench) -> None:
    daemon = Daemon(bench)
    await daemon.start(Gate({}, []), ACCOUNTS, drop_in=True)
    bench.wechat.login_answers.append(Failure(Kind.TRANSIENT, FailureCode.CONNECT))
    answer = await daemon.http.get(JSCODE, params=given(secret="word"))
    assert (await answer.json())["errcode"] == -1
    answer = await daemon.http.get(JSCODE, params=given(secret="word"))
    assert (await answer.json())["openid"] == "o-2"
    await daemon.http.close()
