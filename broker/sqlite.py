"""The store on SQLite: one file, one owner, one thread; WAL and synchronous=FULL, so that what is committed stays."""

import asyncio
import contextlib
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlite_utils import Database

from broker.core.credential import NEVER, Account, Credential, reserved
from broker.core.ports import Change, Claim, Decide, Denial, Denied, Grant, Held, StoreError, StoreRefused
from broker.core.quota import DAY
from broker.ownership import Ownership, lock_path, planted
from broker.rows import ACCOUNT_COLUMNS, CALL_COLUMNS, Anchor, BootClock, account_row, credential_of, entries_of

T = TypeVar("T")

KEPT_DAYS: Final = 8  # the status page plots two days, people look back a week
BUSY_TIMEOUT_S: Final = 2.0
KEY: Final = "appid = :appid and endpoint = :endpoint"


def _first_schema(db: Database) -> None:
    db.table("meta").create({"key": str, "value": str}, pk="key", strict=True)
    db.table("meta").insert({"key": "epoch", "value": _new_epoch()})
    db.table("accounts").create(ACCOUNT_COLUMNS, pk=("appid", "endpoint"), strict=True)
    # AUTOINCREMENT, which sqlite-utils has no word for: a number once used names that call for ever, it is a version.
    columns = ", ".join(f"{name} {_SQL_TYPES[kind]}" for name, kind in CALL_COLUMNS.items() if name != "id")
    db.execute(f"create table calls (id integer primary key autoincrement, {columns}) strict")
    db.table("calls").create_index(["appid", "endpoint", "id"])


_SQL_TYPES: Final = {int: "integer", float: "real", str: "text"}
MIGRATIONS: Final[tuple[Callable[[Database], None], ...]] = (_first_schema,)


def _new_epoch() -> str:
    # Letters and digits that cannot be mistaken for each other; 4 of them tell one store's history from the next.
    return "".join(secrets.choice("23456789abcdefghjkmnpqrstuvwxyz") for _ in range(4))


