"""Several processes that share a store have one token and one ledger.

Nobody's word is taken that is no longer in force.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from broker.core.credential import (
    NEVER,
    Account,
    Credential,
    Doubt,
    Endpoint,
    HeldToken,
    Policy,
    Suspicion,
)
from broker.core.decision import check_at
from broker.core.ports import (
    Change,
    Decide,
    Denied,
    Grant,
    Held,
    Minted,
    Node,
    OnStoreChanged,
    StoreError,
    Verdict,
    Versions,
)
from broker.core.secret import Secret
from broker.core.serving import Code, ReportOutcome, Served, Unavailable
from broker.core.transitions import found_alive, lease_lost, lost, overlap_after_replacement
from broker.tokens.emergency_budget import EmergencyBudget
from broker.tokens.keeper import Keeper
from broker.tokens.refresher import LATEST_START_S, LEASE_SLACK_S
from broker.tokens.registry import Registry
from tests.harness.doubles import ACCOUNT, DOWN, Bench, ScriptedWeChat, looked, value_of

LEASE_S = 10 + LEASE_SLACK_S


@dataclass
class Shared:
    """One process's view of a store that several share; the others hear of what it changes."""

    bench: Bench
    everyone: list["Shared"]
    sole_owner: bool = False
    last_error: str | None = None
    node: str = ""
    nodes: Sequence[Node] = ()
    listeners: list[OnStoreChanged] = field(default_factory=list)
    is_away: bool = False
    after_reserve: Callable[[], None] = lambda: None

    def watch(self, on_store_changed: OnStoreChanged, versions: Versions) -> None:
        assert versions() is not None
        self.listeners.append(on_store_changed)

    async def load(self, account: Account) -> Held:
        return await (await self._store()).load(account)

    async def reserve(self, account: Account, decide: Decide) -> Grant | Denied:
        answer = await (await self._store()).reserve(account, decide)
        self.after_reserve()
        self._tell(account)
        return answer

    async def settle(
        self,
        account: Account,
        grant: Grant,
        outcome: str,
        change: Change,
        *,
        emergency: bool = False,
    ) -> Credential:
        held = await (await self._store()).settle(
            account, grant, outcome, change, emergency=emergency
        )
        self._tell(account)
        return held

    async def amend(self, account: Account, change: Change) -> tuple[Credential, bool]:
        held, changed = await (await self._store()).amend(account, change)
        if changed:
            self._tell(account)
        return held, changed

    async def history(self, since: float, account: Account) -> list[dict[str, Any]]:
        return await (await self._store()).history(since, account)

    async def close(self) -> None:
        """The bench closes what is under it."""

    async def _store(self) -> "Shared":
        if self.is_away:
            raise StoreError("the database does not answer")
        return await self.bench.open()  # type: ignore[return-value]

    def _tell(self, account: Account) -> None:
        for other in self.everyone:
            if other is not self:
                for on_store_changed in other.listeners:
                    on_store_changed(account.appid)


@dataclass
class Host:
    """One broker: its view of the store, its WeChat (each may be stopped by itself), its keeper."""

    store: Shared
    wechat: ScriptedWeChat
    registry: Registry

    @property
    def keeper(self) -> Keeper:
        return next(iter(self.registry))


@dataclass
class Hosts:
    bench: Bench
    everyone: list[Shared] = field(default_factory=list)
    at: list[Host] = field(default_factory=list)

    async def another(self, policy: Policy | None = None, account: Account = ACCOUNT) -> Host:
        store, name = Shared(self.bench, self.everyone), "abc"[len(self.at)]
        self.everyone.append(store)
        wechat = ScriptedWeChat()
        wechat.answers.extend(Minted(Secret(f"{name}{number}"), 7200) for number in range(1, 9))
        tools = replace(
            await self.bench.dependencies(),
            store=store,
            upstream=wechat,
            policy=policy or self.bench.policy,
        )
        host = Host(store, wechat, Registry([account], tools))
        await host.registry.start()
        store.watch(host.registry.on_store_changed, host.registry.versions)
        self.at.append(host)
        return host

    async def drain(self) -> None:
        """Until nobody is in the air, nor about to be because of what he heard."""
        for _ in range(5):
            for host in self.at:
                await host.registry.drain()


@pytest.fixture
async def hosts(bench: Bench) -> AsyncIterator[Hosts]:
    hosts = Hosts(bench)
    yield hosts
    for host in hosts.at:
        host.registry.stop()
        host.wechat.gate.set()
    await hosts.drain()


