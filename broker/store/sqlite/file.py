"""The SQLite file: owned, migrated, recognised.

A damaged file is set aside, never deleted, and its successor is careful. Careful means two things:
it begins an epoch of its own, so that no version recurs, and its ledger assumes the calls that it
cannot know of.

Where nothing can be written when the file is opened (a full disk, a read-only mount, a lock that
another program holds), a copy in memory stands in for it: what is stored can be read all the same.
"""

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from sqlite_utils import Database

from broker.core import epoch
from broker.core.ports import StoreRefused
from broker.store.sqlite.content import oddities
from broker.store.sqlite.lock import UNWRITABLE, StoreLock
from broker.store.sqlite.place import refusals
from broker.store.sqlite.schema import MIGRATIONS

BUSY_TIMEOUT_S: Final = 2.0
UNKNOWN_CALLS: Final = 10**6  # of a ledger that is lost as a whole
_PRIMARY: Final = 0xFF  # the part of an extended result code that says what kind of error it is
_DAMAGED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_UNWRITABLE: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}


def is_damage(error: sqlite3.Error) -> bool:
    """Return True if an error says that the file is not, or no longer, a sound database."""
    return _code(error) in _DAMAGED


class StoreFile:
    """An owned file, open after :meth:`open`. To be used on one thread.

    `on_opened` is called whenever another `db` has been opened, to write what has to be written
    first. Where it fails, that `db` was not opened.

    Opening raises StoreBusy, StoreRefused, sqlite3.Error and OSError. `set_aside` tells where a
    damaged file went. `read_only` says why nothing can be written, while a copy stands in for the
    file. `unaccounted` is how many calls the ledger may be missing, and after which call that was
    found out.
    """

    db: Database

    def __init__(self, path: Path, on_opened: Callable[[], None]) -> None:
        for why in refusals(path):
            if path.parent.is_dir():
                raise StoreRefused(why)
        self.path = path
        self.epoch = ""
        self.set_aside: str | None = None
        self.read_only: str | None = None
        self.unaccounted = (0, 0)
        self._on_opened = on_opened
        self._beside: dict[Path, tuple[int, int]] = {}
        self._was_empty = path.is_file() and path.stat().st_size == 0
        self._owner = StoreLock(path)

    def open(self) -> None:
        """Open the file, or a copy of it in memory where nothing can be written. Call it once."""
        emptied = self._was_empty and not self._owner.is_unused()
        try:
            try:
                self._open_whole(emptied=emptied)
            except (sqlite3.Error, OSError) as error:
                self._copy_instead(error)
        except BaseException:
            self._owner.release()
            raise

    @property
    def corrected(self) -> list[tuple[Path, int]]:
        """Files whose modes let others read them, with those modes: they were put right."""
        return self._owner.corrected

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
        """Note the newest call outside of the database, so that an older copy is recognised."""
        self._owner.remember(self.epoch, call)

    def lost(self) -> str | None:
        """Return what happened to a file that is no longer where it was opened, None where all are.

        What is written after that would be in no file that people see.
        """
        if self.read_only is not None:
            return None
        for path, identity in self._beside.items():
            if _identity(path) != identity:
                return f"{path} was deleted or replaced while it was in use"
        return self._owner.lost()

    def reopen(self) -> None:
        """Open what is at the path now: the file if it is whole, else a careful successor.

        Called after damage was met, after the file was lost, and where a copy stands in for it. The
        copy stays in use until that succeeds. Raises what construction raises.
        """
        before = self.db
        if self.read_only is None:
            before.close()
        self._owner.reclaim()
        self._open_whole(emptied=False)
        before.close()
        self.read_only = None

    # --- opening ----------------------------------------------------------------------------------

    def _open_whole(self, *, emptied: bool) -> None:
        try:
            if emptied:  # SQLite would take it for a new one, and the day's calls for unspent
                raise sqlite3.DatabaseError("emptied")
            self._open()
        except sqlite3.DatabaseError as error:
            if not emptied and not is_damage(error):
                raise
            self._put_aside()
            self._open(unaccounted=UNKNOWN_CALLS)

    def _open(self, unaccounted: int = 0) -> None:
        self._use(
            sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            ),
            unaccounted,
        )
        # SQLite keeps both for as long as it has the file open.
        beside = [self.path.with_name(self.path.name + it) for it in ("-wal", "-shm")]
        self._beside = {it: identity for it in beside if (identity := _identity(it))}

    def _copy_instead(self, error: sqlite3.Error | OSError) -> None:
        """Read the file into memory, without writing anything anywhere near it.

        A write-ahead log that a killed process left is read too: its index is still there, or
        SQLite makes one in memory. Without a log SQLite would want to make one, unless it is told
        that nobody changes the file, which our locks make true.

        Raises `error` where it does not say that nothing can be written, or nothing can be read.
        """
        if not _is_unwritable(error) or not self.path.stat().st_size:
            raise error
        wal = self.path.with_name(self.path.name + "-wal")
        how = "mode=ro" if wal.exists() and wal.stat().st_size else "immutable=1"
        memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            where = f"{self.path.as_uri()}?{how}"
            with contextlib.closing(sqlite3.connect(where, uri=True, timeout=0.0)) as disk:
                disk.backup(memory)
            self._use(memory, is_copy=True)
        except (sqlite3.Error, OSError):
            memory.close()
            raise error from None
        self.read_only = getattr(error, "strerror", None) or str(error)

    def _use(
        self, connection: sqlite3.Connection, unaccounted: int = 0, *, is_copy: bool = False
    ) -> None:
        """Go on with another connection; where that fails, it is closed."""
        before = getattr(self, "db", None)
        try:
            self.db = self._made_ready(Database(connection), unaccounted, is_copy=is_copy)
            self._on_opened()
        except BaseException:
            connection.close()
            if before is not None:
                self.db = before
            raise

    def _made_ready(self, db: Database, unaccounted: int = 0, *, is_copy: bool = False) -> Database:
        version = db.execute("pragma user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise StoreRefused(newer(self.path, version))
        if db.execute("pragma quick_check(1)").fetchone()[0] != "ok":
            raise _damaged()
        for why in oddities(db, version):
            raise StoreRefused(f"{self.path}: {why}")
        if not is_copy:
            db.execute("pragma journal_mode = wal")
            db.execute("pragma synchronous = full")
        self._migrate(db, version)
        self._recognise(db, unaccounted, is_copy=is_copy)
        return db

    def _migrate(self, db: Database, version: int) -> None:
        for number, step in enumerate(MIGRATIONS[version:], start=version + 1):
            with db.atomic():
                step(db)
                db.execute(f"pragma user_version = {number}")

    def _recognise(self, db: Database, unaccounted: int, *, is_copy: bool) -> None:
        """Begin a new epoch where this file is older than what was served from it.

        Versions must not recur. The file's token may have been pushed out by calls that the file
        does not know of, so the token is dropped, and those calls are assumed.
        """
        self.epoch = _meta(db, "epoch") or ""
        (newest,) = db.execute(
            "select coalesce(max(seq), 0) from sqlite_sequence where name = 'calls'"
        ).fetchone()
        seen = self._owner.newest_seen()
        if seen is not None and not unaccounted and (seen[0] != self.epoch or seen[1] > newest):
            unaccounted = seen[1] - newest if seen[0] == self.epoch else UNKNOWN_CALLS
        if not unaccounted:
            calls, since = json.loads(_meta(db, "unaccounted") or "[0, 0]")
            self.unaccounted = int(calls), int(since)
            return
        self.epoch, self.unaccounted = epoch.drawn(), (unaccounted, newest)
        with db.atomic():
            db.table("meta").upsert({"key": "epoch", "value": self.epoch}, pk="key")
            db.table("meta").upsert(
                {"key": "unaccounted", "value": json.dumps(self.unaccounted)}, pk="key"
            )
            db.execute("update accounts set token = null, doubt = null")
        if not is_copy:
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
        self._owner.reclaim()
        self.set_aside = str(aside)


def newer(path: Path, version: int) -> str:
    """Return what is said of a file that a later version wrote."""
    return (
        f"{path} was written by a newer token-broker (schema {version}, this one knows"
        f" {len(MIGRATIONS)}): install that version again, or name another file in store.url"
    )


def _meta(db: Database, key: str) -> str | None:
    row = db.execute("select value from meta where key = ?", [key]).fetchone()
    return None if row is None else str(row[0])


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & _PRIMARY


def _is_unwritable(error: Exception) -> bool:
    if isinstance(error, sqlite3.Error):
        return _code(error) in _UNWRITABLE
    return isinstance(error, OSError) and error.errno in UNWRITABLE


def _damaged() -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError("the integrity check failed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error
