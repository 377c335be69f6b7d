"""The store on SQLite: one file, one owner, one thread; WAL and synchronous=FULL, so that what is committed stays."""

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeVar

from broker.core.credential import NEVER, Account, Credential
from broker.core.ports import (
    Change,
    Claim,
    Decide,
    Denial,
    Denied,
    Grant,
    Held,
    OnStoreChanged,
    StoreError,
    Versions,
)
from broker.core.quota import DAY, Lane
from broker.core.transitions import reserved
from broker.store.encryption import Plain, Seal
from broker.store.rows import (
    ACCOUNT_COLUMNS,
    ASSUMED,
    CALL_COLUMNS,
    KEPT_DAYS,
    MOVED_COLUMNS,
    account_of,
    account_row,
    assumed_cost,
    entries_of,
    key_of,
    with_call,
)
from broker.store.sqlite.anchor import ANCHOR_COLUMNS, Anchor, BootClock, carried_by, revived
from broker.store.sqlite.file import DAMAGED, StoreFile
from broker.store.transfer import AccountExport, renumbered

T = TypeVar("T")

_KEY: Final = "appid = :appid and endpoint = :endpoint"
_FIND: Final = f"select * from accounts where {_KEY}"  # noqa: S608 -- of constants, like all below
# No limit counts a call older than a day. After a crash the last call is asked about, however old.
_LEDGER: Final = f"""select * from calls where {_KEY} and boot_at >= :since
 order by id desc limit :most"""  # noqa: S608
_HISTORY: Final = f"select * from calls where {_KEY} and wall_at >= :since order by id"  # noqa: S608
_ASSUMED: Final = f"select 1 from calls where {_KEY} and outcome = '{ASSUMED}' and id > :since"  # noqa: S608
_DROP_OLD: Final = f"delete from calls where {_KEY} and boot_at < :before"  # noqa: S608
_SETTLE: Final = """update calls set outcome = :outcome, emergency = :emergency
 where id = :id and outcome is null"""
_CARRY: Final = (
    # Of constants
    f"update calls set boot_id = :here, boot_at = boot_at + :shift where {_KEY} and boot_id = :there"  # noqa: S608
)
_CARRY_REST: Final = f"update calls set boot_id = :here, boot_at = min(0, wall_at - :offset) where {_KEY} and boot_id <> :here"  # noqa: S608
_CALL_COLUMNS: Final = tuple(name for name in {**CALL_COLUMNS, **ANCHOR_COLUMNS} if name != "id")
_ADD_CALL: Final = f"""insert into calls ({", ".join(_CALL_COLUMNS)})
 values ({", ".join(f":{name}" for name in _CALL_COLUMNS)})"""  # noqa: S608
_ACCOUNT_COLUMNS: Final = tuple({**ACCOUNT_COLUMNS, **ANCHOR_COLUMNS})
_WRITE: Final = f"""insert into accounts ({", ".join(_ACCOUNT_COLUMNS)})
 values ({", ".join(f":{name}" for name in _ACCOUNT_COLUMNS)}) on conflict (appid, endpoint)
 do update set {", ".join(f"{name} = excluded.{name}" for name in _ACCOUNT_COLUMNS)}"""  # noqa: S608


