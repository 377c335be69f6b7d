"""A broker that can be struck at a chosen step.

It is started by `python -m tests.history.node WIRING serve --config FILE`.

It is the real command, with the store, WeChat's client and the clock replaced by subclasses. Each
step asks a file named in `HISTORY_FATE`, which all brokers share, whether it is the step to die or
to stop at ("answered SIGSTOP"): whoever is the first to come there takes the order away and strikes
itself. Steps of a refresh, in their order: `reserving` (all written, nothing committed, the row
locked), `reserved`, `calling` (nobody has been asked yet), `called` (WeChat has done it, and
answers later), `answered`, `settling` (as `reserving`), `settled` (nothing published yet).
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from broker import app
from broker.cli import commands as cli
from broker.core.credential import Account, Credential
from broker.core.errcodes import Failure
from broker.core.ports import Change, Decide, Denied, Grant, Minted
from broker.core.quota import Entry
from broker.store.postgres import store
from broker.store.postgres.account_rows import AccountRows
from broker.store.postgres.store import PostgresStore
from broker.system.clock import SystemClock
from broker.wechat import WeChat

STEPS: Final = ("reserving", "reserved", "calling", "called", "answered", "settling", "settled")
CALL_S: Final = 0.1  # within this time a call has reached WeChat, which answers it later than that
WINDOW_S: Final = 0.25  # what a spoilt store waits, so that what may happen does happen
WAIT_S: Final = 1.0  # as long as others take for a call or two
FATE: Final = Path(os.environ.get("HISTORY_FATE", "/nonexistent"))
CLOCK: Final = Path(os.environ.get("HISTORY_CLOCK", "/nonexistent"))


def passes(step: str) -> None:
    """Here one may be struck."""
    try:
        wanted, _, blow = FATE.read_text().partition(" ")
        if wanted == step:
            FATE.rename(FATE.with_name(f"{FATE.name}.{os.getpid()}"))
            os.kill(os.getpid(), signal.Signals[blow])
    except (FileNotFoundError, ValueError):
        return


class MortalRows(AccountRows):
    """The real rows."""

    async def reserve(self, decide: Decide) -> Grant | Denied:
        answer = await super().reserve(decide)
        if isinstance(answer, Grant):
            passes("reserving")
        return answer

    async def settle(
        self, grant: Grant, outcome: str, change: Change, *, emergency: bool = False
    ) -> Credential:
        answer = await super().settle(grant, outcome, change, emergency=emergency)
        passes("settling")
        return answer


class MortalStore(PostgresStore):
    """The real store."""

    rows = MortalRows

    async def reserve(self, account: Account, decide: Decide) -> Grant | Denied:
        answer = await super().reserve(account, decide)
        if isinstance(answer, Grant):
            passes("reserved")
        return answer

    async def settle(
        self,
        account: Account,
        grant: Grant,
        outcome: str,
        change: Change,
        *,
        emergency: bool = False,
    ) -> Credential:
        answer = await super().settle(account, grant, outcome, change, emergency=emergency)
        passes("settled")
        return answer


class MortalWeChat(WeChat):
    """The real client."""

    async def fetch(self, account: Account, *, force: bool) -> Minted | Failure:
        passes("calling")
        call = asyncio.create_task(super().fetch(account, force=force))
        await asyncio.wait({call}, timeout=CALL_S)
        passes("called")
        answer = await call
        passes("answered")
        return answer


class HostClock(SystemClock):
    """The clock of another host.

    Its steady clock began at another time, and its wall is as wrong as a file says.
    """

    def __init__(self, boot_id: str | None = None) -> None:
        super().__init__(boot_id)
        booted = float(os.environ.get("HISTORY_BOOTED", "0"))
        self.now = partial(_since, booted)

    def wall(self) -> float:
        try:
            return super().wall() + float(CLOCK.read_text())
        except (FileNotFoundError, ValueError):
            return super().wall()


def _since(booted: float) -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) - booted


# --- what must not be: each takes one thing away --------------------------------------------------


class Unlocked(MortalRows):
    """A store that reads the account's row without its lock.

    The ledger's primary key, which would refuse much of what follows, is gone.
    """

    async def _open(self) -> None:
        await super()._open()
        await self._session.run("commit")  # lets go of the lock
        await self._session.run("begin isolation level read committed read write")
        await asyncio.sleep(WINDOW_S)


class Unfenced(MortalRows):
    """A call is settled whoever has the reservation by now."""

    async def settle(
        self, grant: Grant, outcome: str, change: Change, *, emergency: bool = False
    ) -> Credential:
        await self._open()
        key = {**self._key, "epoch": grant.credential.epoch, "id": grant.call}
        self._row = {**self._row, "reserved_call": grant.call}
        said = (
            "update token_broker.calls set outcome = %(outcome)s, emergency = %(emergency)s"
            " where appid = %(appid)s and epoch = %(epoch)s and id = %(id)s"
        )
        await self._session.run(said, {**key, "outcome": outcome, "emergency": int(emergency)})
        await self._apply(self._credential(), change)
        return self._credential()


class OneSnapshot(MortalRows):
    """The ledger is read as it was before the wait for the lock."""

    _early: Sequence[Entry] | None = None

    async def reserve(self, decide: Decide) -> Grant | Denied:
        self._sample = await self.sampler.take(self._session, self._clock)
        self._early = await super()._entries(None)
        await asyncio.sleep(WAIT_S)
        return await super().reserve(decide)

    async def _entries(self, called_at: float | None) -> Sequence[Entry]:
        return await super()._entries(called_at) if self._early is None else self._early


ROWS: Final[dict[str, type[MortalRows]]] = {
    "mortal": MortalRows,
    "unlocked": Unlocked,
    "unfenced": Unfenced,
    "one-snapshot": OneSnapshot,
}


def main() -> None:
    """Be the broker."""
    wiring, *command = sys.argv[1:]
    MortalStore.rows = ROWS[wiring]
    parts: list[tuple[Any, str, object]] = [
        (store, "PostgresStore", MortalStore),
        (app, "WeChat", MortalWeChat),
        (app, "SystemClock", HostClock),
    ]
    for module, name, part in parts:
        setattr(module, name, part)
    cli.main(command)


if __name__ == "__main__":
    main()
