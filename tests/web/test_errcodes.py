"""What WeChat's own paths refuse, they refuse in WeChat's shape: SDKs expect no other."""

import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientResponse
from structlog.testing import capture_logs

from broker.core.errcodes import Failure, FailureCode, Kind
from broker.system.log import _is_ours
from broker.web.gate import Client, Gate
from tests.harness.api import Daemon
from tests.harness.doubles import APPID, CANARY, Bench

KEY, NARROW = f"{CANARY}-key-of-orders", f"{CANARY}-key-of-shop"
PATHS = [
    "/cgi-bin/token",
    "/cgi-bin/stable_token",
    "/cgi-bin/gettoken",
    "/cgi-bin/ticket/getticket",
    "/cgi-bin/ticket/get",
    "/cgi-bin/get_jsapi_ticket",
    "/sns/jscode2session",
    "/sns/oauth2/access_token",
]
GRANT = {"grant_type": "client_credential", "appid": APPID, "secret": KEY}


@pytest.fixture
async def daemon(bench: Bench) -> AsyncIterator[Daemon]:
    keys = {
        KEY: Client("orders", frozenset({"read", "login"})),
        NARROW: Client("shop", frozenset({"report"})),
    }
    daemon = Daemon(bench)
    gate = Gate({hashlib.sha256(key.encode()).hexdigest(): one for key, one in keys.items()}, [])
    await daemon.start(gate, drop_in=True)
    yield daemon
    await daemon.http.close()


async def refusal(answer: ClientResponse) -> int:
    """Return the errcode, after checking what every refusal owes."""
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert answer.headers["Cache-Control"] == "no-store"
    body: dict[str, Any] = await answer.json()
    assert body.keys() == {"errcode", "errmsg"}
    assert CANARY not in body["errmsg"]
    return int(body["errcode"])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("headers", "errcode"),
    [
        ({"Host": "evil.example"}, 48001),
        ({"Origin": "https://evil.example"}, 48001),
        ({"Sec-Fetch-Mode": "cors"}, 48001),
    ],
    ids=["host", "origin", "fetch"],
)
async def test_what_the_gate_refuses(
    daemon: Daemon, path: str, method: str, headers: dict[str, str], errcode: int
) -> None:
    answer = await daemon.http.request(method, path, params=GRANT, headers=headers)
    assert await refusal(answer) == errcode


@pytest.mark.parametrize("path", PATHS)
async def test_a_forwarded_request_where_there_are_no_clients(daemon: Daemon, path: str) -> None:
    daemon.gate.admit({}, [])
    answer = await daemon.http.get(path, params=GRANT, headers={"X-Forwarded-For": "203.0.113.7"})
    assert await refusal(answer) == 48001


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
async def test_another_method(daemon: Daemon, path: str, method: str) -> None:
    assert await refusal(await daemon.http.request(method, path)) == 43001


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"x" * 70_000, {}),
        (json.dumps({"appid": "x" * 70_000}).encode(), {"Content-Type": "application/json"}),
        (b"this is no gzip", {"Content-Encoding": "gzip"}),
        (b"\x1f\x8b\x08\x00 nor is this", {"Content-Encoding": "gzip"}),
        (b"this is no deflate", {"Content-Encoding": "deflate"}),
        (b"{", {}),
        (b"\xff\xfe", {}),
        (b"[" * 10_000, {}),
        (b'{"a":' * 9_000, {}),
    ],
    ids=[
        "too large", "a large field", "no gzip", "almost gzip", "no deflate", "half a JSON",
        "no UTF-8", "nested", "nested objects",
    ],
)  # fmt: skip
async def test_a_body_that_is_none(
    daemon: Daemon, path: str, body: bytes, headers: dict[str, str]
) -> None:
    answer = await daemon.http.post(path, data=body, headers=headers)
    errcode = await refusal(answer)
    # What is no JSON may be a form, in which nothing is named.
    assert errcode == 47001 or (not headers and body in {b"\xff\xfe", b"[" * 10_000})
    assert daemon.crashes == []


