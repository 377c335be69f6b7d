"""The store on SQLite: one file, one owner, one thread.

WAL and synchronous=FULL: what is committed stays.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from broker.core.credential import NEVER, Account, Credential
from broker.core.documents import Rewrite
from broker.core.handouts import Handout
from broker.core.ports import (
    Change,
    Claim,
    Decide,
    Denial,
    Denied,
    Grant,
    Held,
    OnStoreChanged,
    StoreBusy,
    StoreError,
    StoreRefused,
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
from broker.store.sqlite import side_tables
from broker.store.sqlite.anchor import (
    ANCHOR_COLUMNS,
    BEFORE_US,
    Anchor,
    BootClock,
    revived,
    shift_to,
    was_set_back,
)
from broker.store.sqlite.file import StoreFile, is_damage
from broker.store.transfer import AccountExport, renumbered

T = TypeVar("T")

REOPENS_AFTER_S: Final = 1.0  # between two attempts to open a file again
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
_CARRY: Final = f"""update calls set boot_id = :here, boot_at = boot_at + :shift
 where {_KEY} and boot_id = :there"""  # noqa: S608
_BY_WALL: Final = """case when wall_at between :sane and :wall then wall_at - :offset
 else :now end"""  # as Anchor.of_wall
_CARRY_REST: Final = f"""update calls set boot_id = :here, boot_at = {_BY_WALL}
 where boot_id <> :here"""  # noqa: S608
_PLACE_LATER: Final = f"""update calls set boot_at = max(boot_at, {_BY_WALL})
 where {_KEY} and boot_at < 0"""  # noqa: S608
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
    node = ""
    nodes = ()

    def __init__(self, path: Path, clock: BootClock, seal: Seal) -> None:
        self._path = path
        self._clock = clock
        self._seal = seal
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._file: StoreFile
        self._must_reopen = False
        self._reopens_at = NEVER

    @classmethod
    async def open(cls, path: Path, clock: BootClock, seal: Seal | None = None) -> "SqliteStore":
        """Own the file, create or migrate the schema, set a damaged file aside.

        Where nothing can be written, what is stored is served, and the file is opened again when
        something is to be written (`last_error` says so). Raises StoreBusy, StoreRefused, or
        StoreError where it cannot be opened at all.
        """
        store = cls(path, clock, seal or Plain())
        try:
            await store._run(store._open)
        except BaseException:
            store._thread.shutdown(wait=False)
            raise
        return store

    @property
    def last_error(self) -> str | None:
        """See :class:`broker.core.ports.Store`."""
        why = self._file.read_only
        return why and f"{self._path}: {why}: what it held at the start is served"

    @property
    def set_aside(self) -> str | None:
        """Where a damaged file was put, if one was met since this store was opened."""
        return self._file.set_aside

    @property
    def corrected(self) -> Sequence[tuple[Path, int]]:
        """Files whose modes let others read them, with those modes: they were put right."""
        return self._file.corrected

    # --- the port ---------------------------------------------------------------------------------

    async def load(self, account: Account) -> Held:
        """See :class:`broker.core.ports.Store`."""
        return await self._run(self._load, account)

    async def reserve(self, account: Account, decide: Decide) -> Grant | Denied:
        """See :class:`broker.core.ports.Store`."""
        return await self._change(self._reserve, account, decide)

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
        return await self._change(self._settle, account, grant, outcome, change, int(emergency))

    async def amend(self, account: Account, change: Change) -> tuple[Credential, bool]:
        """See :class:`broker.core.ports.Store`."""
        return await self._change(self._amend, account, change)

    def watch(self, on_store_changed: OnStoreChanged, versions: Versions) -> None:
        """Nobody else can change what a sole owner holds."""

    async def history(self, since: float, account: Account) -> list[dict[str, Any]]:
        """See :class:`broker.core.ports.Store`."""
        return await self._run(lambda: self._rows(_HISTORY, {**key_of(account), "since": since}))

    async def add_handouts(self, handouts: Sequence[Handout]) -> None:
        """See :class:`broker.core.handouts.HandoutStore`."""
        await self._run(self._in_transaction, side_tables.add_handouts, handouts)

    async def drop_handouts(self, before: float, most: int) -> None:
        """See :class:`broker.core.handouts.HandoutStore`."""
        await self._run(self._in_transaction, side_tables.drop_handouts, before, most)

    async def handouts(self, account: str, most: int) -> list[Handout]:
        """See :class:`broker.core.handouts.HandoutStore`."""
        return await self._run(lambda: side_tables.handouts(self._file.db, account, most))

    async def rewrite(self, name: str, rewrite: Rewrite) -> None:
        """See :class:`broker.core.documents.DocumentStore`."""
        wall = self._clock.wall()
        await self._run(self._in_transaction, side_tables.rewrite, name, rewrite, wall)

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
        await self._change(self._import_accounts, exports)

    async def close(self) -> None:
        """See :class:`broker.core.ports.Store`."""
        await self._run(self._file.close)
        self._thread.shutdown()

    # --- on the thread ----------------------------------------------------------------------------

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._translated, work, *args
        )

    async def _change(self, work: Callable[..., T], *args: Any) -> T:
        """Run what writes, after seeing to it that the file is the one people see, and takes it."""
        return await self._run(self._on_the_right_file, work, *args)

    def _translated(self, work: Callable[..., T], *args: Any) -> T:
        """Work, and raise what the port knows."""
        try:
            return work(*args)
        except sqlite3.Error as error:
            self._must_reopen = self._must_reopen or is_damage(error)
            raise StoreError(f"{self._path}: {error}") from None
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}") from None
        except StoreRefused as odd:
            if work == self._open:
                raise
            raise StoreError(f"{self._path}: {odd}") from None

    def _on_the_right_file(self, work: Callable[..., T], *args: Any) -> T:
        if not self._must_reopen and (why := self._file.lost()):
            # An error first, so that /health tells of it; whoever asks next has what is there now.
            self._must_reopen = True
            raise StoreError(why)
        if self._must_reopen or self._file.read_only is not None:
            self._reopen()
        return work(*args)

    def _reopen(self) -> None:
        """Open the file again, at most once a second: a thousand apps may ask for it."""
        self._must_reopen, now = True, self._clock.now()
        if now < self._reopens_at:
            raise StoreError(self.last_error or f"{self._path} cannot be opened")
        self._reopens_at = now + REOPENS_AFTER_S
        try:
            self._file.reopen()
        except (StoreBusy, StoreRefused) as why:
            raise StoreError(str(why)) from None
        self._must_reopen, self._reopens_at = False, NEVER

    def _open(self) -> None:
        self._file = StoreFile(self._path, self._carry_over)
        self._file.open()

    def _in_transaction(self, work: Callable[..., None], *args: Any) -> None:
        with self._file.transaction():
            work(self._file.db, *args)

    def _load(self, account: Account) -> Held:
        with self._file.transaction():
            key, here = key_of(account), Anchor.now(self._clock)
            self._assume(account, key, here)
            return self._held(account, key, here)

    def _carry_over(self) -> None:
        """Put what another boot wrote on this one's clock, and write tokens with the present key.

        It is done once: put on this clock each time it is read, it would never age where the wall
        is no help (anchor.py).
        """
        here = Anchor.now(self._clock)
        with self._file.transaction():
            for row in self._rows("select * from accounts", {}):
                key = {"appid": row["appid"], "endpoint": row["endpoint"]}
                there = Anchor.of(row)
                shift = shift_to(here, there)
                boots = {"here": here.boot_id, "there": there.boot_id, "shift": shift}
                self._file.db.execute(_CARRY, {**key, **boots})
                credential = revived(row, self._file.epoch, here, self._seal)
                if row["token"] is None or credential.token is not None:
                    self._write(key, credential, here)
                # A token that this key does not open stays: another key may be the right one.
            self._file.db.execute(_CARRY_REST, _by_wall(here))

    def _reserve(self, account: Account, decide: Decide) -> Grant | Denied:
        with self._file.transaction():
            key, here = key_of(account), Anchor.now(self._clock)
            self._assume(account, key, here)
            held = self._held(account, key, here)
            decision = decide(held.credential, held.entries, here.steady)
            if isinstance(decision, Denial):
                return Denied(decision, held.credential, held.entries)
            stale = {**key, "before": here.steady - KEPT_DAYS * DAY}
            self._file.db.execute(_DROP_OLD, stale)
            call = self._add_call(key, decision, here)
            credential = reserved(held.credential, call, here.steady)
            self._write(key, credential, here)
        self._file.remember(call)
        entries = with_call(held.entries, decision, here.steady, here.wall, account)
        return Grant(call, here.steady, decision, credential, entries)

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
        key, here = key_of(account), Anchor.now(self._clock)
        held = self._credential(key, here)
        changed = change(held, here.steady)
        if changed is None:
            return held, False
        self._write(key, changed, here)
        return changed, True

    def _credential(self, key: Mapping[str, str], here: Anchor) -> Credential:
        epoch = self._file.epoch
        rows = self._rows(_FIND, key)
        if not rows:
            return Credential(epoch=epoch)
        if was_set_back(here, Anchor.of(rows[0])):
            self._file.db.execute(_PLACE_LATER, {**key, **_by_wall(here)})
        return revived(rows[0], epoch, here, self._seal)

    def _held(self, account: Account, key: Mapping[str, str], here: Anchor) -> Held:
        credential = self._credential(key, here)
        since = here.steady - DAY
        if credential.called_at != NEVER:
            since = min(since, credential.called_at)
        # Only the newest `daily_quota` calls can matter: where all of them lie in the window, it is
        # full.
        asked = {**key, "since": since, "most": account.daily_quota}
        return Held(credential, entries_of(self._rows(_LEDGER, asked)))

    def _assume(self, account: Account, key: Mapping[str, str], here: Anchor) -> None:
        """Enter the calls that a lost ledger may have held, once."""
        missing, since = self._file.unaccounted
        if not missing:
            return
        cost = assumed_cost(missing, account.daily_quota)
        if cost and not self._rows(_ASSUMED, {**key, "since": since}):
            self._add_call(key, Claim(Lane.SCHEDULED), here, cost=cost, outcome=ASSUMED)

    def _add_call(
        self,
        key: Mapping[str, str],
        claim: Claim,
        here: Anchor,
        cost: int = 1,
        outcome: str | None = None,
    ) -> int:
        row = {
            **key,
            "lane": claim.lane.value,
            "forced": int(claim.force),
            "cost": cost,
            "outcome": outcome,
            "emergency": 0,
            "lease_lost": 0,
        }
        return self._insert_call({**row, **here.columns})

    def _import_accounts(self, exports: Sequence[AccountExport]) -> None:
        with self._file.transaction():
            here, newest = Anchor.now(self._clock), 0
            for export in exports:
                numbers = {
                    call["id"]: self._add_past_call(export.account, call, here)
                    for call in export.calls
                }
                self._write(key_of(export.account), renumbered(export.credential, numbers), here)
                newest = max([newest, *numbers.values()])
        self._file.remember(newest)

    def _add_past_call(self, account: Account, call: Mapping[str, Any], here: Anchor) -> int:
        row = {**key_of(account), **{name: call[name] for name in MOVED_COLUMNS}}
        made = Anchor(here.boot_id, here.of_wall(call["wall_at"]), call["wall_at"])
        return self._insert_call({**row, **made.columns})

    def _insert_call(self, row: Mapping[str, Any]) -> int:
        return int(self._file.db.execute(_ADD_CALL, dict(row)).lastrowid or 0)

    def _write(self, key: Mapping[str, str], credential: Credential, here: Anchor) -> None:
        row = {**account_row(credential, key, self._seal), **here.columns}
        self._file.db.execute(_WRITE, row)

    def _rows(self, statement: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        cursor = self._file.db.execute(statement, dict(values))
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]


def _by_wall(here: Anchor) -> dict[str, Any]:
    """Return what the statements need that place calls by the wall."""
    return {
        "here": here.boot_id,
        "now": here.steady,
        "wall": here.wall,
        "offset": here.offset,
        "sane": BEFORE_US,
    }
