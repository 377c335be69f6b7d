"""Clients with the caching rules of real SDKs, on classic, stable and WeCom (SCENARIOS.md 49).

The figure is what each client met that was no success. In ordinary operation it is 0, whatever the
client's rule; and a token lives for as long as was promised, unless an incident ends it.
"""

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.core.credential import Policy
from broker.core.decision import safe_end
from broker.core.quota import DAY
from broker.tokens import live
from tests.harness.cluster import cluster
from tests.simulation.zoo import ACCOUNTS, Rule, Setting, Zoo, less

CLASSIC, _, WECOM = ACCOUNTS
MOST_A_DAY = 60  # verifications beyond the half of the quota that steady askers have


@asynccontextmanager
async def opened(
    path: Path, days: float, hosts: int, *, incidents_a_day: float = 0
) -> AsyncIterator[Zoo]:
    """A zoo that has lived so many days, on a SQLite file or on a database of its own."""
    seed, began = random.randrange(10**6), time.monotonic()
    print(f"seed {seed}")
    if hosts == 1:
        zoo = Zoo(path / "broker.db", days, seed)
        zoo.strew_incidents(incidents_a_day)
        async with zoo.open():
            await zoo.live()
    else:
        with cluster() as server:
            zoo = Zoo(path, days, seed, hosts=hosts, url=server.dsn(server.database()))
            zoo.strew_incidents(incidents_a_day)
            async with zoo.open():
                await zoo.live()
    print(zoo.table(), f"{time.monotonic() - began:.0f} s real", sep="\n")
    yield zoo


@pytest.mark.parametrize(
    ("days", "hosts"),
    [
        pytest.param(0.4, 1, id="one host"),
        pytest.param(0.4, 3, marks=pytest.mark.needs("initdb"), id="three hosts"),
        pytest.param(14, 1, marks=pytest.mark.soak, id="a fortnight"),
        # As long as the time of a push allows; a real database answers each host.
        pytest.param(
            2, 3, marks=[pytest.mark.soak, pytest.mark.needs("initdb")], id="three hosts, two days"
        ),
    ],
)
async def test_in_ordinary_operation_no_client_is_ever_refused(
    tmp_path: Path, days: float, hosts: int
) -> None:
    async with opened(tmp_path, days, hosts) as zoo:
        assert zoo.broken_promises() == []
        assert zoo.met == []
        for account in ACCOUNTS:
            most = (zoo.policy.verify_quota / 2 + MOST_A_DAY) * max(days, 1) * hosts
            assert zoo.wechat.checks[account.name] <= most
        # One a half-life, give or take the jitter, and the first.
        assert zoo.wechat.calls["main"] <= days * DAY / (3600 * 0.9) + 2


async def test_without_the_promise_the_same_clients_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "promised_until", lambda held, *_: safe_end(held))
    async with opened(tmp_path, 0.4, 1) as zoo:
        assert zoo.broken_promises() != []
        refused = {it.rule for it in zoo.met if it.app == "main" and it.errcode == 40001}
        assert {"EasyWeChat 6", "node-easywechat", "WxJava", "a fleet"} <= refused
        assert "by the proxy" not in refused


@pytest.mark.parametrize("days", [0.4, pytest.param(14, marks=pytest.mark.soak)])
async def test_whatever_happens_nobody_is_refused_but_for_a_reason(
    tmp_path: Path, days: float
) -> None:
    """Second issuers, killed tokens, outages, lost answers, restarts, other policies (57)."""
    async with opened(tmp_path, days, 1, incidents_a_day=24 if days < 1 else 4) as zoo:
        assert zoo.broken_promises() == []
        assert [it for it in zoo.needless() if it.token] == []
        assert zoo.answered > days * 10_000


async def test_a_fleet_that_starts_at_once_costs_one_call_and_nobody_waits_for_a_doubt(
    tmp_path: Path,
) -> None:
    """500 processes with one key, at the start and at each rotation (SCENARIOS.md 52)."""
    fleet = Rule("a fleet", less(0), every_s=600, processes=500, starts_within_s=1)
    zoo = Zoo(tmp_path / "broker.db", 0.15, 1, setting=Setting([fleet], [CLASSIC]))
    async with zoo.open():
        await zoo.live()
    first = [it for it in zoo.handed if it.at < zoo.began + 10]
    assert len(first) == fleet.processes
    assert len({it.token for it in first}) == 1
    assert zoo.met == []
    assert zoo.wechat.calls["main"] == len({it.token for it in zoo.handed}) >= 4
    came_at = {it.token: it.at for it in reversed(zoo.handed)}
    for at in came_at.values():
        assert sum(at <= checked_at < at + 60 for checked_at in zoo.wechat.checked_at) <= 1


async def test_at_wecom_no_one_is_refused_at_a_renewal_and_nobody_waits_long(
    tmp_path: Path,
) -> None:
    """Asked twice a second through three renewals (SCENARIOS.md 56)."""
    rules = [
        Rule("twice a second", less(0), every_s=0.5),
        Rule("a notifier", lambda _: 0, every_s=0.5),
        Rule("by the proxy", lambda _: 0, every_s=0.5, by_proxy=True),
    ]
    # A daemon's waiting requests look by themselves when the call is due; here the tick does.
    setting = Setting(rules, [WECOM], Policy(tick=0.1), expires_in=600, longest_way_s=0.4)
    zoo = Zoo(tmp_path / "broker.db", 3.5 * 600 / DAY, 1, setting=setting)
    async with zoo.open():
        await zoo.live()
    assert zoo.wechat.calls["corp"] == 4
    assert zoo.met == []
    assert zoo.broken_promises() == []
    assert zoo.slowest <= 5
    left = [zoo.wechat.ends[it.token].at - it.at for it in zoo.handed]
    assert min(left) >= 2
