"""PostgreSQL rows that no broker wrote, and refusals of the server: each ends in one sentence."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from broker.core.credential import Policy
from broker.core.ports import StoreError, StoreRefused
from broker.store.postgres.check import inspect
from broker.store.postgres.errors import store_error
from broker.store.postgres.notifications import Notification
from broker.store.postgres.store import PostgresStore
from broker.tokens.dependencies import Dependencies
from broker.tokens.keeper import Keeper
from tests.harness.cluster import Cluster
from tests.harness.cluster import cluster as own_cluster
from tests.harness.doubles import ACCOUNT, CANARY, ManualClock, ScriptedWeChat, looked, value_of


@asynccontextmanager
async def opened(url: str, node: str = "n") -> AsyncIterator[PostgresStore]:
    store = await PostgresStore.open(url, ManualClock(), node=node)
    try:
        yield store
    finally:
        await store.close()


async def eventually(true: Callable[[], bool]) -> None:
    """Wait for what another process or task brings about; no longer than any of it may take."""
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.02)


def name_of(database: str) -> str:
    return database.rpartition("/")[2]


# --- away at the start ----------------------------------------------------------------------------


def keeper_on(store: PostgresStore, wechat: ScriptedWeChat, clock: ManualClock) -> Keeper:
    return Keeper(
        ACCOUNT,
        Dependencies(
            store=store,
            upstream=wechat,
            clock=clock,
            policy=Policy(),
            slots=asyncio.Semaphore(16),
            emit=lambda *_, **__: None,
            call_timeout_s=10,
            jitter=lambda: 0.0,
        ),
    )


@pytest.mark.needs("initdb")
async def test_a_database_that_is_away_at_the_start_is_taken_up_when_it_is_back() -> None:
    with own_cluster() as server:
        database = server.dsn(server.database())
        server.stop(signal.SIGINT)
        clock, wechat = ManualClock(), ScriptedWeChat()
        store = await PostgresStore.open(database, clock, node="n")
        keeper = keeper_on(store, wechat, clock)
        await keeper.start()
        store.watch(lambda _: keeper.on_store_changed(), dict)
        assert "refuses the connection" in str(keeper.store_error)
        for _ in range(3):
            await looked(keeper)
            clock.pass_(10)
        assert (value_of(keeper), wechat.calls) == (None, 0)
        server.start()
        async with asyncio.timeout(20):
            while value_of(keeper) is None:  # as ticks do
                clock.pass_(10)
                await looked(keeper)
                await asyncio.sleep(0.02)
        assert (value_of(keeper), wechat.calls) == (f"{CANARY}-main-t1", 1)
        await eventually(lambda: keeper.store_error is None)
        await store.close()


async def test_whoever_moves_a_store_is_told_at_once_that_the_database_is_away() -> None:
    with pytest.raises(StoreError, match="refuses the connection"):
        await PostgresStore.open("postgresql://nobody@127.0.0.1:9/x", ManualClock(), alone=True)


# --- not let in -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deny", "allow", "says"),
    [
        (
            "alter role guest connection limit 0",
            "alter role guest connection limit -1",
            "as many connections as it may",
        ),
        (
            "revoke connect on database {name} from public",
            "grant connect on database {name} to public",
            "may not connect to the database",
        ),
        ("alter role guest nologin", "alter role guest login", "may not log in"),
        (
            "alter database {name} allow_connections false",
            "alter database {name} allow_connections true",
            "takes no connections",
        ),
        (
            "alter database {name} connection limit 0",
            "alter database {name} connection limit -1",
            "its limit (alter database)",
        ),
        ("alter role guest rename to left", "alter role left rename to guest", "does not exist"),
    ],
)
async def test_who_is_not_let_in_is_told_why(
    cluster: Cluster, database: str, deny: str, allow: str, says: str
) -> None:
    name = name_of(database)
    cluster.sql("do $$ begin create role guest login; exception when duplicate_object then end $$")
    cluster.sql(deny.format(name=name))
    try:
        (said,) = await inspect(cluster.dsn(name, "guest"))
    finally:
        cluster.sql(allow.format(name=name))
    assert says in said
    assert name not in said


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ('FATAL:  too many connections for role "x"', "raise its connection limit"),
        ('FATAL:  role "x" does not exist', "the role named in store.url does not exist"),
        (
            "FATAL:  remaining connection slots are reserved for roles with SUPERUSER",
            "raise max_connections",
        ),
        ('FATAL:  Peer authentication failed for user "x"', "does not let this role in"),
        ('FATAL:  password authentication failed for user "x"', "accept the password"),
        ('FATAL:  permission denied for database "x"', "grant connect"),
        ('FATAL:  database "x" does not exist', "store.url does not exist"),
        ("connection to server failed: Connection refused", "refuses the connection"),
    ],
)
def test_a_complaint_that_holds_another_ones_words_is_not_taken_for_it(
    theirs: str, ours: str
) -> None:
    assert ours in str(store_error(OSError(theirs)))


# --- what others wrote ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen_at", "versions"),
    [
        ("0", "no json"),
        ("0", "[]"),
        ("0", '"x"'),
        ("0", '{"wx1": 5}'),
        ("0", "[" * 6000),
        ("'NaN'", "{}"),
        ("'Infinity'", "{}"),
    ],
)
async def test_a_garbage_row_of_a_broker_is_left_out_and_the_listener_goes_on(
    cluster: Cluster, database: str, seen_at: str, versions: str
) -> None:
    async with opened(database) as store:
        now = "extract(epoch from now())" if seen_at == "0" else f"{seen_at}::float8"
        cluster.sql(
            f"insert into token_broker.nodes values ('garbage', {now}, null, '{versions}')",
            name_of(database),
        )
        store.watch(lambda _: None, dict)
        await eventually(lambda: bool(store.nodes))
        assert [node.name for node in store.nodes] == ["n"]
        assert store.last_error is None


@pytest.mark.parametrize("changes", ["9" * 7000, "²", "-1", "", "1e3", "٣"])
def test_a_notification_that_no_broker_sent_is_none(changes: str) -> None:
    assert Notification.read(f"sender {changes} token wx1") is None
    assert Notification.read("sender 12 token wx1") == Notification("sender", 12, "token", "wx1")


async def test_a_notification_of_an_account_that_is_not_there_is_forgotten_with_the_next_heartbeat(
    cluster: Cluster, database: str
) -> None:
    async with opened(database) as store:
        await store.load(ACCOUNT)
        store.watch(lambda _: None, dict)
        await eventually(lambda: bool(store.nodes))
        cluster.sql(
            f"select pg_notify('token_broker', 'x {10**18} token nobody')", name_of(database)
        )
        await eventually(lambda: ("nobody", "token") in store._listener._known)
        await eventually(lambda: ("nobody", "token") not in store._listener._known)


LOOSEN = "alter table token_broker.accounts alter column calls drop not null"


@pytest.mark.parametrize(
    ("odd", "says", "is_refused"),
    [
        ("alter table token_broker.accounts drop column safe_until", "accounts.safe_until", True),
        ("alter table token_broker.calls drop column lease_lost", "calls.lease_lost", True),
        ("drop table token_broker.nodes", "nodes.name", True),
        ("update token_broker.meta set value = 'many'", "not ours", True),
        ("delete from token_broker.meta", "not ours", True),
        ("update token_broker.accounts set failure = 'moon'", "failure is none that", False),
        ("update token_broker.accounts set expires_at = 'NaN'", "expires_at is no instant", False),
        ("update token_broker.accounts set requested_at = null", "without requested_at", False),
        (
            f"{LOOSEN}; update token_broker.accounts set calls = null",
            "calls is empty",
            False,
        ),
        ("update token_broker.calls set lane = 'moon'", "of the table calls", False),
        ("update token_broker.calls set at = 'Infinity'", "of the table calls", False),
    ],
)
async def test_a_database_that_is_odd_inside_ends_in_a_sentence_that_check_says_too(
    cluster: Cluster, database: str, odd: str, says: str, *, is_refused: bool
) -> None:
    clock, wechat = ManualClock(), ScriptedWeChat()
    async with opened(database) as store:
        keeper = keeper_on(store, wechat, clock)
        await keeper.start()
        await looked(keeper)
    cluster.sql(odd, name_of(database))
    (said,) = await inspect(database)
    assert says in said
    if is_refused:
        with pytest.raises(StoreRefused, match=says):
            await PostgresStore.open(database, ManualClock())
    else:
        async with opened(database) as store:
            with pytest.raises(StoreError, match=says):
                await store.load(ACCOUNT)
    assert CANARY not in json.dumps(said)
