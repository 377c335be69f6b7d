"""The SQLite file: owned, migrated, recognised.

A damaged one is set aside, never deleted, and its successor is careful.

Careful means: a new epoch, so that no version recurs, and a ledger that assumes the calls it cannot
know of.
"""

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from sqlite_utils import Database

from broker.core import epoch
from broker.core.ports import StoreRefused
from broker.store.sqlite.lock import StoreLock, lock_path, network_file_system, planted

BUSY_TIMEOUT_S: Final = 2.0
UNKNOWN_CALLS: Final = 10**6  # of a ledger that is lost as a whole
DAMAGED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


# A migration is never changed after a release: stores of that version exist.
_FIRST_SCHEMA: Final = """
create table meta (key text primary key, value text) strict;
create table accounts (appid text, endpoint text, token text, token_call integer,
  requested_at real, expires_at real, doubt text, doubt_since real, safe_until real, called_at real,
  reserved_call integer, not_before real, failures integer, failure text, checked_at real,
  rivals integer, rivals_since real, rivals_last real, fingerprint text, boot_id text, boot_at real,
  wall_at real, primary key (appid, endpoint)) strict;
-- autoincrement: a number that was used once names that call for ever, since it is a version.
create table calls (id integer primary key autoincrement, appid text, endpoint text, lane text,
  forced integer, cost integer, outcome text, boot_id text, boot_at real, wall_at real) strict;
create index idx_calls_appid_endpoint_id on calls (appid, endpoint, id);
"""
# "emergency minted" and "deposed minted" become "minted", with a column that says the rest.
_OWN_COLUMNS: Final = """
alter table calls add column emergency integer not null default 0;
alter table calls add column lease_lost integer not null default 0;
update calls set emergency = 1, outcome = substr(outcome, 11) where outcome like 'emergency %';
update calls set lease_lost = 1, outcome = substr(outcome, 9) where outcome like 'deposed %';
"""

_PLAN_AND_CHECKS: Final = """
alter table accounts add column replace_at real;
alter table accounts add column checks integer not null default 0;
alter table accounts add column checks_since real;
alter table accounts add column alive integer not null default 0;
"""


def _first_schema(db: Database) -> None:
    _run_each(db, _FIRST_SCHEMA)
    db.table("meta").insert({"key": "epoch", "value": epoch.drawn()})


def _emergency_and_lease_lost(db: Database) -> None:
    _run_each(db, _OWN_COLUMNS)


def _plan_and_checks(db: Database) -> None:
    _run_each(db, _PLAN_AND_CHECKS)


def _run_each(db: Database, statements: str) -> None:
    """Run statements within the caller's transaction, which `executescript` would commit."""
    for statement in statements.split(";\n"):
        db.execute(statement)


MIGRATIONS: Final[tuple[Callable[[Database], None], ...]] = (
    _first_schema,
    _emergency_and_lease_lost,
    _plan_and_checks,
)


