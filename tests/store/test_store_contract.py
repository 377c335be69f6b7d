"""What every store owes (broker.core.ports.Store), on SQLite and on PostgreSQL alike.

At the end there is what a shared store owes besides.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from broker.core.credential import (
    NEVER,
    Account,
    Credential,
    Doubt,
    HeldToken,
    Policy,
    SecondIssuer,
    Suspicion,
)
from broker.core.errcodes import Failure, FailureCode, Kind
from broker.core.outcome import OutcomeRules
from broker.core.ports import (
    Claim,
    Decide,
    Denial,
    Denied,
    Grant,
    Minted,
    Node,
    Reason,
    Store,
    StoreError,
)
from broker.core.quota import Entry, Lane, QuotaLimits, full
from broker.core.reservation import admit
from broker.core.secret import Secret
from broker.core.transitions import minted
from broker.store.encryption import Plain, Seal, Sealed
from broker.store.postgres.clock_sample import ClockSample
from broker.store.postgres.store import PostgresStore
from broker.store.sqlite.store import SqliteStore
from tests.harness.cluster import Cluster
from tests.harness.doubles import ACCOUNT, CANARY, ManualClock

CLAIM = Claim(Lane.SCHEDULED)
POLICY = Policy()
PATIENCE_S = 20
ALLOW: Decide = lambda *_: CLAIM  # noqa: E731 -- a decision like any other


class Running(ManualClock):
    """Steady seconds pass while somebody asks."""

    def now(self) -> float:
        self.steady += 0.01
        return self.steady


@dataclass
class Shop:
    """Opens stores on one database; `sql` looks into it from outside."""

    kind: str
    where: str
    sql: Callable[[str], Sequence[tuple[object, ...]]]
    clock: ManualClock = field(default_factory=ManualClock)
    opened: list[SqliteStore | PostgresStore] = field(default_factory=list)

    async def open(
        self, *, clock: ManualClock | None = None, seal: Seal | None = None, node: str = "n"
    ) -> Store:
        """One more store; of SQLite there is one owner at a time."""
        store: SqliteStore | PostgresStore
        if self.kind == "sqlite":
            await self.close()
            store = await SqliteStore.open(Path(self.where), clock or self.clock, seal or Plain())
        else:
            store = await PostgresStore.open(self.where, clock or self.clock, seal, node)
        self.opened.append(store)
        return store

    async def close(self) -> None:
        while self.opened:
            await self.opened.pop().close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.needs("initdb"))])
async def shop(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shop]:
    if request.param == "sqlite":
        path = tmp_path / "broker.db"
        shop = Shop("sqlite", str(path), lambda statement: _ask_sqlite(path, statement))
    else:
        shop = _on(request.getfixturevalue("cluster"), request.getfixturevalue("database"))
    yield shop
    await shop.close()


@pytest.fixture
async def shared(cluster: Cluster, database: str) -> AsyncIterator[Shop]:
    shop = _on(cluster, database)
    yield shop
    await shop.close()


def _on(cluster: Cluster, database: str) -> Shop:
    name = database.rpartition("/")[2]
    return Shop("postgres", database, lambda statement: cluster.sql(statement, name))


def _ask_sqlite(path: Path, statement: str) -> Sequence[tuple[object, ...]]:
    import sqlite3  # noqa: PLC0415

    with closing(sqlite3.connect(path)) as other, other:
        return other.execute(statement.replace("token_broker.", "")).fetchall()


async def granted(store: Store, account: Account = ACCOUNT) -> Grant:
    grant = await store.reserve(account, ALLOW)
    assert isinstance(grant, Grant)
    return grant


async def fetched(
    store: Store, clock: ManualClock, value: str = "t1", account: Account = ACCOUNT
) -> Credential:
    """A whole call: reserved, answered, settled."""
    grant = await granted(store, account)
    return await settled(store, grant, clock, value)


async def settled(store: Store, grant: Grant, clock: ManualClock, value: str = "t1") -> Credential:
    judge = OutcomeRules(
        ACCOUNT, POLICY, clock.now(), clock.wall(), 0.0, shared=not store.sole_owner
    )
    return await store.settle(ACCOUNT, grant, *judge.answer(grant, Minted(Secret(value), 7200)))


def near(one: float, other: float) -> bool:
    """As far apart as a round trip may put them."""
    return one == other or abs(one - other) < 1.0


# --- every store ----------------------------------------------------------------------------------


async def test_a_new_account_holds_nothing_and_instants_that_never_were_stay_so(shop: Shop) -> None:
    held = await (await shop.open()).load(ACCOUNT)
    it = held.credential
    assert (it.token, it.called_at, it.not_before, it.checked_at, held.entries) == (
        None,
        NEVER,
        NEVER,
        NEVER,
        (),
    )
    assert it.epoch


async def test_a_reservation_is_there_for_others_to_see_before_its_call_is_made(shop: Shop) -> None:
    grant = await granted(await shop.open())
    assert grant.credential.reserved_call == grant.call
    assert len(grant.entries) == 1
    assert shop.sql("select outcome from token_broker.calls") == [(None,)]
    assert shop.sql("select reserved_call from token_broker.accounts") == [(grant.call,)]


async def test_what_is_settled_is_there_for_the_next_process(shop: Shop) -> None:
    before = await fetched(await shop.open(), shop.clock)
    await shop.close()
    held = await (await shop.open()).load(ACCOUNT)
    assert held.credential.version == before.version
    assert held.credential.token is not None
    assert held.credential.token.value.reveal() == "t1"
    assert near(held.credential.token.expires_at, shop.clock.now() + 7200)
    assert held.credential.token.expires_at <= shop.clock.now() + 7200
    assert held.credential.reserved_call is None
    assert len(held.entries) == 1


async def test_all_that_is_known_of_an_account_is_kept(shop: Shop) -> None:
    store, now = await shop.open(), shop.clock.now()
    full_of = Credential(
        epoch=(await store.load(ACCOUNT)).credential.epoch,
        token=HeldToken(Secret("t"), 3, now - 50, now + 7150),
        suspicion=Suspicion(Doubt.LOST_ANSWER, now - 5, now + 295),
        called_at=now - 5,
        reserved_call=4,
        not_before=now + 30,
        failures=2,
        failure=Failure(
            Kind.TRANSIENT,
            FailureCode.HTTP_STATUS,
            45009,
            "1.2.3.4",
            "rid",
            5.0,
            lost=True,
            wall=1.5,
            facts={"status": "502"},
        ),
        checked_at=now - 7,
        second_issuer=SecondIssuer(2, 100.0, 200.0),
        fingerprint="abcd",
    )
    await store.amend(ACCOUNT, lambda *_: full_of)
    found = (await store.load(ACCOUNT)).credential
    assert found.token is not None
    assert found.suspicion is not None
    for name in ("called_at", "not_before", "checked_at"):
        assert near(getattr(found, name), getattr(full_of, name)), name
    assert near(found.token.requested_at, now - 50)
    assert near(found.suspicion.safe_until, now + 295)
    assert near(found.suspicion.since, now - 5)
    told: dict[str, Any] = {
        name: getattr(found, name) for name in ("called_at", "not_before", "checked_at")
    }
    assert replace(full_of, token=found.token, suspicion=found.suspicion, **told) == found


async def test_a_denied_reservation_writes_nothing_and_says_what_is_held(shop: Shop) -> None:
    store = await shop.open()
    await fetched(store, shop.clock)
    before = shop.sql("select * from token_broker.accounts")
    denied = await store.reserve(ACCOUNT, lambda *_: Denial(Reason.QUOTA, 5.0))
    assert isinstance(denied, Denied)
    assert denied.credential.version
    assert len(denied.entries) == 1
    assert shop.sql("select count(*) from token_broker.calls") == [(1,)]
    assert shop.sql("select * from token_broker.accounts") == before


async def test_call_numbers_only_rise_also_after_a_decision_that_failed(shop: Shop) -> None:
    store = await shop.open()
    numbers = [(await granted(store)).call]
    with pytest.raises(ZeroDivisionError):
        await store.reserve(ACCOUNT, lambda *_: Claim(Lane.SCHEDULED, force=bool(1 / 0)))
    numbers.append((await granted(store)).call)
    await shop.close()
    store = await shop.open()
    numbers.append((await granted(store)).call)
    assert sorted(set(numbers)) == numbers


async def test_call_numbers_are_never_used_twice_though_the_ledger_was_emptied(shop: Shop) -> None:
    store = await shop.open()
    first = await granted(store)
    await shop.close()
    shop.sql("delete from token_broker.calls")
    assert (await granted(await shop.open())).call > first.call


async def test_a_change_that_changes_nothing_writes_nothing(shop: Shop) -> None:
    store = await shop.open()
    held = await fetched(store, shop.clock)
    before = shop.sql("select * from token_broker.accounts")
    found, changed = await store.amend(ACCOUNT, lambda *_: None)
    assert (found.version, changed) == (held.version, False)
    assert shop.sql("select * from token_broker.accounts") == before


async def test_a_settled_call_says_its_outcome_and_history_tells_it(shop: Shop) -> None:
    store = await shop.open()
    await fetched(store, shop.clock)
    shop.clock.pass_(1)
    (row,) = await store.history(shop.clock.wall() - 60, ACCOUNT)
    assert (row["lane"], row["forced"], row["cost"], row["outcome"]) == (
        "scheduled",
        0,
        1,
        "minted",
    )
    assert abs(row["wall_at"] - shop.clock.wall()) < 5
    assert await store.history(shop.clock.wall() + 60, ACCOUNT) == []


async def test_a_loss_of_the_caller_does_not_stop_a_transaction_half_way(shop: Shop) -> None:
    store = await shop.open()
    await store.load(ACCOUNT)
    asked = asyncio.create_task(store.reserve(ACCOUNT, ALLOW))
    await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await store.close()
    shop.opened.clear()
    (open_calls,) = shop.sql("select count(*) from token_broker.calls where outcome is null")[0]
    (reserved,) = shop.sql("select count(reserved_call) from token_broker.accounts")[0]
    assert open_calls == reserved


async def test_a_sealed_token_is_nowhere_in_the_database_and_another_key_finds_none(
    shop: Shop,
) -> None:
    store = await shop.open(seal=Sealed("k" * 32))
    await fetched(store, shop.clock, f"{CANARY}-token")
    assert CANARY not in json.dumps(shop.sql("select * from token_broker.accounts"))
    held = (await store.load(ACCOUNT)).credential
    assert held.token is not None
    assert held.token.value.reveal() == f"{CANARY}-token"
    assert (await (await shop.open(seal=Sealed("x" * 32))).load(ACCOUNT)).credential.token is None
    assert (await (await shop.open()).load(ACCOUNT)).credential.token is None


async def test_accounts_do_not_see_each_other(shop: Shop) -> None:
    store = await shop.open()
    await fetched(store, shop.clock)
    other = replace(ACCOUNT, appid="wx0000000000000002")
    held = await store.load(other)
    assert (held.credential.token, held.entries) == (None, ())
    assert await store.history(0, other) == []


# --- a shared one ---------------------------------------------------------------------------------


async def test_twenty_at_once_on_ten_connections_spend_exactly_the_budget(shared: Shop) -> None:
    account, stores = (
        replace(ACCOUNT, daily_quota=7),
        [await shared.open(node=f"n{n}") for n in range(10)],
    )
    for store in stores:
        await store.load(account)

    def decide(_: Credential, entries: Sequence[Entry], now: float) -> Claim | Denial:
        reached = full(entries, QuotaLimits.of(7, account.endpoint, POLICY), Lane.SCHEDULED, now)
        return Denial(Reason.QUOTA, reached.until) if reached else CLAIM

    answers = await asyncio.gather(
        *(store.reserve(account, decide) for store in stores for _ in range(2))
    )
    numbers = sorted(answer.call for answer in answers if isinstance(answer, Grant))
    assert len(numbers) == len(set(numbers)) == 7
    assert shared.sql("select count(*) from token_broker.calls") == [(7,)]


async def test_of_twenty_who_want_the_same_refresh_one_is_granted_and_the_others_see_him(
    shared: Shop,
) -> None:
    stores = [await shared.open(node=f"n{n}") for n in range(5)]
    decide = admit(ACCOUNT, POLICY, None, CLAIM, 15.0)
    answers = await asyncio.gather(
        *(store.reserve(ACCOUNT, decide) for store in stores for _ in range(4))
    )
    assert sum(isinstance(answer, Grant) for answer in answers) == 1
    reasons = {answer.denial.reason for answer in answers if isinstance(answer, Denied)}
    assert reasons == {Reason.IN_FLIGHT}


async def test_a_deposed_holder_changes_nothing_and_its_row_says_so(shared: Shop) -> None:
    one, other = await shared.open(), await shared.open(node="m")
    late = await granted(one)
    taken = await granted(other)  # its decision took the first for dead
    seen: list[int | None] = []

    def change(held: Credential, _: float) -> None:
        seen.append(held.reserved_call)

    held = await one.settle(ACCOUNT, late, "minted", change)
    assert (seen, held.token, held.reserved_call) == ([taken.call], None, taken.call)
    assert shared.sql("select outcome, lease_lost from token_broker.calls order by id") == [
        ("minted", 1),
        (None, 0),
    ]
    assert (
        await settled(other, taken, shared.clock)
    ).version == f"{taken.credential.epoch}-{taken.call}"


async def test_what_is_settled_twice_because_the_answer_was_lost_is_settled_once(
    shared: Shop,
) -> None:
    store = await shared.open()
    grant = await granted(store)
    first = await settled(store, grant, shared.clock)
    again = await settled(store, grant, shared.clock)
    assert again.suspicion is None
    assert again.version == first.version
    assert shared.sql("select outcome from token_broker.calls") == [("minted",)]


async def test_two_processes_whose_clocks_differ_by_an_hour_agree_on_ages(shared: Shop) -> None:
    here, there = ManualClock(), ManualClock(steady=77.0, unix=ManualClock().unix + 3600)
    await fetched(await shared.open(clock=here), here)
    held = (await (await shared.open(clock=there)).load(ACCOUNT)).credential
    assert held.token is not None
    assert there.now() + 7190 < held.token.expires_at <= there.now() + 7200
    assert there.now() - 10 < held.called_at <= there.now()


async def test_nothing_grows_younger_or_older_by_being_read_and_written(shared: Shop) -> None:
    store = await shared.open(clock=Running())
    await fetched(store, shared.clock)
    (before,) = shared.sql("select requested_at, expires_at, called_at from token_broker.accounts")
    for failures in range(20):

        def change(held: Credential, _: float, failures: int = failures) -> Credential:
            return replace(held, failures=failures)

        await store.amend(ACCOUNT, change)
    assert shared.sql("select requested_at, expires_at, called_at from token_broker.accounts") == [
        before
    ]


def test_a_slow_answer_of_the_database_makes_things_older_never_younger() -> None:
    moment = ClockSample(db=1000.0, sent=5.0, got=8.0)
    assert 990.0 + moment.to_local == -5.0
    assert moment.now + moment.to_database == 997.0
    assert 990.0 + moment.to_local + moment.to_database <= 990.0


async def test_a_database_that_lost_commits_begins_an_epoch_and_counts_what_it_lost(
    shared: Shop,
) -> None:
    store, other = await shared.open(), await shared.open(node="m")
    first = await fetched(store, shared.clock, "t1")
    shared.sql("create table kept as select * from token_broker.accounts")
    shared.sql("create table kept_calls as select * from token_broker.calls")
    second, third = (
        await fetched(store, shared.clock, "t2"),
        await fetched(store, shared.clock, "t3"),
    )
    await other.load(ACCOUNT)
    shared.sql(
        "delete from token_broker.accounts; insert into token_broker.accounts select * from kept"
    )
    shared.sql(
        "delete from token_broker.calls; insert into token_broker.calls select * from kept_calls"
    )
    held = await store.load(ACCOUNT)
    assert held.credential.epoch != first.epoch
    assert held.credential.token is None
    assert sum(entry.cost for entry in held.entries) == 3
    assert near(
        held.credential.called_at, shared.clock.now()
    )  # somebody's call may be under way that nobody knows of
    assert (
        sum(entry.cost for entry in (await other.load(ACCOUNT)).entries) == 3
    )  # and once is enough
    versions = [
        held.version for held in (first, second, third, await fetched(other, shared.clock, "t4"))
    ]
    assert len(set(versions)) == 4


async def test_who_knew_more_of_what_was_lost_adds_to_it(shared: Shop) -> None:
    knows, knew_less = await shared.open(), await shared.open(node="m")
    await fetched(knows, shared.clock)
    await knew_less.load(ACCOUNT)
    for _ in range(2):
        await fetched(knows, shared.clock)
    shared.sql("truncate token_broker.accounts, token_broker.calls")
    assert sum(entry.cost for entry in (await knew_less.load(ACCOUNT)).entries) == 1
    assert sum(entry.cost for entry in (await knows.load(ACCOUNT)).entries) == 3
    assert sum(entry.cost for entry in (await knew_less.load(ACCOUNT)).entries) == 3


async def test_a_grant_of_a_lost_epoch_is_deposed_though_its_number_is_in_use_again(
    shared: Shop,
) -> None:
    store = await shared.open()
    late = await granted(store)
    shared.sql(
        "update token_broker.accounts set epoch = 'zzzz', prior_epoch = 'yyyy', prior_calls = 9"
    )
    held = await settled(store, late, shared.clock)
    assert (held.token, held.reserved_call) == (None, late.call)
    assert shared.sql("select outcome, lease_lost from token_broker.calls") == [("minted", 1)]


async def until(true: Callable[[], object], what: str) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while not true():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.01)


async def heard_of(shop: Shop, do: Callable[[Store], Awaitable[object]]) -> list[str | None]:
    """What one process hears when another does something."""
    one, other = await shop.open(), await shop.open(node="m")
    heard: list[str | None] = []
    own: list[str | None] = []
    one.watch(heard.append, dict)
    other.watch(own.append, dict)
    await until(lambda: heard and own, "both listen")
    await do(other)
    await until(lambda: len(heard) > 1, "a change is heard of")
    assert own == [None]
    return heard


@pytest.mark.parametrize("do", ["reserve", "amend"])
async def test_others_hear_of_a_change_and_who_made_it_does_not(shared: Shop, do: str) -> None:
    async def act(store: Store) -> None:
        if do == "reserve":
            await granted(store)
        else:
            await store.amend(ACCOUNT, lambda held, _: replace(held, failures=3))

    first, *others = await heard_of(shared, act)
    assert (first, set(others)) == (None, {ACCOUNT.appid})  # by notification, by heartbeat or both


async def test_a_change_of_which_no_notification_came_is_found_by_the_next_heartbeat(
    shared: Shop,
) -> None:
    store = await shared.open()
    await store.load(ACCOUNT)
    heard: list[str | None] = []
    store.watch(heard.append, dict)
    await until(lambda: heard, "it listens")
    shared.sql("update token_broker.accounts set changes = changes + 1")
    await until(lambda: len(heard) > 1, "the poll finds it")
    assert heard == [None, ACCOUNT.appid]


async def test_processes_that_share_a_database_are_named_with_what_they_serve(shared: Shop) -> None:
    one, other = await shared.open(node="web"), await shared.open(node="web")
    one.watch(lambda _: None, lambda: {"wx1": "k3f9-1"})
    await until(lambda: one.nodes, "the first is there")
    other.watch(lambda _: None, lambda: {"wx1": None})
    await until(lambda: len(one.nodes) == len(other.nodes) == 2, "both are seen by both")

    def served(nodes: Sequence[Node]) -> dict[str, object]:
        return {node.name: dict(node.versions) for node in nodes}

    assert (
        served(one.nodes)
        == served(other.nodes)
        == {
            "web": {"wx1": "k3f9-1"},
            "web-2": {"wx1": None},
        }
    )
    assert all(node.notified_at is None for node in one.nodes)
    await granted(other)
    await until(
        lambda: any(node.name == "web" and node.notified_at for node in one.nodes),
        "it was notified",
    )


async def test_a_store_that_is_cut_off_says_so_and_hears_of_everything_when_it_is_back(
    shared: Shop, cluster: Cluster
) -> None:
    store = await shared.open()
    heard: list[str | None] = []
    store.watch(heard.append, dict)
    await until(lambda: heard, "it listens")
    assert store.last_error is None
    name = shared.where.rpartition("/")[2]
    cluster.sql(f"alter database {name} allow_connections false")
    cluster.sql(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'")
    await until(lambda: store.last_error, "the trouble is told")
    with pytest.raises(StoreError) as error:
        await store.load(ACCOUNT)
    assert "token_broker@" not in str(error.value)
    cluster.sql(f"alter database {name} allow_connections true")
    await until(lambda: heard == [None, None], "everything may have changed")
    assert store.last_error is None
    await store.load(ACCOUNT)


async def test_connections_that_broke_while_idle_cost_nobody_an_error(
    shared: Shop, cluster: Cluster
) -> None:
    store = await shared.open()
    await asyncio.gather(*(store.load(ACCOUNT) for _ in range(8)))
    name = shared.where.rpartition("/")[2]
    cluster.sql(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'")
    await granted(store)


async def test_minted_is_what_a_settled_call_does(shared: Shop) -> None:
    store = await shared.open()
    grant = await granted(store)
    held = await store.settle(
        ACCOUNT,
        grant,
        "minted",
        lambda c, _: minted(c, grant.call, grant.started_at, (Secret("t"), 60)),
    )
    assert held.version == f"{grant.credential.epoch}-{grant.call}"