async def test_a_rotation_by_one_is_published_by_all_before_their_next_tick(hosts: Hosts) -> None:
    a, b = await hosts.another(), await hosts.another()
    watching = asyncio.create_task(b.keeper.watch("none", 5))
    await looked(a.keeper)
    await hosts.drain()
    assert value_of(a.keeper) == value_of(b.keeper) == "a1"
    assert a.keeper.credential.version == b.keeper.credential.version
    assert isinstance(await watching, Served)
    assert b.keeper.usage().last_24h == 1


async def test_callers_on_two_hosts_at_a_cold_start_cause_one_call_and_all_get_its_token(
    hosts: Hosts,
) -> None:
    a, b = await hosts.another(), await hosts.another()
    a.wechat.gate.clear()
    first = [asyncio.create_task(a.keeper.get(patience_s=10)) for _ in range(20)]
    await a.wechat.arrived.wait()
    second = [asyncio.create_task(b.keeper.get(patience_s=10)) for _ in range(20)]
    await hosts.at[1].keeper.drain()
    a.wechat.gate.set()
    answers = await asyncio.gather(*first, *second)
    assert {it.credential.version for it in answers if isinstance(it, Served)} == {
        a.keeper.credential.version
    }
    assert len([it for it in answers if isinstance(it, Served)]) == 40
    assert (a.wechat.calls, b.wechat.calls) == (1, 0)


async def test_a_failure_of_one_is_known_to_all_and_nobody_hammers(hosts: Hosts) -> None:
    a, b = await hosts.another(), await hosts.another()
    a.wechat.answers.appendleft(DOWN)
    await looked(a.keeper)
    await hosts.drain()
    await looked(b.keeper)
    answer = await b.keeper.get(patience_s=1)
    assert isinstance(answer, Unavailable)
    assert answer.code is Code.UPSTREAM_UNAVAILABLE
    assert (a.wechat.calls, b.wechat.calls) == (1, 0)


async def stopped_in_its_call(hosts: Hosts) -> tuple[Host, Host]:
    """One host that has reserved and is stopped before WeChat listeners of it; both hold a1."""
    a, b = await hosts.another(), await hosts.another()
    await looked(a.keeper)
    # Or the other, still reading what it heard of, would be the first to find a token that is due
    await hosts.drain()
    hosts.bench.clock.pass_(4000)
    a.wechat.gate.clear()
    a.wechat.arrived.clear()
    a.keeper.tick()
    async with asyncio.timeout(10):
        await a.wechat.arrived.wait()
    await b.keeper.drain()
    return a, b


async def test_a_holder_that_died_is_succeeded_when_its_lease_is_over_and_the_token_is_in_doubt(
    hosts: Hosts,
) -> None:
    _, b = await stopped_in_its_call(hosts)
    hosts.bench.clock.pass_(LEASE_S - 1)
    b.registry.tick()
    await b.keeper.drain()
    assert b.keeper.credential.reserved_call is not None
    hosts.bench.clock.pass_(2)
    b.registry.tick()
    await b.keeper.drain()
    closed = b.keeper.credential
    assert closed.reserved_call is None
    assert closed.suspicion is not None
    hosts.bench.clock.pass_(240)  # what was promised before is over
    b.registry.tick()
    await b.keeper.drain()
    assert value_of(b.keeper) == "b1"
    assert b.wechat.calls == 1


async def test_a_deposed_holder_publishes_nothing_and_sees_to_it_that_the_current_token_is_verified(
    hosts: Hosts,
) -> None:
    a, b = await stopped_in_its_call(hosts)
    for _ in range(52):
        hosts.bench.clock.pass_(5)
        b.registry.tick()
        await b.keeper.drain()
    assert value_of(b.keeper) == "b1"
    a.wechat.gate.set()
    await hosts.drain()
    a.registry.tick()
    await hosts.drain()
    assert a.wechat.checks + b.wechat.checks > 0
    hosts.bench.clock.pass_(240)  # what was promised before is over
    b.registry.tick()
    await hosts.drain()
    assert (
        value_of(b.keeper) == value_of(a.keeper) == "b2"
    )  # in the place of one that may have been pushed out
    (deposed,) = hosts.bench.told("lease-lost")
    assert deposed["lane"] == "scheduled"  # a call like others, and counted as one
    assert len(hosts.bench.told("refreshed")) == 3