class StoreFile:
    """An open, owned file. To be used on one thread.

    Opening raises StoreBusy, StoreRefused, sqlite3.Error and OSError. `set_aside` tells where a
    damaged file went.
    """

    def __init__(self, path: Path) -> None:
        if kind := network_file_system(path):
            raise StoreRefused(
                f"{path} is on a network file system ({kind}), whose locks cannot be trusted: use a"
                " local disk"
            )
        self.path = path
        self.epoch = ""
        self.set_aside: str | None = None
        # How many calls the ledger may be missing, and after which call that was found out.
        self.unaccounted = (0, 0)
        emptied = path.is_file() and path.stat().st_size == 0
        self._owner = StoreLock(path)
        try:
            self.db = self._open_whole(emptied=emptied and not self._owner.unused())
        except BaseException:
            self._owner.release()
            raise

    def close(self) -> None:
        """Close, then let go."""
        try:
            self.db.close()
        finally:
            self._owner.release()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """One transaction.

        IMMEDIATE: a deferred one that writes late fails at once where another program holds the
        lock.
        """
        self.db.conn.execute("begin immediate")
        try:
            yield
            self.db.conn.execute("commit")
        except BaseException:
            # A broken disk may not let us roll back either; the first error is the one to tell.
            with contextlib.suppress(sqlite3.Error):
                self.db.conn.execute("rollback")
            raise

    def remember(self, call: int) -> None:
        """Note the newest call outside of the database, so that an older copy of it is recognised."""
        self._owner.remember(self.epoch, call)

    def replace(self) -> None:
        """Open anew after damage was met while running: the file if it is whole again, else a successor."""
        self.db.close()
        self.db = self._open_whole(emptied=False)

    # --- opening ----------------------------------------------------------------------------------

    def _open_whole(self, *, emptied: bool) -> Database:
        try:
            if emptied:  # SQLite would take it for a new one, and the day's calls for unspent
                raise sqlite3.DatabaseError("emptied")
            db = self._open()
        except sqlite3.DatabaseError as error:
            if not emptied and getattr(error, "sqlite_errorcode", None) not in DAMAGED:
                raise
            self._put_aside()
            db = self._open(unaccounted=UNKNOWN_CALLS)
        return db

    def _open(self, unaccounted: int = 0) -> Database:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        db = Database(connection)
        try:
            version = connection.execute("pragma user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                raise StoreRefused(_newer(self.path, version))
            if connection.execute("pragma quick_check(1)").fetchone()[0] != "ok":
                raise _damaged()
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = full")
            self._migrate(db, version)
            self._recognise(db, unaccounted)
        except BaseException:
            connection.close()
            raise
        return db

    def _migrate(self, db: Database, version: int) -> None:
        for number, step in enumerate(MIGRATIONS[version:], start=version + 1):
            with db.atomic():
                step(db)
                db.execute(f"pragma user_version = {number}")

    def _recognise(self, db: Database, unaccounted: int) -> None:
        """Begin a new epoch where this file is older than what was served from it: versions must not recur.

        Its token may have been pushed out by calls it does not know of, so it is dropped, and those
        calls are assumed.
        """
        self.epoch = str(db.table("meta").get("epoch")["value"])
        newest = int(
            db.execute(
                "select coalesce(max(seq), 0) from sqlite_sequence where name = 'calls'"
            ).fetchone()[0]
        )
        seen = self._owner.newest_seen()
        if seen is not None and not unaccounted and (seen[0] != self.epoch or seen[1] > newest):
            unaccounted = seen[1] - newest if seen[0] == self.epoch else UNKNOWN_CALLS
        if not unaccounted:
            row = db.execute("select value from meta where key = 'unaccounted'").fetchone()
            calls, since = json.loads(row[0]) if row else (0, 0)
            self.unaccounted = int(calls), int(since)
            return
        self.epoch = epoch.drawn()
        with db.atomic():
            db.table("meta").upsert({"key": "epoch", "value": self.epoch}, pk="key")
            db.table("meta").upsert(
                {"key": "unaccounted", "value": json.dumps([unaccounted, newest])}, pk="key"
            )
            db.execute("update accounts set token = null, doubt = null")
        self.unaccounted = unaccounted, newest
        self._owner.remember(self.epoch, newest)

    def _put_aside(self) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = self.path.with_name(f"{self.path.name}.corrupt-{stamp}")
        number = 0
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"{self.path.name}.corrupt-{stamp}-{number}")
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{self.path}{suffix}").rename(f"{aside}{suffix}")
        self.path.rename(aside)
        self._owner.follow(self.path)
        self.set_aside = str(aside)


def inspect(path: Path) -> list[str]:
    """What is wrong with a store file, all of it, without changing or owning it; empty where it is good or not there yet."""
    if not path.parent.is_dir():
        return [
            f"the directory {path.parent} does not exist: create it, owned by the daemon's user"
        ]
    found = [why for part in (path, lock_path(path)) if (why := planted(part))]
    if not os.access(path.parent, os.W_OK | os.X_OK):
        found.append(f"the directory {path.parent} cannot be written by this user")
    if kind := network_file_system(path):
        found.append(
            f"{path} is on a network file system ({kind}), whose locks cannot be trusted: use a"
            " local disk"
        )
    return found or (_inspect_content(path) if path.exists() else [])


def _inspect_content(path: Path) -> list[str]:
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)
        ) as db:
            version = db.execute("pragma user_version").fetchone()[0]
            verdict = db.execute("pragma quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        return [f"{path}: {error}"]
    if version > len(MIGRATIONS):
        return [_newer(path, version)]
    return [] if verdict == "ok" else [f"{path} is damaged: {verdict}"]


def _newer(path: Path, version: int) -> str:
    return (
        f"{path} was written by a newer token-broker (schema {version}, this one knows"
        f" {len(MIGRATIONS)}): install that version again, or name another file in store.url"
    )


def _damaged() -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError("the integrity check failed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error
