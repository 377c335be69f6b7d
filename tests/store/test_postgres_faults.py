"""What the store makes of a PostgreSQL that fails.

It is stopped, cut off, slow, behind a pooler, or not as durable as it says.
"""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from time import monotonic

import psycopg
import pytest

from broker.core.ports import Claim, Grant, StoreBusy, StoreError, StoreRefused
from broker.core.quota import Lane
from broker.store.postgres.check import inspect
from broker.store.postgres.pool import LOCKS, RUNS
from broker.store.postgres.store import PostgresStore
from tests.harness.cluster import (
    OWNER,
    Cluster,
    _user,
    cluster,
    free_port,
    home_of_cluster,
    standby_of,
)
from tests.harness.doubles import ACCOUNT, ManualClock
from tests.harness.places import ROOT
from tests.harness.relay import Relay, relay_to
from tests.harness.tools import path_of

CLAIM = Claim(Lane.SCHEDULED)
FEW_SECONDS = 9.0


@asynccontextmanager
async def opened(url: str, node: str = "n") -> AsyncIterator[PostgresStore]:
    store = await PostgresStore.open(url, ManualClock(), node=node)
    try:
        yield store
    finally:
        await store.close()


async def reserved(store: PostgresStore) -> Grant:
    grant = await store.reserve(ACCOUNT, lambda *_: CLAIM)
    assert isinstance(grant, Grant)
    return grant


async def until(true: Callable[[], bool], seconds: float) -> None:
    deadline = monotonic() + seconds
    while not true():
        assert monotonic() < deadline
        await asyncio.sleep(0.02)


# --- a link that can be cut -----------------------------------------------------------------------


def through(relay: Relay, database: str) -> str:
    return f"postgresql://token_broker@127.0.0.1:{relay.port}/{database.rpartition('/')[2]}"


async def test_a_reservation_whose_commit_was_not_answered_is_an_error_and_uses_up_its_number(
    cluster: Cluster, database: str
) -> None:
    async with relay_to(cluster.port) as relay, opened(through(relay, database)) as store:
        first = await reserved(store)
        relay.cut_after = b"commit\0"
        with pytest.raises(StoreError):
            await reserved(store)
        relay.cut_after = b""
        third = await reserved(store)
        rows = cluster.sql(
            "select id, outcome from token_broker.calls order by id", database.rpartition("/")[2]
        )
        assert rows == [(first.call, None), (first.call + 1, None), (third.call, None)]
        assert third.call == first.call + 2


async def test_a_settlement_whose_commit_was_not_answered_can_be_repeated(
    cluster: Cluster, database: str
) -> None:
    async with relay_to(cluster.port) as relay, opened(through(relay, database)) as store:
        grant, seen = await reserved(store), []
        relay.cut_after = b"commit\0"
        with pytest.raises(StoreError):
            await store.settle(
                ACCOUNT, grant, "minted", lambda held, _: seen.append(held.reserved_call)
            )
        relay.cut_after = b""
        await store.settle(
            ACCOUNT, grant, "minted", lambda held, _: seen.append(held.reserved_call)
        )
        assert seen == [grant.call]


async def test_a_link_that_went_silent_is_given_up_within_seconds_and_found_again(
    cluster: Cluster, database: str
) -> None:
    async with relay_to(cluster.port) as relay, opened(through(relay, database)) as store:
        heard: list[str | None] = []
        store.watch(heard.append, dict)
        await reserved(store)
        relay.fall_silent()
        began = monotonic()
        with pytest.raises(StoreError):
            await reserved(store)
        assert monotonic() - began < FEW_SECONDS
        await until(lambda: store.last_error is not None, 2 * FEW_SECONDS)
        relay.heal()
        await until(lambda: store.last_error is None, 5)
        assert heard[-1] is None
        await reserved(store)


async def test_a_link_that_is_cut_in_the_middle_leaves_nothing_half_done(
    cluster: Cluster, database: str
) -> None:
    async with relay_to(cluster.port) as relay, opened(through(relay, database)) as store:
        await reserved(store)
        relay.cut_after = b"insert into token_broker.calls"
        with pytest.raises(StoreError):
            await reserved(store)
        relay.cut_after = b""
        assert (await reserved(store)).call == 2
        assert cluster.sql(
            "select count(*) from token_broker.calls", database.rpartition("/")[2]
        ) == [(2,)]