class SqliteStore:
    """A :class:`broker.core.ports.Store` in one file. Open it with :meth:`open`."""

    sole_owner = True
    last_error = None
    nodes = ()

    def __init__(self, path: Path, clock: BootClock, seal: Seal) -> None:
        self._path = path
        self._clock = clock
        self._seal = seal
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._file: StoreFile
        self._damaged = False

    @classmethod
    async def open(cls, path: Path, clock: BootClock, seal: Seal | None = None) -> "SqliteStore":
        """Own the file, create or migrate the schema, set a damaged file aside.

        Raises StoreBusy, StoreRefused, or StoreError where it cannot be opened at all.
        """
        store = cls(path, clock, seal or Plain())
        try:
            await store._run(store._open)
        except BaseException:
            store._thread.shutdown(wait=False)
            raise
        return store

    @property
    def set_aside(self) -> str | None:
        """Where a damaged file was put, if one was met since this store was opened."""
        return self._file.set_aside

    # --- the port ---------------------------------------------------------------------------------

    async def load(self, account: Account) -> Held:
        """See :class:`broker.core.ports.Store`."""
        return await self._run(self._load, account)

    async def reserve(self, account: Account, decide: Decide) -> Grant | Denied:
        """See :class:`broker.core.ports.Store`."""
        return await self._run(self._reserve, account, decide)

    async def settle(
        self,
        account: Account,
        grant: Grant,
        outcome: str,
        change: Change,
        *,
        emergency: bool = False,
    ) -> Credential:
        """See :class:`broker.core.ports.Store`."""
        return await self._run(self._settle, account, grant, outcome, change, int(emergency))

    async def amend(self, account: Account, change: Change) -> tuple[Credential, bool]:
        """See :class:`broker.core.ports.Store`."""
        return await self._run(self._amend, account, change)

    def watch(self, on_store_changed: OnStoreChanged, versions: Versions) -> None:
        """Nobody else can change what a sole owner holds."""

    async def history(self, since: float, account: Account) -> list[dict[str, Any]]:
        """See :class:`broker.core.ports.Store`."""
        return await self._run(lambda: self._rows(_HISTORY, {**key_of(account), "since": since}))

    async def accounts(self) -> list[tuple[Account, bool]]:
        """See :class:`broker.store.transfer.Movable`."""
        return await self._run(
            lambda: [
                (account_of(row), row["token"] is not None)
                for row in self._file.db.table("accounts").rows
            ]
        )

    async def import_accounts(self, exports: Sequence[AccountExport]) -> None:
        """See :class:`broker.store.transfer.Movable`."""
        await self._run(self._import_accounts, exports)

    async def close(self) -> None:
        """See :class:`broker.core.ports.Store`."""
        await self._run(self._file.close)
        self._thread.shutdown()

    # --- on the thread ----------------------------------------------------------------------------

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._guarded, work, *args
        )

    def _guarded(self, work: Callable[..., T], *args: Any) -> T:
        try:
            if self._damaged:
                self._file.replace()
                self._damaged = False
            return work(*args)
        except sqlite3.Error as error:
            self._damaged = self._damaged or getattr(error, "sqlite_errorcode", None) in DAMAGED
            raise StoreError(f"{self._path}: {error}") from None
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}") from None

    def _open(self) -> None:
        self._file = StoreFile(self._path)

    def _load(self, account: Account) -> Held:
        with self._file.transaction():
            here = Anchor.drop(self._clock)
            self._assume(account, here)
            self._carry_over(account, here)
            return self._held(account, here)

    def _carry_over(self, account: Account, here: Anchor) -> None:
        """Put what another boot wrote on this one's clock.

        Once: read again, it would be translated again, and with a wall clock that stands before it,
        it would never age.
        """
        key = key_of(account)
        for row in self._rows(_FIND, key):
            there = Anchor.of(row)
            shift = {"here": here.boot_id, "there": there.boot_id, "shift": carried_by(there, here)}
            self._file.db.execute(_CARRY, {**key, **shift})
            self._write(account, revived(row, self._file.epoch, here, self._seal), here)
        self._file.db.execute(_CARRY_REST, {**key, "here": here.boot_id, "offset": here.offset})

    def _reserve(self, account: Account, decide: Decide) -> Grant | Denied:
        with self._file.transaction():
            here = Anchor.drop(self._clock)
            self._assume(account, here)
            held = self._held(account, here)
            decision = decide(held.credential, held.entries, here.boot_at)
            if isinstance(decision, Denial):
                return Denied(decision, held.credential, held.entries)
            self._drop_old_calls(account, here)
            call = self._add_call(account, decision, here)
            credential = reserved(held.credential, call, here.boot_at)
            self._write(account, credential, here)
        self._file.remember(call)
        entries = with_call(held.entries, decision, here.boot_at, here.wall_at, account)
        return Grant(call, here.boot_at, decision, credential, entries)

    def _settle(
        self, account: Account, grant: Grant, outcome: str, change: Change, emergency: int = 0
    ) -> Credential:
        with self._file.transaction():
            # Where the file was replaced meanwhile, the call has no row: it is among those that
            # the successor assumes.
            said = {"outcome": outcome, "emergency": emergency, "id": grant.call}
            self._file.db.execute(_SETTLE, said)
            return self._apply(account, change)[0]

    def _amend(self, account: Account, change: Change) -> tuple[Credential, bool]:
        with self._file.transaction():
            return self._apply(account, change)

    def _apply(self, account: Account, change: Change) -> tuple[Credential, bool]:
        here = Anchor.drop(self._clock)
        held = self._credential(account, here)
        changed = change(held, here.boot_at)
        if changed is None:
            return held, False
        self._write(account, changed, here)
        return changed, True

    def _credential(self, account: Account, here: Anchor) -> Credential:
        epoch = self._file.epoch
        rows = self._rows(_FIND, key_of(account))
        return revived(rows[0], epoch, here, self._seal) if rows else Credential(epoch=epoch)

    def _held(self, account: Account, here: Anchor) -> Held:
        credential = self._credential(account, here)
        since = here.boot_at - DAY
        if credential.called_at != NEVER:
            since = min(since, credential.called_at)
        # Only the newest `daily_quota` calls can matter: where all of them lie in the window, it is
        # full.
        asked = {**key_of(account), "since": since, "most": account.daily_quota}
        return Held(credential, entries_of(self._rows(_LEDGER, asked)))

    def _assume(self, account: Account, here: Anchor) -> None:
        """Enter the calls that a lost ledger may have held, once."""
        missing, since = self._file.unaccounted
        cost = assumed_cost(missing, account.daily_quota)
        if cost and not self._rows(_ASSUMED, {**key_of(account), "since": since}):
            self._add_call(account, Claim(Lane.SCHEDULED), here, cost=cost, outcome=ASSUMED)

    def _drop_old_calls(self, account: Account, here: Anchor) -> None:
        stale = {**key_of(account), "before": here.boot_at - KEPT_DAYS * DAY}
        self._file.db.execute(_DROP_OLD, stale)

    def _add_call(
        self,
        account: Account,
        claim: Claim,
        here: Anchor,
        cost: int = 1,
        outcome: str | None = None,
    ) -> int:
        row = {
            **key_of(account),
            "lane": claim.lane.value,
            "forced": int(claim.force),
            "cost": cost,
            "outcome": outcome,
            "emergency": 0,
            "lease_lost": 0,
        }
        return self._insert_call({**row, **asdict(here)})

    def _import_accounts(self, exports: Sequence[AccountExport]) -> None:
        with self._file.transaction():
            here, newest = Anchor.drop(self._clock), 0
            for export in exports:
                numbers = {
                    call["id"]: self._add_past_call(export.account, call, here)
                    for call in export.calls
                }
                self._write(export.account, renumbered(export.credential, numbers), here)
                newest = max([newest, *numbers.values()])
        self._file.remember(newest)

    def _add_past_call(self, account: Account, call: Mapping[str, Any], here: Anchor) -> int:
        row = {**key_of(account), **{name: call[name] for name in MOVED_COLUMNS}}
        anchor = {
            "boot_id": here.boot_id,
            "boot_at": call["wall_at"] - here.offset,
            "wall_at": call["wall_at"],
        }
        return self._insert_call({**row, **anchor})

    def _insert_call(self, row: Mapping[str, Any]) -> int:
        return int(self._file.db.execute(_ADD_CALL, dict(row)).lastrowid or 0)

    def _write(self, account: Account, credential: Credential, here: Anchor) -> None:
        row = {**account_row(credential, key_of(account), self._seal), **asdict(here)}
        self._file.db.execute(_WRITE, row)

    def _rows(self, statement: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        cursor = self._file.db.execute(statement, dict(values))
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]