async def test_a_deposed_holder_that_was_refused_changes_nothing(hosts: Hosts) -> None:
    a, b = await stopped_in_its_call(hosts)
    for _ in range(30):
        hosts.bench.clock.pass_(5)
        b.registry.tick()
        await b.keeper.drain()
    a.wechat.answers.clear()
    a.wechat.gate.set()
    before = b.keeper.credential
    held, _ = await b.store.amend(ACCOUNT, lambda *_: None)
    assert held == before


def test_a_late_answer_cannot_have_pushed_out_a_token_that_was_asked_for_after_it() -> None:
    held = Credential("e", HeldToken(Secret("t"), 6, 100.0, 7300.0))
    assert lease_lost(held, 80.0, answered_at=99.0, lives_on_s=300) is None
    doubted = lease_lost(held, 80.0, answered_at=101.0, lives_on_s=300)
    assert doubted is not None
    assert doubted.suspicion == Suspicion(Doubt.LOST_ANSWER, 101.0, 400.0)
    assert (
        lease_lost(
            held, 80.0, 101.0, overlap_after_replacement(Endpoint.STABLE, Policy(), force=False)
        )
        is None
    )
    assert lease_lost(Credential("e"), 80.0, 101.0, 300) is None


def test_a_living_token_is_cleared_only_when_the_overlap_of_the_last_call_is_over() -> None:
    policy = Policy()
    held = Credential("e", HeldToken(Secret("t"), 6, 100.0, 7300.0))
    late = lease_lost(held, 4000.0, answered_at=4030.0, lives_on_s=policy.overlap)
    twice = lost(lost(held, 4000.0, policy.overlap), 4200.0, policy.overlap)
    assert late is not None
    for doubted, last in ((late, 4030.0), (twice, 4200.0)):
        assert doubted.suspicion is not None
        assert doubted.suspicion.safe_until == 4300.0
        assert found_alive(doubted, "e-6", policy, last + policy.overlap) is None
        assert (
            check_at(replace(doubted, checked_at=last + 1), policy) == last + policy.overlap * 1.2
        )
        cleared = found_alive(doubted, "e-6", policy, last + policy.overlap * 1.2)
        assert cleared is not None
        assert cleared.suspicion is None


async def test_a_reservation_that_came_late_is_spent_but_not_called(hosts: Hosts) -> None:
    a = await hosts.another()
    a.store.after_reserve = lambda: hosts.bench.clock.pass_(LATEST_START_S + 0.1)
    await looked(a.keeper)
    assert a.wechat.calls == 0
    assert a.keeper.credential.reserved_call is None
    assert [row["outcome"] for row in await hosts.bench.rows()] == ["withheld"]
    assert a.keeper.usage().last_24h == 1
    a.store.after_reserve = lambda: None
    hosts.bench.clock.pass_(31)
    await looked(a.keeper)
    assert value_of(a.keeper) == "a1"


async def test_reports_on_two_hosts_cause_one_verification_and_one_refresh_for_both(
    hosts: Hosts,
) -> None:
    a, b = await hosts.another(), await hosts.another()
    await looked(a.keeper)
    await hosts.drain()
    hosts.bench.clock.pass_(100)
    version = a.keeper.credential.version
    a.wechat.verdicts.append(Verdict.DEAD)
    a.wechat.gate.clear()
    a.wechat.arrived.clear()
    first = [asyncio.create_task(a.keeper.report(5, version=version)) for _ in range(50)]
    await a.wechat.arrived.wait()
    second = [asyncio.create_task(b.keeper.report(5, version=version)) for _ in range(50)]
    await b.keeper.drain()
    a.wechat.gate.set()
    answers = await asyncio.gather(*first, *second)
    outcomes = [it[0] for it in answers if isinstance(it, tuple)]
    assert outcomes == [ReportOutcome.REFRESHED] * 100
    assert (a.wechat.checks + b.wechat.checks, a.wechat.calls + b.wechat.calls) == (1, 2)
    assert value_of(b.keeper) == "a2"


async def test_without_the_database_memory_serves_and_nobody_calls_not_even_in_the_last_minutes(
    hosts: Hosts,
) -> None:
    a = await hosts.another()
    a.registry._dependencies.emergency_budget = EmergencyBudget(hosts.bench.path.parent)
    await looked(a.keeper)
    a.store.is_away, a.store.last_error = True, "the database does not answer"
    for _ in range(1420):
        hosts.bench.clock.pass_(5)
        a.registry.tick()
        await a.keeper.drain()
    assert value_of(a.keeper) == "a1"  # 7100 s old
    assert a.keeper.store_error == "the database does not answer"
    hosts.bench.clock.pass_(100)
    await looked(a.keeper)
    assert a.wechat.calls == 1
    assert value_of(a.keeper) is None
    a.store.is_away, a.store.last_error = False, None
    a.registry.on_store_changed(None)
    await hosts.drain()
    hosts.bench.clock.pass_(5)
    await looked(a.keeper)
    assert value_of(a.keeper) == "a2"
    assert a.store.last_error is a.keeper.store_error


