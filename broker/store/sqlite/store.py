"""The store on SQLite: one file, one owner, one thread; WAL and synchronous=FULL, so that what is committed stays."""

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeVar

from broker.core.credential import Account, Credential
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
    ASSUMED,
    KEPT_DAYS,
    account_of,
    account_row,
    assumed_cost,
    entries_of,
    key_of,
)
from broker.store.sqlite.anchor import Anchor, BootClock, carried_by, revived
from broker.store.sqlite.file import DAMAGED, StoreFile
from broker.store.transfer import AccountExport, renumbered

T = TypeVar("T")

KEY: Final = "appid = :appid and endpoint = :endpoint"
CARRY: Final = (
    # Of constants
    f"update calls set boot_id = :here, boot_at = boot_at + :shift where {KEY} and boot_id = :there"  # noqa: S608
)
CARRY_REST: Final = f"update calls set boot_id = :here, boot_at = min(0, wall_at - :offset) where {KEY} and boot_id <> :here"  # noqa: S608


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
        self, account: Account, grant: Grant, outcome: str, change: Change
    ) -> Credential:
        """See :class:`broker.core.ports.Store`."""
        return await self._run(self._settle, account, grant, outcome, change)

    async def amend(self, account: Account, change: Change) -> tuple[Credential, bool]:
        """See :class:`broker.core.ports.Store`."""
        return await self._run(self._amend, account, change)

    def watch(self, on_store_changed: OnStoreChanged, versions: Versions) -> None:
        """Nobody else can change what a sole owner holds."""

    async def history(self, since: float, account: Account) -> list[dict[str, Any]]:
        """See :class:`broker.core.ports.Store`."""
        mine, key = f"{KEY} and wall_at >= :since", {**key_of(account), "since": since}
        return await self._run(
            lambda: list(self._file.db.table("calls").rows_where(mine, key, order_by="id"))
        )

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
        key, table = key_of(account), self._file.db.table("accounts")
        for row in list(table.rows_where(KEY, key)):
            there = Anchor.of(row)
            shift = {"here": here.boot_id, "there": there.boot_id, "shift": carried_by(there, here)}
            self._file.db.execute(CARRY, {**key, **shift})
            self._write(account, revived(row, self._file.epoch, here, self._seal), here)
        self._file.db.execute(CARRY_REST, {**key, "here": here.boot_id, "offset": here.offset})

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
            entries = entries_of(self._calls(account))
        self._file.remember(call)
        return Grant(call, here.boot_at, decision, credential, entries)

    def _settle(self, account: Account, grant: Grant, outcome: str, change: Change) -> Credential:
        with self._file.transaction():
            # Where the file was replaced meanwhile, the call has no row: it is among those its
            # successor assumes.
            self._file.db.execute(
                "update calls set outcome = ? where id = ? and outcome is null",
                [outcome, grant.call],
            )
            return self._apply(account, change)[0]

    def _amend(self, account: Account, change: Change) -> tuple[Credential, bool]:
        with self._file.transaction():
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
        rows = list(self._file.db.table("accounts").rows_where(KEY, key_of(account)))
        epoch = self._file.epoch
        credential = revived(rows[0], epoch, here, self._seal) if rows else Credential(epoch=epoch)
        return Held(credential, entries_of(self._calls(account)))

    def _calls(self, account: Account) -> list[dict[str, Any]]:
        # Only the newest `daily_quota` calls can matter: where all of them lie in the window, it is
        # full.
        table = self._file.db.table("calls")
        return list(
            table.rows_where(KEY, key_of(account), order_by="id desc", limit=account.daily_quota)
        )

    def _assume(self, account: Account, here: Anchor) -> None:
        """Enter the calls that a lost ledger may have held, once."""
        missing, since = self._file.unaccounted()
        cost = assumed_cost(missing, account.daily_quota)
        done = f"{KEY} and outcome = '{ASSUMED}' and id > :since"
        table = self._file.db.table("calls")
        if cost and not table.count_where(done, {**key_of(account), "since": since}):
            self._add_call(account, Claim(Lane.SCHEDULED), here, cost=cost, outcome=ASSUMED)

    def _drop_old_calls(self, account: Account, here: Anchor) -> None:
        stale = {**key_of(account), "before": here.boot_at - KEPT_DAYS * DAY}
        self._file.db.table("calls").delete_where(f"{KEY} and boot_at < :before", stale)

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
        }
        anchor = {"boot_id": here.boot_id, "boot_at": here.boot_at, "wall_at": here.wall_at}
        return int(self._file.db.table("calls").insert({**row, **anchor}, pk="id").last_pk or 0)

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
        row = {
            **key_of(account),
            **{name: call[name] for name in ("lane", "forced", "cost", "outcome")},
        }
        anchor = {
            "boot_id": here.boot_id,
            "boot_at": call["wall_at"] - here.offset,
            "wall_at": call["wall_at"],
        }
        return int(self._file.db.table("calls").insert({**row, **anchor}, pk="id").last_pk or 0)

    def _write(self, account: Account, credential: Credential, here: Anchor) -> None:
        row = {**account_row(credential, key_of(account), self._seal), **asdict(here)}
        self._file.db.table("accounts").upsert(row, pk=("appid", "endpoint"))
