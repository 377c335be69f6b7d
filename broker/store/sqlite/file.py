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
from broker.store.rows import ACCOUNT_COLUMNS, CALL_COLUMNS
from broker.store.sqlite.anchor import ANCHOR_COLUMNS
from broker.store.sqlite.lock import StoreLock, lock_path, network_file_system, planted

BUSY_TIMEOUT_S: Final = 2.0
UNKNOWN_CALLS: Final = 10**6  # of a ledger that is lost as a whole
DAMAGED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_SQL_TYPES: Final = {int: "integer", float: "real", str: "text"}


def _first_schema(db: Database) -> None:
    db.table("meta").create({"key": str, "value": str}, pk="key", strict=True)
    db.table("meta").insert({"key": "epoch", "value": epoch.drawn()})
    db.table("accounts").create(
        {**ACCOUNT_COLUMNS, **ANCHOR_COLUMNS}, pk=("appid", "endpoint"), strict=True
    )
    # AUTOINCREMENT, which sqlite-utils has no word for: a number once used names that call for
    # ever, it is a version.
    columns = ", ".join(
        f"{name} {_SQL_TYPES[kind]}"
        for name, kind in {**CALL_COLUMNS, **ANCHOR_COLUMNS}.items()
        if name != "id"
    )
    db.execute(f"create table calls (id integer primary key autoincrement, {columns}) strict")
    db.table("calls").create_index(["appid", "endpoint", "id"])


MIGRATIONS: Final[tuple[Callable[[Database], None], ...]] = (_first_schema,)


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

    def unaccounted(self) -> tuple[int, int]:
        """How many calls the ledger may be missing, and the number of the call after which that was found out."""
        row = self.db.execute("select value from meta where key = 'unaccounted'").fetchone()
        calls, since = json.loads(row[0]) if row else (0, 0)
        return int(calls), int(since)

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
            return
        self.epoch = epoch.drawn()
        with db.atomic():
            db.table("meta").upsert({"key": "epoch", "value": self.epoch}, pk="key")
            db.table("meta").upsert(
                {"key": "unaccounted", "value": json.dumps([unaccounted, newest])}, pk="key"
            )
            db.execute("update accounts set token = null, doubt = null")
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