async def test_who_is_stopped_while_it_holds_the_row_does_not_stop_the_others(
    database: str,
) -> None:
    async with opened(database) as store:
        await store.load(ACCOUNT)
        with psycopg.connect(
            database
        ) as holder:  # as a broker that SIGSTOP met in a transaction: with a broker's settings
            holder.execute("set idle_in_transaction_session_timeout = '2s'")
            holder.commit()
            holder.execute("select 1 from token_broker.accounts for update")
            began = monotonic()
            grant = await reserved(store)
            assert 0.5 < monotonic() - began < FEW_SECONDS
            assert grant.call == 1
            with pytest.raises(psycopg.Error):
                holder.execute("select 1")
            holder.close()


async def test_a_row_that_is_never_released_is_an_error_within_seconds(
    cluster: Cluster, database: str
) -> None:
    async with opened(database) as store:
        await store.load(ACCOUNT)
        with psycopg.connect(database) as holder:
            holder.execute("select 1 from token_broker.accounts for update")
            began = monotonic()
            with pytest.raises(StoreError, match="holds the account's row"):
                await reserved(store)
            assert monotonic() - began < FEW_SECONDS
        assert cluster.sql(
            "select count(*) from token_broker.calls", database.rpartition("/")[2]
        ) == [(0,)]


# --- durability -----------------------------------------------------------------------------------


@pytest.mark.needs("initdb")
async def test_what_a_synchronous_standby_did_not_confirm_is_not_taken_for_durable() -> None:
    with cluster() as primary, standby_of(primary) as standby:
        name = primary.database()
        async with opened(primary.dsn(name)) as store:
            await reserved(store)
            primary.reload(synchronous_standby_names="standby")
            os.kill(standby.pid, signal.SIGSTOP)
            stopped = [pid for pid in standby.pids() if pid != standby.pid]
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            try:
                began = monotonic()
                with pytest.raises(StoreError, match="in time"):
                    await reserved(store)
                assert monotonic() - began < FEW_SECONDS
                other = asyncio.create_task(
                    store.amend(
                        replace(ACCOUNT, appid="wx2"), lambda held, _: replace(held, failures=1)
                    )
                )
                waiting = "wait_event = 'SyncRep' and application_name = 'token-broker n'"
                while not other.done():  # an administrator who wants the commits to go on
                    primary.sql(
                        f"select pg_cancel_backend(pid) from pg_stat_activity where {waiting}"
                    )
                    await asyncio.sleep(0.02)
                with pytest.raises(StoreError, match="not confirm"):
                    await other
            finally:
                for pid in (*stopped, standby.pid):
                    os.kill(pid, signal.SIGCONT)


async def test_a_database_that_may_lose_commits_is_not_let(cluster: Cluster, database: str) -> None:
    name = database.rpartition("/")[2]
    cluster.sql(f"alter database {name} set synchronous_commit = off")
    async with opened(database) as store:
        modes: list[object] = []

        async def look(session: object) -> None:
            modes.extend(await session.run("show synchronous_commit"))  # type: ignore[attr-defined]

        await store._pool.transaction("n", look)
        assert modes == [{"synchronous_commit": "on"}]


@pytest.mark.needs("initdb")
async def test_a_standby_is_not_written_to_and_among_several_hosts_the_primary_is_found() -> None:
    with cluster() as primary, standby_of(primary) as standby:
        name = primary.database()
        where = f"postgresql://token_broker@127.0.0.1:{standby.port}/{OWNER}"
        async with opened(where) as store:
            with pytest.raises(StoreError, match="takes no writes"):
                await reserved(store)
        both = f"postgresql://token_broker@127.0.0.1:{standby.port},127.0.0.1:{primary.port}/{name}"
        async with opened(both) as store:
            assert (await reserved(store)).call == 1
            primary.stop(signal.SIGKILL)
            with pytest.raises(StoreError):
                await reserved(store)
            standby.promote()
            assert (await reserved(store)).call in {2, 3}