class SqliteStore:
    """A :class:`broker.core.ports.Store` in one file. Open it with :meth:`open`."""

    sole_owner = True

    def __init__(self, path: Path, clock: BootClock) -> None:
        self._path = path
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._owner: Ownership
        self._db: Database
        self._epoch = ""

    @classmethod
    async def open(cls, path: Path, clock: BootClock) -> "SqliteStore":
        """Own the file, create or migrate the schema.

        Raises StoreBusy, StoreRefused, or StoreError where it cannot be opened at all.
        """
        store = cls(path, clock)
        try:
            await store._run(store._open)
        except BaseException:
            store._thread.shutdown(wait=False)
            raise
        return store

    # --- the port -----------------------------------------------------------------------------------------------------

    async def load(self, account: Account) -> Held:
        """See :class:`broker.core.ports.Store`."""
        return await self._run(self._load, account)

    async def reserve(self, account: Account, decide: Decide) -> Grant | Denied:
        """See :class:`broker.core.ports.Store`."""
        return await self._run(self._reserve, account, decide)

    async def settle(self, account: Account, grant: Grant, outcome: str, change: Change) -> Credential:
        """See :class:`broker.core.ports.Store`."""
        return await self._run(self._settle, account, grant, outcome, change)

    async def amend(self, account: Account, change: Change) -> tuple[Credential, bool]:
        """See :class:`broker.core.ports.Store`."""
        return await self._run(self._amend, account, change)

    async def history(self, since: float) -> list[dict[str, Any]]:
        """Calls since a wall time, oldest first: appid, endpoint, lane, forced, outcome, wall_at."""
        return await self._run(lambda: list(self._db.table("calls").rows_where("wall_at >= ?", [since], order_by="id")))

    async def close(self) -> None:
        """See :class:`broker.core.ports.Store`."""
        await self._run(self._close)
        self._thread.shutdown()

    # --- on the thread ------------------------------------------------------------------------------------------------

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}") from None
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}") from None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """One transaction. IMMEDIATE: a deferred one that writes late fails at once where another program holds the lock."""
        self._db.conn.execute("begin immediate")
        try:
            yield
            self._db.conn.execute("commit")
        except BaseException:
            if self._db.conn.in_transaction:
                self._db.conn.execute("rollback")
            raise

    def _open(self) -> None:
        self._owner = Ownership(self._path)
        try:
            connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            self._db = Database(connection)
            version = self._db.execute("pragma user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                connection.close()
                raise StoreRefused(_newer(self._path, version))
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            self._migrate(version)
            self._recognise_epoch()
        except BaseException:
            self._owner.release()
            raise

    def _migrate(self, version: int) -> None:
        for number, step in enumerate(MIGRATIONS[version:], start=version + 1):
            with self._transaction():
                step(self._db)
                self._db.execute(f"pragma user_version = {number}")

    def _recognise_epoch(self) -> None:
        """Begin a new epoch where this file is older than what was served from it before: versions must not recur."""
        self._epoch = str(self._db.table("meta").get("epoch")["value"])
        newest = self._db.execute("select coalesce(max(seq), 0) from sqlite_sequence where name = 'calls'").fetchone()[0]
        seen = self._owner.newest_seen()
        if seen is not None and seen[0] == self._epoch and seen[1] > newest:
            self._epoch = _new_epoch()
            self._db.table("meta").update("epoch", {"value": self._epoch})

    def _close(self) -> None:
        try:
            self._db.close()
        finally:
            self._owner.release()

    def _load(self, account: Account) -> Held:
        with self._transaction():
            here = Anchor.drop(self._clock)
            held = self._held(account, here)
            if held.credential.called_at != NEVER:
                # What another boot wrote is put on this one's clock once: read again, it would be translated again, and
                # with a wall clock that stands before it, it would never age.
                self._write(account, held.credential, here)
            return held

    def _reserve(self, account: Account, decide: Decide) -> Grant | Denied:
        with self._transaction():
            here = Anchor.drop(self._clock)
            held = self._held(account, here)
            decision = decide(held.credential, held.entries, here.boot_at)
            if isinstance(decision, Denial):
                return Denied(decision, held.credential, held.entries)
            call = self._add_call(account, decision, here)
            credential = reserved(held.credential, call, here.boot_at)
            self._write(account, credential, here)
            entries = entries_of(self._calls(account), here)
        self._owner.remember(self._epoch, call)
        return Grant(call, here.boot_at, decision, credential, entries)

    def _settle(self, account: Account, grant: Grant, outcome: str, change: Change) -> Credential:
        with self._transaction():
            self._db.table("calls").update(grant.call, {"outcome": outcome})
            return self._apply(account, change)[0]

    def _amend(self, account: Account, change: Change) -> tuple[Credential, bool]:
        with self._transaction():
            return self._apply(account, change)

    def _apply(self, account: Account, change: Change) -> tuple[Credential, bool]:
        here = Anchor.drop(self._clock)
        held = self._held(account, here).credential
        changed = change(held, here.boot_at)
        if changed is None:
            return held, False
        self._write(account, changed, here)
        return changed, True

    def _held(self, account: Account, here: Anchor) -> Held:
        rows = list(self._db.table("accounts").rows_where(KEY, _key(account)))
        credential = credential_of(rows[0], self._epoch, here) if rows else Credential(epoch=self._epoch)
        return Held(credential, entries_of(self._calls(account), here))

    def _calls(self, account: Account) -> list[dict[str, Any]]:
        # Only the newest `daily_quota` calls can matter: where all of them lie in the window, it is full.
        table = self._db.table("calls")
        return list(table.rows_where(KEY, _key(account), order_by="id desc", limit=account.daily_quota))

    def _add_call(self, account: Account, claim: Claim, here: Anchor) -> int:
        stale = f"{KEY} and wall_at < :wall and not (boot_id = :boot_id and boot_at > :boot_at)"
        old = {"wall": here.wall_at - KEPT_DAYS * DAY, "boot_id": here.boot_id, "boot_at": here.boot_at - 2 * DAY}
        self._db.table("calls").delete_where(stale, {**_key(account), **old})
        row = {**_key(account), "lane": claim.lane.value, "forced": int(claim.force), "cost": 1, "outcome": None}
        anchor = {"boot_id": here.boot_id, "boot_at": here.boot_at, "wall_at": here.wall_at}
        return int(self._db.table("calls").insert({**row, **anchor}, pk="id").last_pk or 0)

    def _write(self, account: Account, credential: Credential, here: Anchor) -> None:
        self._db.table("accounts").upsert(account_row(credential, _key(account), here), pk=("appid", "endpoint"))


def _key(account: Account) -> dict[str, str]:
    return {"appid": account.appid, "endpoint": account.endpoint.value}


def inspect(path: Path) -> list[str]:
    """What is wrong with a store file, all of it, without changing or owning it; empty where it is good or not there yet."""
    if not path.parent.is_dir():
        return [f"the directory {path.parent} does not exist: create it, owned by the daemon's user"]
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return [f"the directory {path.parent} cannot be written by this user"]
    if not path.exists() and not path.is_symlink():
        return []
    found = [why for part in (path, lock_path(path)) if (why := planted(part))]
    return found or _inspect_content(path)


def _inspect_content(path: Path) -> list[str]:
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)) as db:
            version = db.execute("pragma user_version").fetchone()[0]
            verdict = db.execute("pragma quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        return [f"{path}: {error}"]
    if version > len(MIGRATIONS):
        return [_newer(path, version)]
    return [] if verdict == "ok" else [f"{path} is damaged: {verdict}"]


def _newer(path: Path, version: int) -> str:
    return (
        f"{path} was written by a newer token-broker (schema {version}, this one knows {len(MIGRATIONS)}): "
        "install that version again, or name another file in store.url"
    )
