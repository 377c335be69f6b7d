"""Stores of earlier versions open, and keep what they hold.

`FIRST` is what version 0.1.0 wrote.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_utils import Database

from broker.core.ports import StoreRefused
from broker.store.postgres.check import inspect
from broker.store.postgres.schema import UPGRADES
from broker.store.postgres.store import PostgresStore
from broker.store.sqlite import file as storefile
from broker.store.sqlite.schema import MIGRATIONS
from tests.harness.cluster import Cluster
from tests.harness.doubles import ACCOUNT, CANARY, Bench, ManualClock, looked, value_of
from tests.harness.places import ROOT

FIRST = f"""
CREATE TABLE "accounts" ("appid" TEXT, "endpoint" TEXT, "token" TEXT, "token_call" INTEGER,
  "requested_at" REAL, "expires_at" REAL, "doubt" TEXT, "doubt_since" REAL, "safe_until" REAL,
  "called_at" REAL, "reserved_call" INTEGER, "not_before" REAL, "failures" INTEGER, "failure" TEXT,
  "checked_at" REAL, "rivals" INTEGER, "rivals_since" REAL, "rivals_last" REAL,
  "fingerprint" TEXT, "boot_id" TEXT, "boot_at" REAL, "wall_at" REAL,
  PRIMARY KEY ("appid", "endpoint")) STRICT;
INSERT INTO "accounts" VALUES('wx0123456789abcdef','token','{CANARY}-old',1,10000.0,17200.0,
  NULL,NULL,NULL,10000.0,NULL,NULL,0,NULL,NULL,0,NULL,NULL,'','boot-1',10000.0,1790000000.0);
CREATE TABLE calls (id integer primary key autoincrement, appid text, endpoint text, lane text,
  forced integer, cost integer, outcome text, boot_id text, boot_at real, wall_at real) strict;
INSERT INTO "calls" VALUES(1,'wx0123456789abcdef','token','scheduled',0,1,
  'minted','boot-1',10000.0,1790000000.0);
CREATE TABLE "meta" ("key" TEXT PRIMARY KEY, "value" TEXT) STRICT;
INSERT INTO "calls" VALUES(2,'wx0123456789abcdef','token','report',0,1,
  'emergency lost','boot-1',10000.0,1790000000.0);
INSERT INTO "calls" VALUES(3,'wx0123456789abcdef','token','scheduled',0,1,
  'deposed minted','boot-1',10000.0,1790000000.0);
INSERT INTO "calls" VALUES(4,'wx0123456789abcdef','token','scheduled',0,1,
  NULL,'boot-1',10000.0,1790000000.0);