@pytest.mark.parametrize("path", PATHS)
async def test_a_bug_is_a_system_error(
    daemon: Daemon, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(_: object, __: object) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr(Gate, "refuse", bug)
    assert await refusal(await daemon.http.get(path)) == -1
    assert len(daemon.crashes) == 1


@pytest.mark.parametrize("host", ["api.weixin.qq.com", "qyapi.weixin.qq.com:443"])
async def test_wechats_own_names_are_welcome_on_its_paths_only(daemon: Daemon, host: str) -> None:
    await daemon.look()
    answer = await daemon.http.get("/cgi-bin/token", params=GRANT, headers={"Host": host})
    assert (await answer.json())["access_token"] == f"{CANARY}-main-t1"
    for path in ("/v1/tokens/main", "/v1/status", "/"):
        assert (await daemon.get(path, Host=host, Authorization=f"Bearer {KEY}")).status == 403


@pytest.mark.parametrize(
    ("number", "ip"), [(40164, "203.0.113.7"), (40243, None), (89503, None), (89507, None)]
)
async def test_wechats_own_errcode_passes_where_a_person_must_act(
    daemon: Daemon, number: int, ip: str | None
) -> None:
    kind = Kind.ADMISSION if ip else Kind.CONFIGURATION
    daemon.bench.wechat.answers.append(Failure(kind, FailureCode.ERRCODE, number, ip=ip))
    await daemon.look()
    for path in ("/cgi-bin/token", "/cgi-bin/stable_token"):
        answer = await daemon.http.get(path, params=GRANT)
        assert await refusal(answer) == number
        assert not ip or ip in (await answer.json())["errmsg"]


async def test_a_ticket_tells_of_what_its_token_lacks(daemon: Daemon) -> None:
    await daemon.look()
    found = await (await daemon.http.get("/cgi-bin/token", params=GRANT)).json()
    failure = Failure(Kind.ADMISSION, FailureCode.ERRCODE, 40164, ip="203.0.113.7")
    daemon.bench.wechat.ticket_answers.append(failure)
    asked = {"access_token": found["access_token"], "type": "jsapi"}
    answer = await daemon.http.get("/cgi-bin/ticket/getticket", params=asked)
    assert await refusal(answer) == 40164
    assert "203.0.113.7" in (await answer.json())["errmsg"]


async def test_refusals_are_counted_by_their_errcode_and_not_as_success(daemon: Daemon) -> None:
    await daemon.look()
    await daemon.http.get("/cgi-bin/token", params=GRANT)
    await daemon.http.get("/cgi-bin/token", params={**GRANT, "secret": "wrong"})
    text = (await (await daemon.http.get("/metrics")).read()).decode()
    route = 'token_broker_http_requests_total{route="/{slashes}cgi-bin/token",status='
    assert f'{route}"200"}} 1.0' in text
    assert f'{route}"40125"}} 1.0' in text


# --- what strangers and the throttled write into the log ------------------------------------------


async def test_what_is_refused_with_45011_is_told_once_a_minute_and_counted(bench: Bench) -> None:
    daemon = Daemon(bench)
    daemon.login_limits = {"rate": 1, "burst": 1}
    keys = {hashlib.sha256(KEY.encode()).hexdigest(): Client("orders", frozenset({"login"}))}
    await daemon.start(Gate(keys, []), drop_in=True)
    asked = {**GRANT, "js_code": "c0de", "grant_type": "authorization_code"}
    path = "/sns/jscode2session"
    with capture_logs() as lines:
        await daemon.http.get(path, params=asked)
        for _ in range(20):
            assert await refusal(await daemon.http.get(path, params=asked)) == 45011
        body = {"kind": "miniprogram", "code": "c0de"}
        answer = await daemon.post("/v1/logins/main", body, Authorization=f"Bearer {KEY}")
        assert answer.status == 429
    told = [line for line in lines if line["event"] == "throttled"]
    assert [(line["route"], line["times"]) for line in told] == [
        ("/{slashes}sns/jscode2session", 1),
        ("/v1/logins/{app}", 1),
    ]
    assert {line["client"] for line in told} == {"orders"}
    daemon.bench.clock.pass_(0.5)
    assert daemon.wired.front.throttled.note(("orders", "/{slashes}sns/jscode2session")) == 0
    daemon.bench.clock.pass_(60)
    assert daemon.wired.front.throttled.note(("orders", "/{slashes}sns/jscode2session")) == 21
    text = (await (await daemon.http.get("/metrics")).read()).decode()
    assert 'sns/jscode2session",status="45011"} 20.0' in text
    await daemon.http.close()


STRANGE: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/v1/tokens/main/report", {"data": b"no", "headers": {"Content-Encoding": "gzip"}}),
    ("POST", "/v1/tokens/main/refresh", {"data": b"no", "headers": {"Content-Encoding": "br"}}),
    ("POST", "/cgi-bin/token", {"data": b"no", "headers": {"Content-Encoding": "gzip"}}),
    ("POST", "/sns/jscode2session", {"data": b"x" * 99_999}),
    ("GET", "/v1/tokens/nobody", {}),
    ("GET", "/v1/tokens/main", {"headers": {"Authorization": "Bearer wrong"}}),
    ("GET", "/", {"headers": {"Host": "evil.example"}}),
    ("PUT", "/no/such/route", {"data": b"x"}),
]


@pytest.mark.parametrize("key", ["no key", "a key"])
async def test_refusals_write_no_line(
    daemon: Daemon, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    with capture_logs() as lines:
        for method, path, how in STRANGE:
            mine = {"Authorization": f"Bearer {KEY}"} if key == "a key" else {}
            closing = {"Connection": "close"}  # aiohttp ends it after a body that it cannot unpack
            asked = {**how, "headers": {**closing, **mine, **how.get("headers", {})}}
            for _ in range(3):
                await daemon.http.request(method, path, **asked)
    assert lines == []
    assert [one for one in caplog.records if one.name == "aiohttp.server" and _is_ours(one)] == []
    assert daemon.crashes == []


async def test_a_bug_that_is_met_again_and_again_is_told_once_a_second(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(_: object, __: object) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr(Gate, "refuse", bug)
    for _ in range(50):
        assert (await daemon.get("/v1/tokens/main")).status == 500
    assert (await daemon.get("/v1/status")).status == 500
    assert len(daemon.crashes) == 2  # one a route
    daemon.bench.clock.pass_(1)
    assert (await daemon.get("/v1/tokens/main")).status == 500
    assert len(daemon.crashes) == 3
