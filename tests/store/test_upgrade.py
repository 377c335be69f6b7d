"""Stores of earlier versions open and keep what they hold; `FIRST` is what version 0.1.0 wrote, kept as it was."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_utils import Database

from broker.store.sqlite import file as storefile
from broker.store.sqlite.file import MIGRATIONS
from tests.harness.doubles import CANARY, Bench, looked, value_of

FIRST = f"""
CREATE TABLE "accounts" ("appid" TEXT, "endpoint" TEXT, "token" TEXT, "token_call" INTEGER, "requested_at" REAL,
  "expires_at" REAL, "doubt" TEXT, "doubt_since" REAL, "safe_until" REAL, "called_at" REAL, "reserved_call" INTEGER,
  "not_before" REAL, "failures" INTEGER, "failure" TEXT, "checked_at" REAL, "rivals" INTEGER, "rivals_since" REAL,
  "rivals_last" REAL, "fingerprint" TEXT, "boot_id" TEXT, "boot_at" REAL, "wall_at" REAL,
  PRIMARY KEY ("appid", "endpoint")) STRICT;
INSERT INTO "accounts" VALUES('wx0123456789abcdef','token','{CANARY}-old',1,10000.0,17200.0,NULL,NULL,NULL,10000.0,NULL,NULL,
  0,NULL,NULL,0,NULL,NULL,'','boot-1',10000.0,1790000000.0);
CREATE TABLE calls (id integer primary key autoincrement, appid text, endpoint text, lane text, forced integer, cost integer,
  outcome text, boot_id text, boot_at real, wall_at real) strict;
INSERT INTO "calls" VALUES(1,'wx0123456789abcdef','token','scheduled',0,1,'minted','boot-1',10000.0,1790000000.0);
CREATE TABLE "meta" ("key" TEXT PRIMARY KEY, "value" TEXT) STRICT;
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
    assert keeper.usage().last_24h == 1
    assert bench.wechat.calls == 0
    await bench.close()
    with closing(sqlite3.connect(first)) as db:
        assert db.execute("pragma user_version").fetchone() == (len(MIGRATIONS),)


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
