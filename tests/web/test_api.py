"""The HTTP API as services meet it: real requests, a real store, a scripted WeChat."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network

import pytest

from broker.core.errcodes import Failure, FailureCode, Kind
from broker.core.ports import Verdict
from broker.web.gate import Client, Gate
from broker.web.params import iso
from tests.harness.api import ME, Daemon, problem
from tests.harness.doubles import ACCOUNT, APPID, CANARY, DOWN, LOST, Bench
from tests.harness.places import ROOT

KEYS = {"orders": f"{CANARY}-orders", "ops": f"{CANARY}-ops", "other": f"{CANARY}-other"}


@pytest.fixture
async def daemon(bench: Bench) -> AsyncIterator[Daemon]:
    daemon = Daemon(bench)
    await daemon.start(Gate({}, []))
    yield daemon
    await daemon.http.close()


@pytest.fixture
async def guarded(bench: Bench) -> AsyncIterator[Daemon]:
    daemon = Daemon(bench)
    read = frozenset({"read", "report"})
    clients = [
        Client("orders", read, frozenset({"main"})),
        Client("ops", read | {"admin"}),
        Client("other", read, frozenset({"elsewhere"})),
    ]
    keys = {hashlib.sha256(KEYS[client.name].encode()).hexdigest(): client for client in clients}
    await daemon.start(Gate(keys, []))
    yield daemon
    await daemon.http.close()


# --- GET ------------------------------------------------------------------------------------------


async def test_a_token_comes_with_all_that_the_contract_promises(daemon: Daemon) -> None:
    await daemon.look()
    daemon.bench.clock.pass_(10.5)
    for name in ("main", APPID):
        response = await daemon.get(f"/v1/tokens/{name}")
        assert response.status == 200
        body = await response.json()
        assert body == {
            "app": "main",
            "appid": APPID,
            "access_token": f"{CANARY}-main-t1",
            "expires_in": body["expires_in"],
            "expires_at": iso(daemon.bench.clock.wall() + body["expires_in"]),
            "token_expires_in": 7189,
            "version": body["version"],
            "state": "fresh",
        }
        # Until our own next call may be made, and as long as the token surely lives on after it.
        assert 3240 + 240 - 11 <= body["expires_in"] <= 3960 + 240 - 10
        assert response.headers["ETag"] == f'"{body["version"]}"'
        assert response.headers["Cache-Control"] == "no-store"
        assert f"{CANARY}" not in body["version"]


async def test_fifty_requests_at_a_cold_start_cause_one_call(daemon: Daemon) -> None:
    answers = await asyncio.gather(*(daemon.get("/v1/tokens/main") for _ in range(50)))
    assert {answer.status for answer in answers} == {200}
    assert daemon.bench.wechat.calls == 1


async def test_if_none_match_answers_304_at_once_and_waits_with_wait(daemon: Daemon) -> None:
    await daemon.look()
    etag = (await daemon.get("/v1/tokens/main")).headers["ETag"]
    for tags in (etag, f'"x", {etag}', f"W/{etag}", "*"):
        response = await daemon.get("/v1/tokens/main", **{"If-None-Match": tags})
        assert (response.status, response.headers["ETag"], await response.read()) == (
            304,
            etag,
            b"",
        )
    assert (await daemon.get("/v1/tokens/main?wait=0.01", **{"If-None-Match": etag})).status == 304
    assert (
        await daemon.get("/v1/tokens/main?wait=300", **{"If-None-Match": '"older"'})
    ).status == 200
    assert (await daemon.get("/v1/tokens/main?wait=300")).status == 200


async def test_a_watcher_is_answered_as_soon_as_the_version_differs(daemon: Daemon) -> None:
    await daemon.look()
    etag = (await daemon.get("/v1/tokens/main")).headers["ETag"]
    watcher = asyncio.create_task(daemon.get("/v1/tokens/main?wait=55", **{"If-None-Match": etag}))
    await asyncio.wait({watcher}, timeout=0.05)
    assert not watcher.done()
    daemon.bench.clock.pass_(4000)
    await daemon.look()
    body = await (await watcher).json()
    assert body["access_token"] == f"{CANARY}-main-t2"


async def test_min_ttl_asks_for_a_token_with_that_much_left(daemon: Daemon) -> None:
    await daemon.look()
    assert (await daemon.get("/v1/tokens/main?min_ttl=3000")).status == 200
    daemon.bench.clock.pass_(4000)
    body = await (await daemon.get("/v1/tokens/main?min_ttl=3000")).json()
    assert body["token_expires_in"] == 7200
    assert 3240 + 240 <= body["expires_in"] <= 3960 + 240
    assert await problem(await daemon.get("/v1/tokens/main?min_ttl=86400")) == (
        503,
        "upstream-unavailable",
    )


@pytest.mark.parametrize(
    "query",
    [
        "wait=301",
        "wait=-1",
        "wait=x",
        "wait=nan",
        "wait=1&wait=2",
        "min_ttl=1e9",
        "mint_ttl=3",
        "wait=",
        "wait=1.2.3",
    ],
)
async def test_a_bad_parameter_is_named(daemon: Daemon, query: str) -> None:
    response = await daemon.get(f"/v1/tokens/main?{query}")
    assert await problem(response) == (400, "invalid-parameter")


async def test_an_unknown_app_and_an_unknown_route_are_404(daemon: Daemon) -> None:
    assert await problem(await daemon.get("/v1/tokens/nobody")) == (404, "unknown-app")
    assert await problem(await daemon.get("/v1/nothing")) == (404, "not-found")
    assert await problem(await daemon.post("/v1/tokens/main", {})) == (405, "method-not-allowed")


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (DOWN, "upstream-unavailable"),
        (Failure(Kind.QUOTA, FailureCode.ERRCODE, errcode=45009), "quota-exhausted"),
        (Failure(Kind.CONFIGURATION, FailureCode.ERRCODE, errcode=40125), "upstream-refused"),
        (
            Failure(Kind.ADMISSION, FailureCode.ERRCODE, errcode=40164, ip="203.0.113.7"),
            "upstream-refused",
        ),
    ],
)
async def test_no_token_is_503_with_the_reason_and_a_true_retry_after(
    daemon: Daemon, failure: Failure, code: str
) -> None:
    daemon.bench.wechat.answers.append(failure)
    response = await daemon.get("/v1/tokens/main")
    assert await problem(response) == (503, code)
    assert failure.ip is None or failure.ip in await response.text()
    daemon.bench.clock.pass_(int(response.headers["Retry-After"]))
    assert (await daemon.get("/v1/tokens/main")).status == 200


# --- reports and refreshes ------------------------------------------------------------------------


async def test_the_three_outcomes_of_a_report(daemon: Daemon) -> None:
    await daemon.look()
    version = (await (await daemon.get("/v1/tokens/main")).json())["version"]
    verified = await (
        await daemon.post("/v1/tokens/main/report", {"version": version, "errcode": 40001})
    ).json()
    assert (verified["outcome"], verified["version"]) == ("verified", version)
    daemon.bench.clock.pass_(60)
    daemon.bench.wechat.verdicts.append(Verdict.DEAD)
    refreshed = await (
        await daemon.post("/v1/tokens/main/report", {"access_token": f"{CANARY}-main-t1"})
    ).json()
    assert (refreshed["outcome"], refreshed["access_token"]) == ("refreshed", f"{CANARY}-main-t2")
    late = await (await daemon.post("/v1/tokens/main/report", {"version": version})).json()
    assert (late["outcome"], late["access_token"]) == ("superseded", f"{CANARY}-main-t2")
    assert (daemon.bench.wechat.calls, daemon.bench.wechat.checks) == (2, 2)


async def test_a_repeated_report_of_a_good_token_is_throttled(daemon: Daemon) -> None:
    await daemon.look()
    await daemon.post("/v1/tokens/main/report", {"access_token": f"{CANARY}-main-t1"})
    assert await problem(
        await daemon.post("/v1/tokens/main/report", {"access_token": f"{CANARY}-main-t1"})
    ) == (
        429,
        "report-throttled",
    )


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({}, (422, "invalid-body")),
        ({"version": "a", "access_token": "b"}, (422, "invalid-body")),
        ({"version": 1}, (422, "invalid-body")),
        ({"version": "a", "errcode": "40001"}, (422, "invalid-body")),
        ({"version": "a", "errcode": True}, (422, "invalid-body")),
        ({"version": "a", "errcode": 45009}, (422, "not-a-token-error")),
        ({"version": "a", "token": "b"}, (422, "invalid-body")),
        ([], (422, "invalid-body")),
        ("text", (422, "invalid-body")),
    ],
)
async def test_a_bad_report_says_where_it_is_wrong(
    daemon: Daemon, body: object, answer: tuple[int, str]
) -> None:
    assert await problem(await daemon.post("/v1/tokens/main/report", body)) == answer
    assert daemon.bench.wechat.checks == 0


async def test_bodies_that_are_no_json_too_large_or_of_another_type(daemon: Daemon) -> None:
    url, as_json = "/v1/tokens/main/report", {**ME, "Content-Type": "application/json"}
    for body in (b"{", b"\xff", b"[" * 10_000):
        assert await problem(await daemon.http.post(url, data=body, headers=as_json)) == (
            400,
            "invalid-json",
        )
    assert await problem(await daemon.http.post(url, data=b" " * 70_000, headers=as_json)) == (
        413,
        "body-too-large",
    )
    form = await daemon.http.post(url, data={"version": "a"}, headers=ME)
    assert await problem(form) == (415, "unsupported-media-type")
    assert daemon.crashes == []


async def test_a_refresh_spends_a_call_within_min_gap(daemon: Daemon) -> None:
    await daemon.look()
    assert await problem(await daemon.http.post("/v1/tokens/main/refresh", headers=ME)) == (
        429,
        "refresh-throttled",
    )
    daemon.bench.clock.pass_(30)
    body = await (await daemon.http.post("/v1/tokens/main/refresh", headers=ME)).json()
    assert body["access_token"] == f"{CANARY}-main-t2"
    assert await problem(await daemon.post("/v1/tokens/main/refresh", {"force": "yes"})) == (
        422,
        "invalid-body",
    )


# --- who gets in ----------------------------------------------------------------------------------

GUARDED_ROUTES = ["/v1/tokens/main", "/v1/status", "/openapi.json", "/", "/nothing"]
PROBES = ["/livez", "/readyz", "/readyz?app=main", "/health", "/metrics"]
FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:80",
    "127.0.0.1.evil.example",
    "",
    "localhost.",
    "[::1",
    "[10.0.0.5",
    "10.0.0.5.",
    "0x7f000001",
    "10.0.0",
]


@pytest.mark.parametrize("path", GUARDED_ROUTES)
@pytest.mark.parametrize("host", FOREIGN_HOSTS)
async def test_every_route_but_probes_refuses_a_foreign_host(
    daemon: Daemon, path: str, host: str
) -> None:
    response = await daemon.get(path, Host=host)
    assert await problem(response) == (403, "host-not-allowed")
    assert CANARY not in await response.text()


@pytest.mark.parametrize("path", PROBES)
@pytest.mark.parametrize("host", [*FOREIGN_HOSTS, "svc_with_underscore:8765", "10.0.0.5"])
async def test_a_probe_answers_whatever_host_is_asked_for(
    daemon: Daemon, path: str, host: str
) -> None:
    await daemon.look()
    response = await daemon.get(path, Host=host)
    assert response.status == 200
    assert CANARY not in await response.text()


@pytest.mark.parametrize("path", PROBES)
async def test_a_probe_needs_no_host_at_all(daemon: Daemon, path: str) -> None:
    await daemon.look()
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.http.port)
    writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())  # as HAProxy's default check does
    answer = await reader.read()
    writer.close()
    assert answer.split(b" ")[1] == b"200", answer


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:8765",
        "127.0.0.1:1",
        "[::1]:8765",
        "127.9.9.9",
        "10.0.0.5",
        "203.0.113.9:8765",
        "[2001:db8::7]:8765",
    ],
)
async def test_loopback_names_and_ip_addresses_are_ours_whatever_the_port(
    daemon: Daemon, host: str
) -> None:
    assert (await daemon.get("/v1/tokens/main", Host=host)).status == 200


async def test_configured_names_and_bound_addresses_are_ours(bench: Bench) -> None:
    daemon = Daemon(bench)
    await daemon.start(Gate({}, ["10.0.0.5", "broker.internal"]))
    for host in ("10.0.0.5:8765", "broker.internal"):
        assert (await daemon.get("/v1/tokens/main", Host=host)).status == 200
    await daemon.http.close()


@pytest.mark.parametrize(
    ("header", "value", "code"),
    [
        ("Origin", "https://evil.example", "browser-request"),
        ("Origin", "null", "browser-request"),
        ("Sec-Fetch-Site", "same-origin", "browser-request"),
        ("sec-fetch-mode", "no-cors", "browser-request"),
        ("Forwarded", "for=1.2.3.4", "forwarded-request"),
        ("X-Forwarded-For", "1.2.3.4", "forwarded-request"),
        ("x-forwarded-anything", "1", "forwarded-request"),
        ("Via", "1.1 proxy", "forwarded-request"),
    ],
)
async def test_browsers_and_proxies_get_no_token_but_may_see_the_status(
    daemon: Daemon, header: str, value: str, code: str
) -> None:
    await daemon.look()
    for send in (
        daemon.get("/v1/tokens/main", **{header: value}),
        daemon.post("/v1/tokens/main/report", {}, **{header: value}),
    ):
        response = await send
        assert await problem(response) == (403, code)
        assert CANARY not in await response.text()
    assert (await daemon.get("/v1/status", **{header: value})).status == 200


async def test_a_valid_key_may_come_through_any_proxy_and_nothing_else_may(guarded: Daemon) -> None:
    """A mesh adds X-Forwarded-Proto to every request."""
    path, meshed = "/v1/tokens/main", {"X-Forwarded-Proto": "http", "Via": "1.1 mesh"}
    key = {"Authorization": f"Bearer {KEYS['orders']}"}
    await guarded.look()
    assert (await guarded.http.get(path, headers={**key, **meshed})).status == 200
    refused = await guarded.get(path, **meshed)
    assert await problem(refused) == (403, "forwarded-request")
    assert "server.trusted_proxies" in (await refused.json())["detail"]
    wrong = await guarded.get(path, Authorization="Bearer x", **meshed)
    assert await problem(wrong) == (401, "invalid-key")
    browser = await guarded.http.get(path, headers={**key, **meshed, "Origin": "null"})
    assert await problem(browser) == (403, "browser-request")


@pytest.mark.parametrize(("network", "status"), [("127.0.0.0/8", 200), ("10.0.0.0/8", 403)])
async def test_forwarded_requests_of_a_trusted_proxy_are_normal(
    daemon: Daemon, network: str, status: int
) -> None:
    await daemon.look()
    daemon.gate.admit({}, [], [ip_network(network)])
    answer = await daemon.get("/v1/tokens/main", **{"X-Forwarded-For": "1.2.3.4"})
    assert answer.status == status


async def test_without_clients_a_program_shows_its_intent_by_a_header(daemon: Daemon) -> None:
    for headers in (
        {},
        {"X-Token-Broker": "0"},
        {"X-Token-Broker": ""},
        {"Authorization": "Bearer x"},
    ):
        assert await problem(await daemon.http.get("/v1/tokens/main", headers=headers)) == (
            403,
            "missing-request-header",
        )


async def test_with_clients_only_a_key_counts(guarded: Daemon) -> None:
    path = "/v1/tokens/main"
    assert await problem(await guarded.get(path)) == (401, "missing-key")
    for wrong in (
        "Bearer x",
        "Bearer ",
        "Basic b3JkZXJz",
        "x",
        "Bearer " + "y" * 7000,
        f"Bearer {KEYS['orders']}x",
    ):
        response = await guarded.get(path, Authorization=wrong)
        assert await problem(response) == (401, "invalid-key")
        assert "WWW-Authenticate" in response.headers
    good = f"Bearer {KEYS['orders']}"
    assert (await guarded.http.get(path, headers={"Authorization": good})).status == 200
    doubled = await guarded.http.get(
        path, headers=[("Authorization", good), ("Authorization", good)]
    )
    assert await problem(doubled) == (401, "invalid-key")


async def test_scopes_and_apps_are_kept_apart(guarded: Daemon) -> None:
    orders, ops, other = (
        {"Authorization": f"Bearer {KEYS[name]}"} for name in ("orders", "ops", "other")
    )
    refresh = "/v1/tokens/main/refresh"
    assert await problem(await guarded.http.post(refresh, headers=orders)) == (
        403,
        "insufficient-scope",
    )
    assert (await guarded.http.post(refresh, headers=ops)).status == 200
    for app in ("main", APPID, "nobody"):
        assert await problem(await guarded.http.get(f"/v1/tokens/{app}", headers=other)) == (
            403,
            "insufficient-scope",
        )
    assert await problem(await guarded.http.get("/v1/tokens/nobody", headers=ops)) == (
        404,
        "unknown-app",
    )


@pytest.mark.parametrize(
    "path",
    [
        "//v1/tokens/main",
        "/v1//tokens/main",
        "/v1/tokens/main;x",
        "/v1/tokens/%2e%2e/main",
        "/v1/tokens/main/",
    ],
)
async def test_paths_that_are_not_quite_ours_are_404_behind_the_gate(
    daemon: Daemon, path: str
) -> None:
    await daemon.look()
    reader, writer = await asyncio.open_connection(daemon.http.host, daemon.http.port)
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Token-Broker: 1\r\n"
        "Connection: close\r\n\r\n".encode()
    )
    answer = await reader.read()
    writer.close()
    assert b" 404 " in answer.splitlines()[0]
    assert CANARY.encode() not in answer


# --- status and probes ----------------------------------------------------------------------------


async def test_status_tells_everything_but_the_token(daemon: Daemon) -> None:
    await daemon.look()
    daemon.bench.clock.pass_(4000)
    daemon.bench.wechat.answers.append(
        Failure(
            Kind.ADMISSION, FailureCode.ERRCODE, errcode=40164, ip="203.0.113.7", rid="65ecc868-1-2"
        )
    )
    await daemon.look()
    text = await (await daemon.get("/v1/status")).text()
    assert CANARY not in text
    (app,) = json.loads(text)["apps"]
    assert (app["state"], app["token_expires_in"], app["next_refresh_in"]) == ("stale", 3200, 300)
    assert app["quota"] == {"limit": 2000, "used_today": 2, "used_24h": 2, "remaining": 1998}
    assert app["last_error"]["ip"] == "203.0.113.7"
    assert "203.0.113.7" in app["last_error"]["advice"]
    assert app["second_issuer"] == {"suspected": False, "since": None, "count": 0}


async def test_probes_follow_the_state_and_never_call_wechat(daemon: Daemon) -> None:
    assert (await daemon.get("/livez")).status == 503  # no tick yet
    assert (await daemon.get("/readyz")).status == 503
    daemon.bench.wechat.answers.append(DOWN)
    await daemon.look()
    assert ((await daemon.get("/livez")).status, (await daemon.get("/health")).status) == (200, 503)
    daemon.bench.clock.pass_(30)
    await daemon.look()
    assert [(await daemon.get(path)).status for path in ("/livez", "/readyz", "/health")] == [
        200,
        200,
        200,
    ]
    daemon.bench.clock.pass_(4000)
    daemon.bench.wechat.answers.append(LOST)
    await daemon.look()
    health = json.loads(await (await daemon.get("/health")).text())
    assert health["status"] == "warn"
    daemon.bench.clock.pass_(3600)
    assert (await daemon.get("/livez")).status == 503
    calls = daemon.bench.wechat.calls
    for path in ("/livez", "/readyz", "/health", "/metrics", "/v1/status"):
        await daemon.get(path)
    assert daemon.bench.wechat.calls == calls


async def test_readiness_can_be_asked_of_one_app(bench: Bench) -> None:
    daemon = Daemon(bench)
    await daemon.start(Gate({}, []), [ACCOUNT, replace(ACCOUNT, name="other", appid="wxother")])
    bench.wechat.answers.extend([DOWN])
    await daemon.look()
    ready = {
        app: (await daemon.get(f"/readyz?app={app}")).status for app in ("main", APPID, "other")
    }
    assert ready["main"] == ready[APPID] != ready["other"]
    assert (await daemon.get("/readyz")).status == 503
    for app in ("nobody", ""):
        assert await problem(await daemon.get(f"/readyz?app={app}")) == (404, "unknown-app")
    daemon.registry.stop()
    assert (await daemon.get("/readyz?app=main")).status == 503
    await daemon.http.close()


async def test_metrics_count_calls_and_requests_and_hold_no_token(daemon: Daemon) -> None:
    await daemon.look()
    await daemon.get("/v1/tokens/main")
    await daemon.get("/v1/tokens/nobody")
    response = await daemon.get("/metrics")
    text = await response.text()
    assert response.content_type == "text/plain"
    assert 'token_broker_http_requests_total{route="/v1/tokens/{app}",status="200"} 1.0' in text
    assert 'token_broker_token_expires_in_seconds{app="main"} 7200.0' in text
    assert 'token_broker_quota_used{app="main",window="24h"} 1.0' in text
    assert CANARY not in text


async def test_a_stopping_daemon_is_not_ready_but_answers_from_memory_and_lets_go_of_the_connection(
    daemon: Daemon,
) -> None:
    await daemon.look()
    daemon.registry.stop()
    assert (await daemon.get("/readyz")).status == 503
    response = await daemon.get("/v1/tokens/main")
    assert (response.status, response.headers["Connection"]) == (200, "close")


async def test_a_stopping_daemon_without_a_token_says_so(daemon: Daemon) -> None:
    daemon.registry.stop()
    assert await problem(await daemon.get("/v1/tokens/main")) == (503, "stopping")


async def test_a_stopping_daemon_tells_a_watcher_that_nothing_is_new(daemon: Daemon) -> None:
    await daemon.look()
    tag = (await daemon.get("/v1/tokens/main")).headers["ETag"]
    watcher = asyncio.create_task(daemon.get("/v1/tokens/main?wait=300", **{"If-None-Match": tag}))
    await daemon.get("/livez")
    daemon.registry.stop()
    assert (await watcher).status == 304


async def test_a_report_that_a_stopping_daemon_cannot_verify_is_not_called_refreshed(
    daemon: Daemon,
) -> None:
    await daemon.look()
    version = daemon.registry.find("main").credential.version  # type: ignore[union-attr]
    daemon.registry.stop()
    assert await problem(await daemon.post("/v1/tokens/main/report", {"version": version})) == (
        503,
        "stopping",
    )


async def test_a_bug_in_a_handler_is_a_problem_without_its_text(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon.registry, "find", lambda _: 1 / 0)
    response = await daemon.get("/v1/tokens/main")
    assert await problem(response) == (500, "internal-error")
    assert "division" not in await response.text()
    assert [type(error) for _, error in daemon.crashes] == [ZeroDivisionError]


async def test_openapi_describes_every_route_that_exists(daemon: Daemon) -> None:
    document = json.loads(await (await daemon.get("/openapi.json")).text())
    described = {
        (path, method.upper()) for path, methods in document["paths"].items() for method in methods
    }
    served = {
        (resource.canonical, route.method)
        for resource in daemon.http.app.router.resources()
        for route in resource
        if route.method != "HEAD"
    }
    pages = {route for route in served if route[0] == "/" or route[0].startswith("/static")}
    assert served - pages == described


def test_the_document_is_valid_enough_to_be_found_by_name() -> None:
    text = (ROOT / "broker/web/api/openapi.py").read_text()
    for code in (
        "host-not-allowed",
        "browser-request",
        "forwarded-request",
        "missing-request-header",
        "insufficient-scope",
    ):
        assert code in text


async def test_a_report_of_what_is_no_unicode_is_of_no_token_of_ours(daemon: Daemon) -> None:
    await daemon.look()
    headers = {**ME, "Content-Type": "application/json"}
    answer = await daemon.http.post(
        "/v1/tokens/main/report", data='{"access_token": "\\ud800"}', headers=headers
    )
    assert (answer.status, (await answer.json())["outcome"]) == (200, "superseded")
    assert daemon.crashes == []


# --- bodies that are not what their headers say ---------------------------------------------------

LYING = [
    {"Content-Encoding": "gzip"},
    {"Content-Encoding": "deflate"},
]


@pytest.mark.parametrize("headers", LYING, ids=str)
@pytest.mark.parametrize("body", [b'{"version": "x"}', b"\x1f\x8b\x08broken", b"x" * 5000])
@pytest.mark.parametrize(
    "path",
    ["/v1/tokens/main/report", "/v1/tokens/main/refresh", "/v1/tickets/main/jsapi/signature"],
)
async def test_a_body_that_is_not_what_its_headers_say_is_the_clients_fault(
    daemon: Daemon, path: str, body: bytes, headers: dict[str, str]
) -> None:
    await daemon.look()
    answer = await daemon.http.post(
        path, data=body, headers={**ME, "Content-Type": "application/json", **headers}
    )
    status, _ = await problem(answer)
    assert 400 <= status < 500
    assert daemon.crashes == []
