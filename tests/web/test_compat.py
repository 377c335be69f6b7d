"""WeChat's own token paths: an SDK becomes a client by one changed line.

The broker finds out what the SDK means when it asks again.
"""

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from broker.core.errcodes import Failure, FailureCode, Kind
from broker.core.ports import Verdict
from broker.web.gate import Client, Gate
from tests.harness.api import Daemon
from tests.harness.doubles import ACCOUNT, APPID, CANARY, Bench

KEY, OTHER = f"{CANARY}-key-of-orders", f"{CANARY}-key-of-shop"
GRANT = {"grant_type": "client_credential", "appid": APPID, "secret": KEY}


@pytest.fixture
async def daemon(bench: Bench) -> AsyncIterator[Daemon]:
    scopes = frozenset({"read"})
    keys = {KEY: Client("orders", scopes), OTHER: Client("shop", scopes, frozenset({"another"}))}
    daemon = Daemon(bench)
    gate = Gate(
        {hashlib.sha256(key.encode()).hexdigest(): client for key, client in keys.items()}, []
    )
    await daemon.start(gate, drop_in=True)
    await daemon.look()
    yield daemon
    await daemon.http.close()


async def ask(daemon: Daemon, path: str = "/cgi-bin/token", **said: str) -> dict[str, Any]:
    answer = await daemon.http.get(path, params={**GRANT, **said})
    assert answer.status == 200
    assert answer.content_type == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    body: dict[str, Any] = await answer.json()
    assert CANARY not in str(body.get("errmsg", ""))
    return body


def value(number: int) -> str:
    return f"{CANARY}-main-t{number}"


# --- as WeChat answers ----------------------------------------------------------------------------


@pytest.mark.parametrize("slashes", ["/", "//", "///"])
@pytest.mark.parametrize("path", ["cgi-bin/token", "cgi-bin/stable_token"])
async def test_both_paths_answer_like_wechat_without_an_errcode(
    daemon: Daemon, slashes: str, path: str
) -> None:
    url = str(daemon.http.make_url("/")).rstrip("/") + slashes + path
    async with daemon.http.session.get(url, params=GRANT) as answer:
        said = await answer.json()
    assert said == {"access_token": value(1), "expires_in": said["expires_in"]}
    assert 3240 + 240 <= said["expires_in"] <= 3960 + 240  # until our own next call, and a while


@pytest.mark.parametrize("kind", ["json", "data"])
async def test_a_body_will_do_as_well(daemon: Daemon, kind: str) -> None:
    said: dict[str, Any] = {kind: GRANT}
    answer = await daemon.http.post("/cgi-bin/stable_token", **said)
    assert (await answer.json())["access_token"] == value(1)


async def test_expires_in_is_never_more_than_the_truth(daemon: Daemon) -> None:
    daemon.bench.clock.pass_(1000.5)
    assert (await ask(daemon))["expires_in"] <= 6199


@pytest.mark.parametrize(
    ("said", "errcode", "words"),
    [
        ({"grant_type": "code"}, 40002, "invalid grant_type"),
        ({"appid": ""}, 41002, "appid missing"),
        ({"secret": ""}, 41004, "appsecret missing"),
        ({"appid": "wxnobody"}, 40013, "invalid appid"),
        ({"secret": "wrong"}, 40125, "invalid appsecret"),
        ({"secret": ACCOUNT.secret.reveal()}, 40125, "invalid appsecret"),
        ({"secret": OTHER}, 40013, "invalid appid"),
    ],
    ids=[
        "grant_type",
        "no appid",
        "no secret",
        "unknown app",
        "wrong key",
        "the AppSecret is no key",
        "another's app",
    ],
)
async def test_refusals_are_wechats_numbers_and_words(
    daemon: Daemon, said: dict[str, str], errcode: int, words: str
) -> None:
    answer = await ask(daemon, **said)
    assert answer["errcode"] == errcode
    assert words in answer["errmsg"]
    assert "access_token" not in answer


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"[" * 100_00])
async def test_a_body_that_is_none_is_an_errcode_too(daemon: Daemon, body: bytes) -> None:
    answer = await daemon.http.post("/cgi-bin/token", data=body)
    assert answer.status == 200
    assert (await answer.json())["errcode"] in {40002, 47001}


async def test_without_a_token_it_is_an_errcode_and_no_503(daemon: Daemon) -> None:
    daemon.bench.wechat.answers.extend(
        [Failure(Kind.TRANSIENT, FailureCode.HTTP_STATUS, facts={"status": "502"})] * 9
    )
    daemon.bench.clock.pass_(7300)
    assert (await ask(daemon))["errcode"] == -1
    daemon.bench.clock.pass_(400)
    daemon.bench.wechat.answers.clear()
    daemon.bench.wechat.answers.append(Failure(Kind.QUOTA, FailureCode.ERRCODE, 45009))
    assert (await ask(daemon))["errcode"] == 45009


