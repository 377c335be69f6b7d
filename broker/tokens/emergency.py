"""A call without a reservation, for when the disk is broken and the token dies.

It comes from a budget that is kept elsewhere (emergency_budget.py), and goes into the ledger when
the disk works again.
"""

import asyncio
from dataclasses import replace

from broker.core import decision, transitions
from broker.core.epoch import in_emergency
from broker.core.errcodes import Failure, FailureCode, Kind
from broker.core.ports import Claim, Denied, Grant, Minted, StoreError
from broker.core.quota import Entry, Lane, QuotaLimits, full
from broker.tokens.dependencies import Dependencies
from broker.tokens.emergency_budget import LAST_MINUTES_S
from broker.tokens.live import LiveCredential
from broker.tokens.store_sync import StoreSync


class Emergency:
    """One app's emergency calls, and their way into the ledger when the disk works again."""

    def __init__(self, live: LiveCredential, dependencies: Dependencies, sync: StoreSync) -> None:
        self._live = live
        self._dependencies = dependencies
        self._sync = sync

    async def take_over(self) -> None:
        """Take over emergency calls of a process that died before they were in the ledger.

        Each is spent, and may have pushed out the token that the store still holds.
        """
        account, budget = self._live.account, self._dependencies.emergency_budget
        lost = Failure(Kind.TRANSIENT, FailureCode.STOPPED_IN_EMERGENCY, lost=True)
        self._sync.unrecorded.extend((at, lost) for at in budget.unrecorded(account.id))
        token = self._live.credential.token
        safe_for = transitions.overlap_after_replacement(
            account.endpoint, self._live.policy, force=False
        )
        later = [at for at in budget.spent(account.id) if token and at > token.requested_at]
        if later:
            await self._sync.amend(lambda held, _: transitions.lost(held, min(later), safe_for))

    async def call(self) -> None:
        """Make one call if the token is in its last minutes and the budget has one."""
        if not self._is_allowed():
            return
        account, now = self._live.account, self._dependencies.clock.now()
        held = self._live.credential
        if not await asyncio.to_thread(self._dependencies.emergency_budget.spend, account.id, now):
            return
        answer = await self._dependencies.upstream.fetch(account, force=False)
        # A number and an epoch of its own: the store knows nothing of this call until it works
        # again.
        epoch, call = in_emergency(held.epoch), held.token.call + 1 if held.token else 1
        reserved = replace(held, called_at=now)
        grant = Grant(call, now, Claim(Lane.SCHEDULED), reserved, self._live.entries)
        outcome, change = self._sync.outcome_rules().answer(grant, answer)
        changed = change(replace(reserved, epoch=epoch), self._dependencies.clock.now())
        if changed is not None:
            self._sync.adopt(changed)
        self._sync.unrecorded.append((now, answer))
        self._dependencies.emit("emergency-call", account.name, outcome=outcome)

    def _is_allowed(self) -> bool:
        """Return True if policy and quota allow a call now.

        Never where the store is shared: each process would call, and kill the others' tokens.
        """
        account, policy, now = self._live.account, self._live.policy, self._dependencies.clock.now()
        if self._sync.is_shared or self._live.seconds_to_live() > LAST_MINUTES_S:
            return False
        if now < decision.allowed_at(self._live.credential, policy):
            return False
        wall = self._dependencies.clock.wall()
        unrecorded = [Entry(at, wall, Lane.SCHEDULED) for at, _ in self._sync.unrecorded]
        limits = QuotaLimits.of(account.daily_quota, account.endpoint, policy)
        return full([*self._live.entries, *unrecorded], limits, Lane.SCHEDULED, now) is None

    async def record(self) -> None:
        """Enter emergency calls into the ledger where the disk takes them.

        Their token gets a version there.
        """
        unrecorded = self._sync.unrecorded
        try:
            while unrecorded:
                await self._record(*unrecorded[0])
                unrecorded.popleft()
        except StoreError as error:  # what follows finds out what can be done all the same
            self._sync.found(str(error))

    async def _record(self, started_at: float, answer: Minted | Failure) -> None:
        account, store = self._live.account, self._dependencies.store
        grant = await store.reserve(account, lambda *_: Claim(Lane.SCHEDULED))
        if isinstance(grant, Denied):
            raise TypeError("a claim was denied that nobody denies")
        made = replace(grant, started_at=started_at)
        outcome, change = self._sync.outcome_rules().answer(made, answer)
        held = await store.settle(account, grant, outcome, change, emergency=True)
        budget = self._dependencies.emergency_budget
        await asyncio.to_thread(budget.record, account.id, started_at)
        self._sync.found(None)
        self._live.entries = grant.entries
        if not transitions.is_older(held, self._live.credential):
            self._sync.adopt(held)