async def test_what_a_failover_lost_is_given_back_by_who_has_it(hosts: Hosts) -> None:
    a, b = await hosts.another(), await hosts.another()
    await looked(a.keeper)
    await hosts.drain()
    before = a.keeper.credential
    hosts.bench.clock.pass_(4000)
    a.store.everyone = []  # nobody listeners
    await looked(a.keeper)
    assert (value_of(a.keeper), value_of(b.keeper)) == ("a2", "a1")
    await (await hosts.bench.open()).amend(
        ACCOUNT, lambda *_: before
    )  # a standby that had not got that far
    a.store.everyone = b.store.everyone
    a.registry.on_store_changed(None)
    await hosts.drain()
    assert value_of(a.keeper) == value_of(b.keeper) == "a2"
    assert a.wechat.calls + b.wechat.calls == 2


async def test_a_token_that_is_given_back_leaves_the_call_under_way_on_another_host_alone(
    hosts: Hosts,
) -> None:
    a, b = await hosts.another(), await hosts.another()
    await looked(a.keeper)
    await hosts.drain()
    before = b.keeper.credential
    hosts.bench.clock.pass_(4000)
    b.store.listeners.clear()
    await looked(a.keeper)
    await (await hosts.bench.open()).amend(
        ACCOUNT, lambda *_: before
    )  # a standby that had not got that far
    hosts.bench.clock.pass_(60)
    b.wechat.gate.clear()
    b.wechat.arrived.clear()
    b.keeper.tick()
    await b.wechat.arrived.wait()
    a.registry.on_store_changed(None)
    await a.keeper.drain()
    assert value_of(a.keeper) == "a2"
    assert a.keeper.credential.reserved_call is not None
    hosts.bench.clock.pass_(5)
    b.wechat.gate.set()
    await hosts.drain()
    assert value_of(b.keeper) == "b1"
    assert not hosts.bench.told("lease-lost")


async def test_an_orphan_is_closed_only_where_it_is_still_the_one_that_was_seen(
    hosts: Hosts,
) -> None:
    a, b = await stopped_in_its_call(hosts)
    seen = b.keeper.credential
    later = replace(
        seen,
        reserved_call=(seen.reserved_call or 0) + 7,
        called_at=hosts.bench.clock.now() + LEASE_S,
    )
    b.store.listeners.clear()
    await a.store.amend(ACCOUNT, lambda *_: later)  # somebody else reserved meanwhile
    hosts.bench.clock.pass_(LEASE_S + 1)
    b.registry.tick()
    await b.keeper.drain()
    assert b.keeper.credential.reserved_call == later.reserved_call
    assert b.keeper.credential.failures == 0


async def test_an_open_reservation_at_start_is_another_hosts_until_its_lease_is_over(
    hosts: Hosts,
) -> None:
    await stopped_in_its_call(hosts)
    late = await hosts.another()
    assert late.keeper.credential.reserved_call is not None
    assert late.keeper.credential.suspicion is None
    assert late.keeper.credential.called_at > NEVER


async def test_tokens_given_back_into_a_new_epoch_by_two_hosts_never_share_a_version(
    hosts: Hosts,
) -> None:
    a, b = await hosts.another(), await hosts.another()
    await looked(a.keeper)
    await hosts.drain()
    hosts.bench.clock.pass_(4000)
    a.store.everyone = []
    await looked(a.keeper)  # only a knows of a2
    store = await hosts.bench.open()
    await store.amend(ACCOUNT, lambda *_: Credential())
    store._file.epoch = "zzzz"  # a standby that knew of nothing
    seen: dict[str | None, str | None] = {}
    for host in (b, a, b):
        host.registry.on_store_changed(None)
        await hosts.drain()
        for one in (a, b):
            version, value = one.keeper.credential.version, value_of(one.keeper)
            assert seen.setdefault(version, value) == value, "a version means one token"
    a.store.everyone = b.store.everyone
    b.registry.on_store_changed(None)
    await hosts.drain()
    assert value_of(a.keeper) == value_of(b.keeper) == "a2"
    assert a.wechat.calls + b.wechat.calls == 2