INSERT INTO "meta" VALUES('epoch','e7zp');
CREATE INDEX "idx_calls_appid_endpoint_id" ON "calls" ("appid", "endpoint", "id");
PRAGMA user_version = 1;
"""


@pytest.fixture
def first(bench: Bench) -> Path:
    """A store of version 0.1.0."""
    with closing(sqlite3.connect(bench.path)) as db:
        db.executescript(FIRST)
    bench.path.chmod(0o600)
    return bench.path


async def test_a_store_of_the_first_version_opens_and_its_token_is_served(
    bench: Bench, first: Path
) -> None:
    keeper = await bench.keeper()
    await looked(keeper)
    assert (value_of(keeper), keeper.credential.version) == (f"{CANARY}-old", "e7zp-1")
    assert keeper.usage().last_24h == 4
    assert bench.wechat.calls == 0
    await bench.close()
    with closing(sqlite3.connect(first)) as db:
        assert db.execute("pragma user_version").fetchone() == (len(MIGRATIONS),)


CONVERTED = [("minted", 0, 0), ("lost", 1, 0), ("minted", 0, 1), (None, 0, 0)]


@pytest.mark.usefixtures("first")
async def test_what_the_first_version_wrote_before_an_outcome_has_columns_of_its_own(
    bench: Bench,
) -> None:
    assert [
        (row["outcome"], row["emergency"], row["lease_lost"]) for row in await bench.rows()
    ] == CONVERTED


def first_tables(cluster: Cluster, database: str, owner: str) -> str:
    """Give a database the tables of version 0.1.0, with calls; its name."""
    name = database.rpartition("/")[2]
    schema = (Path(__file__).parent / "schema-1.sql").read_text()
    cluster.sql(schema, name, owner)
    cluster.sql(
        f"""insert into token_broker.calls
 select '{ACCOUNT.appid}', 'token', 'e', n, 'scheduled', 0, 1, outcome, 1790000000, 'n'
 from unnest(array['minted', 'emergency lost', 'deposed minted', null])
 with ordinality as it(outcome, n)""",
        name,
    )
    return name


def columns_of(cluster: Cluster, name: str) -> list[tuple[object, ...]]:
    return cluster.sql(
        """select table_name, column_name, data_type, is_nullable, column_default
 from information_schema.columns where table_schema = 'token_broker' order by 1, 2""",
        name,
    )


async def test_tables_of_the_first_version_are_upgraded_to_what_a_new_database_has(
    cluster: Cluster, database: str
) -> None:
    upgraded, other = first_tables(cluster, database, "token_broker"), cluster.database()
    for name in (upgraded, other):
        await (await PostgresStore.open(cluster.dsn(name), ManualClock())).close()
    assert columns_of(cluster, upgraded) == columns_of(cluster, other)
    assert await inspect(database) == []
    store = await PostgresStore.open(database, ManualClock())
    rows = await store.history(0, ACCOUNT)
    await store.close()
    assert [(row["outcome"], row["emergency"], row["lease_lost"]) for row in rows] == CONVERTED
    cluster.sql(f"drop database {other} with (force)")


async def test_a_role_that_may_not_change_the_tables_is_told_who_does_it_and_how(
    cluster: Cluster, database: str
) -> None:
    name = first_tables(cluster, database, "postgres")
    (found,) = await inspect(database)
    with pytest.raises(StoreRefused, match=r"earlier token-broker.*upgrade-2\.sql") as refused:
        await PostgresStore.open(database, ManualClock())
    assert found == str(refused.value)
    for upgrade in UPGRADES:
        cluster.sql((ROOT / "broker/store/postgres" / upgrade).read_text(), name)
    assert await inspect(database) == []


async def test_tables_of_a_newer_version_are_refused_and_left_as_they_are(
    cluster: Cluster, database: str
) -> None:
    await (await PostgresStore.open(database, ManualClock())).close()
    name = database.rpartition("/")[2]
    cluster.sql("update token_broker.meta set value = '99' where key = 'schema'", name)
    before = columns_of(cluster, name)
    with pytest.raises(StoreRefused, match="newer token-broker"):
        await PostgresStore.open(database, ManualClock())
    assert "newer token-broker" in (await inspect(database))[0]
    assert columns_of(cluster, name) == before


async def test_a_migration_is_whole_or_not_at_all(
    bench: Bench, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(db: Database) -> None:
        db.execute("alter table calls add column note text")
        raise sqlite3.OperationalError("the power went")

    monkeypatch.setattr(storefile, "MIGRATIONS", (*MIGRATIONS, half))
    with pytest.raises(Exception, match="the power went"):
        await bench.open()
    monkeypatch.undo()
    keeper = await bench.keeper()
    assert value_of(keeper) == f"{CANARY}-old"
    await bench.close()
    with closing(sqlite3.connect(first)) as db:
        assert "note" not in {row[1] for row in db.execute("pragma table_info(calls)")}
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)


async def test_a_migration_that_is_done_is_remembered(
    bench: Bench, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []

    def add(db: Database) -> None:
        done.append(1)
        db.execute("alter table calls add column note text")

    monkeypatch.setattr(storefile, "MIGRATIONS", (*MIGRATIONS, add))
    for _ in range(2):
        assert value_of(await bench.restarted()) == f"{CANARY}-old"
    assert (done, first.exists()) == ([1], True)
