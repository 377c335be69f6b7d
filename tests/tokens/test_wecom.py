"""WeCom's tokens: repeated until they expire, one per app of a corpid (WECHAT.md W62)."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.config.load import ConfigError, load
from broker.core.answer import token_answer
from broker.core.credential import Credential, Endpoint, HeldToken, Policy
from broker.core.decision import refresh_at, scheduled_at
from broker.core.errcodes import Failure, FailureCode, Kind
from broker.core.ports import Minted, Verdict
from broker.core.quota import calls_per_day
from broker.core.secret import Secret
from broker.core.serving import Served, Unavailable
from broker.core.transitions import found_dead, minted
from broker.web.gate import Client, Gate
from broker.web.words import english
from tests.harness.api import Daemon
from tests.harness.crashpoints import ForkedDaemon, ForkServer
from tests.harness.doubles import ACCOUNT, CANARY, Bench, looked, value_of

CORP = "ww0123456789abcdef"
MAIN = replace(ACCOUNT, appid=CORP, endpoint=Endpoint.WECOM)
CRM = replace(MAIN, name="crm", secret=Secret(f"{CANARY}-of-crm"))
KEY, CRM_KEY = f"{CANARY}-key", f"{CANARY}-key-of-crm"
POLICY = Policy()


# --- the rule -------------------------------------------------------------------------------------


def test_the_next_token_is_asked_for_when_this_one_has_expired() -> None:
    held = Credential("e", HeldToken(Secret("t"), 1, 100.0, 7300.0))
    assert (
        scheduled_at(held, Endpoint.WECOM, POLICY)
        == refresh_at(held, Endpoint.WECOM, POLICY)
        == 7302.0
    )
    assert calls_per_day(Endpoint.WECOM, POLICY) == 13


def test_a_repeated_token_is_not_prolonged_before_its_end_and_is_after_it() -> None:
    held = Credential("e", HeldToken(Secret("t"), 1, 100.0, 7300.0))
    again = minted(held, 2, 5000.0, (Secret("t"), 7200.0), Endpoint.WECOM)
    assert (again.version, again.token and again.token.expires_at) == ("e-1", 7300.0)
    sooner = minted(held, 2, 5000.0, (Secret("t"), 100.0), Endpoint.WECOM)
    assert sooner.token is not None
    assert sooner.token.expires_at == 5100.0
    after = minted(held, 2, 7301.0, (Secret("t"), 60.0), Endpoint.WECOM)
    assert after.token is not None
    assert after.token.expires_at == 7361.0


def test_a_token_that_died_early_is_no_sign_of_a_second_issuer() -> None:
    held = Credential("e", HeldToken(Secret("t"), 1, 100.0, 7300.0))
    dead = found_dead(held, "e-1", 200.0, 1e9, Endpoint.WECOM)
    assert dead is not None
    assert dead.refused
    assert dead.second_issuer.count == 0


async def test_in_the_last_seconds_a_request_waits_for_the_next_token(bench: Bench) -> None:
    keeper = await bench.keeper(MAIN)
    await looked(keeper)
    held = keeper.credential.token
    assert held is not None
    bench.clock.pass_(held.lifetime - 3)
    assert value_of(keeper) is not None
    bench.clock.pass_(2.9)
    assert keeper.serve() is None
    asking = [asyncio.create_task(keeper.get(patience_s=60)) for _ in range(20)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in asking)
    bench.clock.pass_(2.1)
    for served in await asyncio.gather(*asking):
        assert isinstance(served, Served)
        assert served.credential.version != f"{keeper.credential.epoch}-1"
    assert bench.wechat.calls == 2
    assert isinstance(await keeper.get(min_ttl=7300, patience_s=0.01), Unavailable)


async def test_a_day_costs_a_dozen_calls_and_a_lost_answer_nothing(bench: Bench) -> None:
    keeper = await bench.keeper(MAIN)
    await looked(keeper)
    bench.wechat.answers.append(
        Failure(Kind.TRANSIENT, FailureCode.NO_ANSWER, lost=True, facts={"seconds": "10"})
    )
    lost = 0
    for _ in range(86400 // 5):
        bench.clock.pass_(5)
        await looked(keeper)
        lost += value_of(keeper) is None
        assert keeper.credential.suspicion is None
    assert bench.wechat.calls <= 14
    assert (
        lost * 5 < 12 * 25 + 60
    )  # the last seconds of each, which policy.min_serve keeps back, and one failure


# --- errcodes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("errcode", "kind"),
    [
        (40001, Kind.CONFIGURATION),
        (40013, Kind.CONFIGURATION),
        (45009, Kind.SLOW_DOWN),
        (60020, Kind.ADMISSION),
        (99, Kind.TRANSIENT),
    ],
)
def test_wecoms_numbers_are_its_own(errcode: int, kind: Kind) -> None:
    text = (
        "not allow to access from your ip, hint: [1655882], from ip: 203.0.113.7, more info at"
        " https://open.work.weixin.qq.com"
    )
    answer = token_answer(json.dumps({"errcode": errcode, "errmsg": text}).encode(), wecom=True)
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.ip) == (kind, "203.0.113.7" if kind is Kind.ADMISSION else None)
    if kind is not Kind.TRANSIENT:
        assert "WeCom" in english.FAILURES.advice(answer) or kind is Kind.SLOW_DOWN
    assert isinstance(
        token_answer(
            b'{"errcode":0,"errmsg":"ok","access_token":"T","expires_in":7200}', wecom=True
        ),
        Minted,
    )


# --- its own path ---------------------------------------------------------------------------------


@pytest.fixture
async def daemon(bench: Bench) -> AsyncIterator[Daemon]:
    daemon = Daemon(bench)
    read = frozenset({"read"})
    clients = {KEY: Client("orders", read), CRM_KEY: Client("crm", read, frozenset({"crm"}))}
    keys = {hashlib.sha256(key.encode()).hexdigest(): client for key, client in clients.items()}
    await daemon.start(Gate(keys, []), [MAIN, CRM, replace(ACCOUNT, name="shop")], drop_in=True)
    await daemon.look()
    yield daemon
    await daemon.http.close()


async def gettoken(daemon: Daemon, **said: str) -> dict[str, Any]:
    answer = await daemon.http.get("/cgi-bin/gettoken", params=said)
    assert (answer.status, answer.content_type) == (200, "application/json")
    read: dict[str, Any] = await answer.json()
    return read


async def test_the_key_says_which_app_of_the_corpid_is_meant(daemon: Daemon) -> None:
    said = await gettoken(daemon, corpid=CORP, corpsecret=CRM_KEY)
    assert said["access_token"].startswith(f"{CANARY}-crm-")
    assert {**said, "access_token": ""} == {
        "errcode": 0,
        "errmsg": "ok",
        "access_token": "",
        "expires_in": 7200,
    }
    several = await gettoken(daemon, corpid=CORP, corpsecret=KEY)
    assert several["errcode"] == 40013
    assert "client of its own" in several["errmsg"]
    assert (await gettoken(daemon, corpid="main", corpsecret=KEY))["access_token"].startswith(
        f"{CANARY}-main-"
    )


@pytest.mark.parametrize(
    ("said", "errcode", "errmsg"),
    [
        ({}, 41002, "corpid missing"),
        ({"corpid": CORP}, 41004, "corpsecret missing"),
        ({"corpid": CORP, "corpsecret": "x"}, 40001, "invalid credential"),
        ({"corpid": "ww99", "corpsecret": CRM_KEY}, 40013, "invalid corpid"),
        ({"corpid": "shop", "corpsecret": KEY}, 40013, "invalid corpid"),
    ],
)
async def test_others_hear_wecoms_numbers(
    daemon: Daemon, said: dict[str, str], errcode: int, errmsg: str
) -> None:
    assert await gettoken(daemon, **said) == {"errcode": errcode, "errmsg": errmsg}


async def test_wechats_path_gives_no_token_of_wecoms(daemon: Daemon) -> None:
    asked = {"grant_type": "client_credential", "appid": CORP, "secret": CRM_KEY}
    assert (await (await daemon.http.get("/cgi-bin/token", params=asked)).json())[
        "errcode"
    ] == 40013


async def test_asking_again_is_a_report_there_too(daemon: Daemon, bench: Bench) -> None:
    first = await gettoken(daemon, corpid=CORP, corpsecret=CRM_KEY)
    bench.clock.pass_(40)
    bench.wechat.verdicts.append(Verdict.DEAD)
    again = await gettoken(daemon, corpid=CORP, corpsecret=CRM_KEY)
    assert again["access_token"] != first["access_token"]
    assert bench.wechat.checks == 1


# --- configuration, and for real ------------------------------------------------------------------


def configuration(tmp_path: Path, apps: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(apps)
    path.chmod(0o600)
    return path


APP = '[apps.{}]\nappid = "{}"\nsecret = "{}"\n{}\n'


def test_apps_of_one_corpid_are_configured_side_by_side(tmp_path: Path) -> None:
    both = [
        APP.format(name, CORP, f"secret-of-{name}", 'endpoint = "wecom"') for name in ("hr", "crm")
    ]
    accounts = load(configuration(tmp_path, "".join(both)), {}).apps
    assert {account.endpoint for account in accounts.values()} == {Endpoint.WECOM}
    assert len({account.id for account in accounts.values()}) == 2


@pytest.mark.parametrize(
    ("apps", "complaint"),
    [
        (
            APP.format("hr", CORP, "s", ""),
            'apps.hr.appid: is a corpid: an app of WeCom\'s has endpoint = "wecom"',
        ),
        (APP.format("hr", CORP, "s", 'endpoint = "jsapi"'), "apps.hr.endpoint"),
        (
            APP.format("a", "wx01", "s", 'endpoint = "wecom"') + APP.format("b", "wx01", "t", ""),
            "apps.b.appid: is the AppID of apps.a too",
        ),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, apps: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(configuration(tmp_path, apps), {})
    assert complaint in str(refused.value)


def test_a_daemon_serves_apps_of_both_platforms(tmp_path: Path, forks: ForkServer) -> None:
    house = ForkedDaemon(tmp_path, fork_server=forks)
    with house.simulating():
        more = f'[wecom]\napi_base = "{house.sandbox}"\n' + APP.format(
            "crm", CORP, f"{CANARY}-crm", 'endpoint = "wecom"'
        )
        house.configure(more=more).chmod(0o600)
        with house.living() as first:
            _, main = house.get("/v1/tokens/main")
            _, crm = house.get("/v1/tokens/crm")
            assert crm["access_token"] != main["access_token"]
            assert crm["appid"] == CORP
            first.end()
        with house.living():
            assert house.get("/v1/tokens/crm")[1]["access_token"] == crm["access_token"]
        assert [call["endpoint"] for call in house.calls() if call["appid"] == CORP] == ["gettoken"]