async def test_an_order_that_could_not_be_recorded_is_not_answered_with_the_old_token(
    hosts: Hosts,
) -> None:
    a = await hosts.another()
    await looked(a.keeper)
    hosts.bench.clock.pass_(100)
    a.store.is_away = True
    answer = await a.keeper.refresh(5)
    assert isinstance(answer, Unavailable)
    assert answer.code is Code.STORE_UNAVAILABLE
    assert a.wechat.calls == 1


@pytest.mark.parametrize("by", ["a hint", "a person's refresh"])
async def test_a_token_that_could_not_be_settled_is_settled_once_the_database_is_back(
    hosts: Hosts, by: str
) -> None:
    a, b = await hosts.another(), await hosts.another()
    a.wechat.before_answer = lambda: setattr(a.store, "is_away", True)
    await looked(a.keeper)
    assert value_of(a.keeper) == "a1"
    a.wechat.before_answer = lambda: None
    a.store.is_away = False
    hosts.bench.clock.pass_(6)
    if by == "a hint":
        a.registry.on_store_changed(None)  # the connection is back: anything may have changed
    else:
        await a.keeper.refresh(1)
    await hosts.drain()
    for _ in range(20):
        a.registry.tick()
        b.registry.tick()
        await hosts.drain()
        hosts.bench.clock.pass_(5)
    assert [row["outcome"] for row in await hosts.bench.rows()] == ["minted"]
    assert a.keeper.credential.suspicion is None
    assert value_of(a.keeper) == value_of(b.keeper) == "a1"
    assert (a.wechat.calls + b.wechat.calls, a.wechat.checks + b.wechat.checks) == (1, 0)


async def test_what_is_heard_right_after_a_failure_is_read_at_the_next_tick(hosts: Hosts) -> None:
    """After a reconnection anything may have changed, so what is heard then counts.

    A change heard within a tick of the last failure used to be forgotten until half-life.
    """
    a, b = await hosts.another(), await hosts.another()
    await looked(a.keeper)
    await hosts.drain()
    hosts.bench.clock.pass_(60)
    b.registry.tick()
    b.store.is_away = True
    assert isinstance(await b.keeper.refresh(1), Unavailable)
    b.registry.tick()  # nothing is due as far as it knows
    b.store.is_away = False
    await a.keeper.refresh(1)
    await hosts.drain()
    assert b.keeper.credential.version != a.keeper.credential.version
    hosts.bench.clock.pass_(hosts.bench.policy.tick)
    b.registry.tick()
    await hosts.drain()
    assert b.keeper.credential.version == a.keeper.credential.version


async def test_a_death_that_was_found_while_the_database_was_away_is_not_forgotten_when_it_is_back(
    hosts: Hosts,
) -> None:
    """A death that this process has found is not in the store.

    When the store was read again, the dead token used to be served.
    """
    a, b = await hosts.another(), await hosts.another()
    await looked(a.keeper)
    await hosts.drain()
    hosts.bench.clock.pass_(100)
    a.store.is_away = True
    a.wechat.verdicts.append(Verdict.DEAD)
    await a.keeper.report(0.1, version=a.keeper.credential.version)
    assert value_of(a.keeper) is None
    a.store.is_away = False
    a.wechat.gate.clear()
    hosts.bench.clock.pass_(hosts.bench.policy.tick)
    a.registry.on_store_changed(None)
    while not a.wechat.in_flight:
        assert value_of(a.keeper) is None
        await asyncio.sleep(0)
    assert a.keeper.credential.refused
    a.wechat.gate.set()
    await hosts.drain()
    assert value_of(a.keeper) == value_of(b.keeper) == "a2"
    assert a.keeper.credential.second_issuer.count == b.keeper.credential.second_issuer.count == 1
    assert a.keeper.store_error is None


async def test_a_failure_of_the_store_that_is_over_is_not_told_of_any_more(hosts: Hosts) -> None:
    a = await hosts.another()
    await looked(a.keeper)
    hosts.bench.clock.pass_(100)
    a.store.is_away = True
    a.wechat.verdicts.append(Verdict.ALIVE)
    await a.keeper.report(0.1, version=a.keeper.credential.version)
    assert "does not answer" in str(a.keeper.store_error)
    a.store.is_away = False
    hosts.bench.clock.pass_(hosts.bench.policy.tick)
    await looked(a.keeper)
    assert a.keeper.store_error is None
    assert a.wechat.calls == 1