async def test_the_gate_stands_before_it(daemon: Daemon) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        answer = await daemon.http.get("/cgi-bin/token", params=GRANT, headers=headers)
        assert (answer.status, (await answer.json())["errcode"]) == (200, 48001)
    # Whoever has a key may come through a proxy.
    forwarded = {"X-Forwarded-For": "1.2.3.4"}
    assert (await daemon.http.get("/cgi-bin/token", params=GRANT, headers=forwarded)).status == 200


async def test_it_is_off_unless_asked_for(bench: Bench) -> None:
    daemon = Daemon(bench)
    await daemon.start(Gate({}, []))
    assert (await daemon.http.get("/cgi-bin/token", params=GRANT)).status == 404
    await daemon.http.close()


async def test_on_a_machine_without_clients_any_key_will_do_but_there_must_be_one(
    bench: Bench,
) -> None:
    daemon = Daemon(bench)
    await daemon.start(Gate({}, []), drop_in=True)
    await daemon.look()
    assert "access_token" in await ask(daemon, secret="anything")
    assert (await ask(daemon, secret=""))["errcode"] == 41004
    await daemon.http.close()


# --- asking again ---------------------------------------------------------------------------------


async def test_fifty_at_a_cold_start_are_one_call_and_no_suspicion(bench: Bench) -> None:
    daemon = Daemon(bench)
    await daemon.start(Gate({}, []), drop_in=True)
    answers = await asyncio.gather(*(ask(daemon) for _ in range(50)))
    assert {answer["access_token"] for answer in answers} == {value(1)}
    assert bench.wechat.calls == 1
    await daemon.http.close()


async def test_who_asks_again_reports_and_a_dead_token_is_replaced_on_wechats_word(
    daemon: Daemon,
) -> None:
    assert (await ask(daemon))["access_token"] == value(1)
    daemon.bench.clock.pass_(3000)
    daemon.bench.wechat.verdicts.append(Verdict.DEAD)
    assert (await ask(daemon))["access_token"] == value(2)
    assert (daemon.bench.wechat.calls, daemon.bench.wechat.checks) == (2, 1)


async def test_who_asks_again_for_a_good_token_gets_it_and_costs_one_check_in_verify_gap(
    daemon: Daemon,
) -> None:
    for _ in range(20):
        daemon.bench.clock.pass_(0.4)
        assert (await ask(daemon))["access_token"] == value(1)
    assert (daemon.bench.wechat.calls, daemon.bench.wechat.checks) == (1, 1)


async def test_force_refresh_is_a_report_and_nothing_more(daemon: Daemon) -> None:
    daemon.bench.clock.pass_(60)
    body = {**GRANT, "force_refresh": True}
    answer = await daemon.http.post("/cgi-bin/stable_token", json=body)
    assert (await answer.json())["access_token"] == value(1)
    assert (daemon.bench.wechat.calls, daemon.bench.wechat.checks) == (1, 1)


async def test_another_client_is_not_taken_to_ask_again(bench: Bench) -> None:
    daemon, keys = (
        Daemon(bench),
        {name: Client(name, frozenset({"read"})) for name in ("a", "b", "c")},
    )
    await daemon.start(
        Gate({hashlib.sha256(key.encode()).hexdigest(): one for key, one in keys.items()}, []),
        drop_in=True,
    )
    await daemon.look()
    for key in keys:
        daemon.bench.clock.pass_(30)
        assert (await ask(daemon, secret=key))["access_token"] == value(1)
    assert bench.wechat.checks == 0
    await daemon.http.close()


async def test_who_asks_steadily_is_always_answered_and_costs_ever_fewer_verifications(
    daemon: Daemon,
) -> None:
    checked_at = []
    for second in range(3000):
        daemon.bench.clock.pass_(1)
        before = daemon.bench.wechat.checks
        assert (await ask(daemon))["access_token"] == value(1)
        await daemon.registry.drain()
        if daemon.bench.wechat.checks > before:
            checked_at.append(second)
    gaps = [later - sooner for sooner, later in itertools.pairwise(checked_at)]
    assert min(gaps) >= 60
    assert set(gaps[3:]) <= {299, 300, 301}
    assert daemon.bench.wechat.calls == 1


async def test_who_doubts_in_vain_again_and_again_is_taken_for_who_asks_steadily(
    daemon: Daemon,
) -> None:
    checked_at = []
    for minute in range(0, 41, 2):  # slower than who never keeps a token: a fleet, a notifier
        daemon.bench.clock.pass_(120)
        before = daemon.bench.wechat.checks
        assert (await ask(daemon))["access_token"] == value(1)
        await daemon.registry.drain()
        if daemon.bench.wechat.checks > before:
            checked_at.append(minute)
    gaps = [later - sooner for sooner, later in itertools.pairwise(checked_at)]
    assert gaps[:2] == [2, 2]  # the first three are believed at once
    assert min(gaps[4:]) >= 5
    daemon.bench.wechat.verdicts.extend([Verdict.DEAD])
    for _ in range(4):
        daemon.bench.clock.pass_(120)
        await ask(daemon)
        await daemon.registry.drain()
    assert (await ask(daemon))["access_token"] == value(2)


