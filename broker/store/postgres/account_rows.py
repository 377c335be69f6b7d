"""One account's rows, inside one transaction: what the port's methods do to them.

The account's row is locked first, and a second statement reads the ledger. At READ COMMITTED each
statement sees what was committed when it began. If one statement did both, it would see the ledger
as it was before it waited for the lock.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from broker.core import epoch
from broker.core.credential import Account, Credential
from broker.core.ports import (
    Change,
    Claim,
    Clock,
    Decide,
    Denial,
    Denied,
    Grant,
    Held,
    StoreRefused,
)
from broker.core.quota import DAY, Entry, Lane
from broker.core.transitions import reserved
from broker.store.encryption import Seal
from broker.store.postgres.clock_sample import ClockSample
from broker.store.postgres.lost_commits import Loss, LostCommits
from broker.store.postgres.notifications import CHANNEL
from broker.store.postgres.pool import Session
from broker.store.postgres.schema import OWN_COLUMNS
from broker.store.rows import (
    ASSUMED,
    KEPT_DAYS,
    Row,
    account_row,
    assumed_cost,
    credential_of,
    entries_of,
    key_of,
    oddity,
    with_call,
)

_KEY: Final = "appid = %(appid)s and endpoint = %(endpoint)s"
# Of the present write position: the last checkpoint's timeline lags behind a promotion.
_TIMELINE: Final = "substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"
# Of constants
_FIND: Final = f"select *, {_TIMELINE} as timeline_now from token_broker.accounts where {_KEY}"  # noqa: S608
_CREATE: Final = f"""insert into token_broker.accounts (appid, endpoint, epoch, timeline)
 values (%(appid)s, %(endpoint)s, %(epoch)s, {_TIMELINE}) on conflict do nothing"""  # noqa: S608
# Older than a day counts in no limit; the last call is asked about after a crash, however old.
_LEDGER: Final = f"""select lane, forced, cost, at from token_broker.calls
 where {_KEY} and at >= least(%(day_ago)s, %(called_at)s) order by at desc limit %(most)s"""  # noqa: S608
_CALL: Final = f"""with stale as (delete from token_broker.calls where {_KEY} and at < %(before)s)
 insert into token_broker.calls
 (appid, endpoint, epoch, id, lane, forced, cost, outcome, at, node) values
 (%(appid)s, %(endpoint)s, %(epoch)s, %(id)s, %(lane)s, %(forced)s, %(cost)s, %(outcome)s, %(at)s,
 %(node)s)"""  # noqa: S608
_ITS_CALL: Final = f"{_KEY} and epoch = %(epoch)s and id = %(id)s"
_SETTLE: Final = f"""update token_broker.calls
 set outcome = %(outcome)s, emergency = %(emergency)s, lease_lost = %(lease_lost)s
 where {_ITS_CALL} and outcome is null returning id"""  # noqa: S608
_IS_THERE: Final = f"select id from token_broker.calls where {_ITS_CALL}"  # noqa: S608
_HISTORY: Final = f"""select id, lane, forced, cost, outcome, emergency, lease_lost, node,
 at as wall_at from token_broker.calls where {_KEY} and at >= %(since)s order by at, id"""  # noqa: S608


class AccountRows:
    """To be used once, in a transaction.

    `changes` is the row's counter after the change, 0 where nothing was changed.
    """

    sampler = ClockSample  # simulations put one here that asks no database

    def __init__(
        self,
        session: Session,
        account: Account,
        clock: Clock,
        seal: Seal,
        lost_commits: LostCommits,
        node: str,
        sender: str,
    ) -> None:
        self.changes = 0
        self._session = session
        self._account = account
        self._key = key_of(account)
        self._clock = clock
        self._seal = seal
        self._lost_commits = lost_commits
        self._node = node
        self._sender = sender
        self._row: dict[str, Any]
        self._sample: ClockSample

    async def load(self) -> Held:
        """Read what is held, without a lock, since nothing is decided upon it."""
        found = await self._find(_FIND)
        await (
            self._open_read(found[0]) if found and self._loss(found[0]) is None else self._open()
        )
        return await self._held()

    async def reserve(self, decide: Decide) -> Grant | Denied:
        """Decide under the lock, and write the ledger's row together with the reservation."""
        await self._open()
        held = await self._held()
        decision = decide(held.credential, held.entries, self._sample.now)
        if isinstance(decision, Denial):
            return Denied(decision, held.credential, held.entries)
        call = self._row["calls"] + 1
        await self._add_call(call, decision)
        credential = reserved(held.credential, call, self._sample.now)
        # The database's own moment, not one of ours: others count the lease and the gap from it.
        await self._write({"calls": call, "reserved_call": call, "called_at": self._sample.db})
        entries = with_call(
            held.entries, decision, self._sample.now, self._sample.db, self._account
        )
        return Grant(call, self._sample.now, decision, credential, entries)

    async def settle(
        self, grant: Grant, outcome: str, change: Change, *, emergency: bool = False
    ) -> Credential:
        """Write the outcome; `lease_lost` says that the reservation is another call's by now."""
        await self._open()
        held = self._credential()
        is_ours = held.reserved_call == grant.call and held.epoch == grant.credential.epoch
        its_call = {**self._key, "epoch": grant.credential.epoch, "id": grant.call}
        values = {
            "outcome": outcome,
            "emergency": int(emergency),
            "lease_lost": int(not is_ours),
        }
        if not await self._session.run(_SETTLE, {**its_call, **values}) and (
            await self._session.run(_IS_THERE, its_call)
        ):
            return held  # this was settled before, and the answer to that did not reach us
        # The same number in another epoch is another call: it must not look like this grant's.
        shown = (
            held
            if is_ours or held.reserved_call != grant.call
            else replace(held, reserved_call=None)
        )
        await self._apply(shown, change)
        return self._credential()

    async def amend(self, change: Change) -> tuple[Credential, bool]:
        """Change what is held."""
        await self._open()
        is_changed = await self._apply(self._credential(), change)
        return self._credential(), is_changed

    async def history(self, since: float) -> list[dict[str, Any]]:
        """Return the calls since a wall time; both are on the caller's wall."""
        self._sample = await self.sampler.take(self._session, self._clock)
        wall_minus_db = self._clock.wall() - self._sample.db
        rows = await self._session.run(_HISTORY, {**self._key, "since": since - wall_minus_db})
        return [{**row, "wall_at": row["wall_at"] + wall_minus_db} for row in rows]

    # --- the account's row ------------------------------------------------------------------------

    async def _open(self) -> None:
        """Lock the row, make it where there is none, and see if the database lost something."""
        rows = await self._find(f"{_FIND} for update")
        if not rows:
            await self._session.run(_CREATE, {**self._key, "epoch": epoch.drawn()})
            rows = await self._find(f"{_FIND} for update")
        await self._open_read(rows[0])
        if loss := self._loss(self._row):
            await self._enter(loss)
        elif self._row["timeline"] is None:  # moved here from another store
            await self._write({"timeline": self._row["timeline_now"]})
        self._lost_commits.remember(self._row)

    async def _find(self, statement: str) -> list[dict[str, Any]]:
        """Return the account's row, or none. Raises StoreRefused where no broker wrote it."""
        rows = await self._session.run(statement, self._key)
        for row in rows:
            if why := oddity(row, OWN_COLUMNS):
                raise StoreRefused(why)
        return rows

    def _loss(self, row: dict[str, Any]) -> Loss | None:
        """Return what was lost, None where nothing was as far as we know.

        After a promotion more may be lost, which only other brokers know of. Numbers must not be
        handed out again, so the first to write begins an epoch even if it knows of no loss.
        """
        if loss := self._lost_commits.found(row):
            return loss
        return (
            None
            if row["timeline"] in {None, row["timeline_now"]}
            else Loss(0, row["epoch"], row["calls"], begins_epoch=True)
        )

    async def _open_read(self, row: dict[str, Any]) -> None:
        self._row = row
        self._sample = await self.sampler.take(
            self._session, self._clock
        )  # after the wait for the lock
        if self._loss(row) is None:
            self._lost_commits.remember(row)

    def _credential(self) -> Credential:
        return credential_of(self._row, self._row["epoch"], self._seal, self._sample.to_local)

    async def _held(self) -> Held:
        return Held(self._credential(), await self._entries(self._row["called_at"]))

    async def _entries(self, called_at: float | None) -> Sequence[Entry]:
        asked = {
            "day_ago": self._sample.db - DAY,
            "called_at": called_at,
            "most": self._account.daily_quota,
        }
        rows = await self._session.run(_LEDGER, {**self._key, **asked})
        return entries_of(
            [
                {**row, "boot_at": row["at"] + self._sample.to_local, "wall_at": row["at"]}
                for row in rows
            ]
        )

    async def _apply(self, held: Credential, change: Change) -> bool:
        changed = change(held, self._sample.now)
        if changed is None:
            return False
        # Only what changed is written. An instant that was read and written back would be moved by
        # a round trip each time.
        before, after = (
            account_row(it, self._key, self._seal, self._sample.to_database)
            for it in (held, changed)
        )
        if changed.token == held.token:
            after["token"] = before["token"]  # sealed twice, one token looks like two
        await self._write({name: value for name, value in after.items() if value != before[name]})
        return True

    async def _write(self, columns: Row) -> None:
        """Write columns of the row, and notify the other brokers."""
        if not columns:
            return
        assignments = ", ".join(f"{name} = %({name})s" for name in columns)
        statement = f"""with changed as (update token_broker.accounts
 set {assignments}, changes = changes + 1 where {_KEY} returning changes)
 select changes, pg_notify('{CHANNEL}', concat_ws(' ', %(_sender)s::text, changes,
 %(endpoint)s::text, %(appid)s::text)) from changed"""  # noqa: S608 -- columns are ours
        (row,) = await self._session.run(
            statement, {**self._key, **columns, "_sender": self._sender}
        )
        self.changes = row["changes"]
        self._row = {**self._row, **columns}

    async def _add_call(
        self, call: int, claim: Claim, cost: int = 1, outcome: str | None = None
    ) -> None:
        row = {
            "id": call,
            "lane": claim.lane.value,
            "forced": int(claim.force),
            "cost": cost,
            "outcome": outcome,
        }
        where = {"epoch": self._row["epoch"], "at": self._sample.db, "node": self._node}
        await self._session.run(
            _CALL, {**self._key, **row, **where, "before": self._sample.db - KEPT_DAYS * DAY}
        )

    async def _enter(self, loss: Loss) -> None:
        """Count lost calls as made now, and begin an epoch where numbers could recur.

        Since `called_at` is now too, nobody makes a call for a while.
        """
        columns: dict[str, Any] = {
            "called_at": self._sample.db,
            "prior_epoch": loss.epoch,
            "prior_calls": loss.until,
        }
        columns["timeline"] = self._row["timeline_now"]
        call = max(self._row["calls"], loss.until if loss.begins_epoch else 0) + 1
        if loss.begins_epoch:
            columns |= {"epoch": epoch.drawn(), "token": None, "doubt": None, "reserved_call": None}
        self._row = {**self._row, **columns}
        if cost := assumed_cost(loss.calls, self._account.daily_quota):
            await self._add_call(call, Claim(Lane.SCHEDULED), cost, ASSUMED)
        await self._write({**columns, "calls": call})