@pytest.mark.needs("initdb")
async def test_after_a_promotion_nobody_hands_out_a_lost_number_again() -> None:
    with cluster() as primary, standby_of(primary) as standby:
        both = f"postgresql://token_broker@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/{primary.database()}"
        async with opened(both) as one, opened(both, "m") as other:
            await one.settle(
                ACCOUNT,
                await reserved(one),
                "minted",
                lambda held, _: replace(held, reserved_call=None),
            )
            await other.load(ACCOUNT)
            standby.reload(primary_conninfo="")
            await until(
                lambda: standby.sql("select 1 from pg_stat_wal_receiver") == [], FEW_SECONDS
            )
            lost = await reserved(one)
            primary.stop(signal.SIGKILL)
            standby.promote()
            again = await reserved(other)
            assert again.credential.epoch != lost.credential.epoch
            seen: list[int | None] = []
            await one.settle(
                ACCOUNT, lost, "minted", lambda held, _: seen.append(held.reserved_call)
            )
            assert lost.call not in seen
            third = await reserved(one)
            assert (third.credential.epoch, third.call > again.call) == (
                again.credential.epoch,
                True,
            )
            assert sum(entry.cost for entry in third.entries) >= 4  # the lost one, too


# --- who runs, and through what -------------------------------------------------------------------


async def test_that_nobody_runs_can_be_proven_and_who_moves_the_store_keeps_brokers_out(
    database: str,
) -> None:
    alone = f"select pg_try_advisory_lock({LOCKS}, {RUNS})"
    with psycopg.connect(database, autocommit=True) as mover:
        async with opened(database) as store:
            store.watch(lambda _: None, dict)
            await reserved(store)
            assert mover.execute(alone.encode()).fetchone() == (False,)
        deadline = monotonic() + FEW_SECONDS
        while mover.execute(alone.encode()).fetchone() != (True,):
            assert monotonic() < deadline
        with pytest.raises(StoreBusy):
            await PostgresStore.open(database, ManualClock())


async def test_ten_brokers_that_make_the_tables_at_once_make_them_once(database: str) -> None:
    stores = await asyncio.gather(
        *(PostgresStore.open(database, ManualClock(), node=f"n{n}") for n in range(10))
    )
    calls = [(await reserved(store)).call for store in stores]
    assert calls == list(range(1, 11))
    for store in stores:
        await store.close()


@contextmanager
def pgbouncer(cluster: Cluster, mode: str) -> Iterator[int]:
    """Debian's PgBouncer before the cluster, in a pool mode; its port."""
    port = free_port()
    with home_of_cluster() as home:
        (home / "users.txt").write_text('"token_broker" ""\n')
        (home / "pgbouncer.ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={cluster.port}\n[pgbouncer]\nlisten_addr ="
            f" 127.0.0.1\nlisten_port = {port}\nauth_type = trust\nauth_file ="
            f" {home}/users.txt\npool_mode = {mode}\nunix_socket_dir =\nlogfile = {home}/log\n"
        )
        with subprocess.Popen(
            [path_of("pgbouncer"), "-q", str(home / "pgbouncer.ini")], cwd="/", **_user()
        ) as bouncer:
            try:
                _answers(port)
                yield port
            finally:
                bouncer.kill()


def _answers(port: int) -> None:
    deadline = monotonic() + 20
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert monotonic() < deadline


@pytest.mark.needs("pgbouncer")
@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_a_pooler_that_takes_the_session_away_is_refused_with_the_cure(
    cluster: Cluster, database: str, mode: str
) -> None:
    async with opened(database):
        pass
    with pgbouncer(cluster, mode) as port:
        url = f"postgresql://token_broker@127.0.0.1:{port}/{database.rpartition('/')[2]}"
        for _ in range(3):
            with pytest.raises(StoreRefused, match="pool_mode = session"):
                await PostgresStore.open(url, ManualClock())
        (why,) = await inspect(url)
        assert "pool_mode = session" in why


@pytest.mark.needs("pgbouncer")
async def test_a_pooler_in_session_mode_is_as_good_as_the_server(
    cluster: Cluster, database: str
) -> None:
    with pgbouncer(cluster, "session") as port:
        url = f"postgresql://token_broker@127.0.0.1:{port}/{database.rpartition('/')[2]}"
        async with opened(url) as one, opened(url, "m") as other:
            heard: list[str | None] = []
            one.watch(heard.append, dict)
            await until(lambda: bool(heard), FEW_SECONDS)
            await asyncio.gather(*(reserved(store) for store in (one, other) for _ in range(6)))
            await until(lambda: len(heard) > 1, FEW_SECONDS)
            assert await inspect(url) == []


def test_the_schemas_file_is_part_of_the_package() -> None:
    assert (ROOT / "broker/store/postgres/schema.sql").read_text().startswith("-- The tables")