async def test_a_dead_token_is_replaced_though_nobody_who_asks_keeps_it(daemon: Daemon) -> None:
    for _ in range(5):
        daemon.bench.clock.pass_(0.1)
        await ask(daemon)
    daemon.bench.wechat.verdicts.extend([Verdict.DEAD] * 5)
    for _ in range(125):
        daemon.bench.clock.pass_(1)
        last = await ask(daemon)
        await daemon.registry.drain()
    assert last["access_token"] == value(2)


async def test_nobody_waits_long_for_a_verification_while_a_good_token_is_held(
    daemon: Daemon,
) -> None:
    await ask(daemon)
    daemon.bench.clock.pass_(600)
    daemon.bench.wechat.gate.clear()  # WeChat hangs
    async with asyncio.timeout(5):
        assert (await ask(daemon))["access_token"] == value(1)
    daemon.bench.wechat.gate.set()


async def test_the_day_has_so_many_verifications_and_no_more(bench: Bench) -> None:
    bench.policy = replace(bench.policy, verify_quota=10)
    daemon = Daemon(bench)
    await daemon.start(Gate({}, []), drop_in=True)
    await daemon.look()
    for _ in range(100):
        bench.clock.pass_(25)
        await daemon.http.post("/cgi-bin/stable_token", json={**GRANT, "force_refresh": True})
    assert bench.wechat.checks == 10
    await daemon.http.close()


@pytest.mark.parametrize("errcode", [40164, 40243, 89503])
async def test_what_a_person_must_see_to_is_said_with_wechats_own_number(
    bench: Bench, errcode: int
) -> None:
    bench.wechat.answers.append(
        Failure(Kind.ADMISSION, FailureCode.ERRCODE, errcode, ip="203.0.113.7")
    )
    daemon = Daemon(bench)
    await daemon.start(Gate({}, []), drop_in=True)
    await daemon.look()
    said = await ask(daemon)
    assert said["errcode"] == errcode
    await daemon.http.close()


async def test_a_token_that_stays_dead_costs_no_more_than_reports_may(daemon: Daemon) -> None:
    daemon.bench.wechat.verdicts.extend([Verdict.DEAD] * 200)
    daemon.compat._patience_s = 0.01  # a wait would last: the clock is moved by hand
    for _ in range(200):
        daemon.bench.clock.pass_(1)
        await ask(daemon)
    assert daemon.bench.wechat.calls <= 1 + 200 / daemon.bench.policy.min_gap + 1


async def test_clients_of_the_drop_in_paths_are_counted_too(daemon: Daemon) -> None:
    await ask(daemon)
    assert "orders" in await (await daemon.http.get("/")).text()


@pytest.mark.parametrize(
    "path", ["/cgi-bin/token", "/cgi-bin/gettoken", "/cgi-bin/ticket/getticket"]
)
async def test_a_word_that_is_no_unicode_is_a_wrong_one_and_no_bug(
    daemon: Daemon, path: str
) -> None:
    names = ("appid", "secret", "corpid", "corpsecret", "access_token", "type")
    body = (
        '{"grant_type": "client_credential"'
        + "".join(f', "{name}": "\\ud800"' for name in names)
        + "}"
    )
    answer = await daemon.http.post(path, data=body)
    assert (answer.status, (await answer.json())["errcode"]) in {(200, 40125), (200, 40001)}
    assert daemon.crashes == []


@pytest.mark.parametrize(
    "headers", [{"Content-Encoding": "gzip"}, {"Content-Encoding": "deflate"}], ids=str
)
@pytest.mark.parametrize("path", ["token", "stable_token", "gettoken", "ticket/getticket"])
async def test_a_body_that_is_not_packed_as_it_says_is_malformed(
    daemon: Daemon, path: str, headers: dict[str, str]
) -> None:
    answer = await daemon.http.post(f"/cgi-bin/{path}", data=b'{"a": 1}' * 9, headers=headers)
    assert (answer.status, (await answer.json())["errcode"]) == (200, 47001)
    assert daemon.crashes == []


@pytest.mark.parametrize("path", ["token", "ticket/getticket"])
async def test_a_body_that_is_too_large_is_refused_in_wechats_manner(
    daemon: Daemon, path: str
) -> None:
    answer = await daemon.http.post(f"/cgi-bin/{path}", data=b"{" + b" " * 70_000 + b"}")
    assert (answer.status, (await answer.json())["errcode"]) == (200, 47001)
