"""When the disk is broken and the token dies: a call without a reservation, from a budget that is kept elsewhere."""

import asyncio
from dataclasses import replace

from broker.core import decision, transitions
from broker.core.epoch import in_emergency
from broker.core.errcodes import Failure, Kind
from broker.core.ports import Claim, Denied, Grant, Minted, StoreError
from broker.core.quota import Entry, Lane, QuotaLimits, full
from broker.tokens.dependencies import Dependencies
from broker.tokens.emergency_budget import LAST_MINUTES_S
from broker.tokens.live import LiveCredential
from broker.tokens.store_sync import StoreSync


class Emergency:
    """One app's emergency calls, and their way into the ledger when the disk works again."""

    def __init__(
        self, live: LiveCredential, dependencies: Dependencies, store_sync: StoreSync
    ) -> None:
        self._live = live
        self._dependencies = dependencies
        self._store_sync = store_sync

    async def take_over(self) -> None:
        """An emergency call that a dead process made is spent, and may have pushed out the token that the store still holds."""
        account, budget = self._live.account, self._dependencies.emergency_budget
        lost = Failure(Kind.TRANSIENT, "the broker was stopped during an emergency", lost=True)
        self._store_sync.unrecorded.extend((at, lost) for at in budget.unrecorded(account.id))
        token = self._live.credential.token
        safe_for = transitions.overlap_after_replacement(
            account.endpoint, self._live.policy, force=False
        )
        later = [at for at in budget.spent(account.id) if token and at > token.requested_at]
        if later:
            await self._store_sync.amend(
                lambda held, _: transitions.lost(held, min(later), safe_for)
            )

    async def call(self) -> None:
        """Make one call, where the token is in its last minutes and the budget has one."""
        account, now, held = (
            self._live.account,
            self._dependencies.clock.now(),
            self._live.credential,
        )
        if self._store_sync.is_shared:  # each process would call, and kill the others' tokens
            return
        if self._live.seconds_to_live() > LAST_MINUTES_S or now < decision.allowed_at(
            held, self._live.policy
        ):
            return
        limits = QuotaLimits.of(account.daily_quota, account.endpoint, self._live.policy)
        wall = self._dependencies.clock.wall()
        made = [
            *self._live.entries,
            *(Entry(at, wall, Lane.SCHEDULED) for at, _ in self._store_sync.unrecorded),
        ]
        if full(made, limits, Lane.SCHEDULED, now) is not None:
            return
        if not await asyncio.to_thread(self._dependencies.emergency_budget.spend, account.id, now):
            return
        answer = await self._dependencies.upstream.fetch(account, force=False)
        # A number of its own in an epoch of its own: the store will know nothing of this call until
        # it works again.
        epoch, call = in_emergency(held.epoch), held.token.call + 1 if held.token else 1
        grant = Grant(
            call, now, Claim(Lane.SCHEDULED), replace(held, called_at=now), self._live.entries
        )
        outcome, change = self._store_sync.outcome_rules().answer(grant, answer)
        changed = change(replace(held, epoch=epoch, called_at=now), self._dependencies.clock.now())
        if changed is not None:
            self._store_sync.adopt(changed)
        self._store_sync.unrecorded.append((now, answer))
        self._dependencies.emit("emergency-call", account.name, outcome=outcome)

    async def record(self) -> None:
        """Enter emergency calls into the ledger, where the disk takes them, and give their token a version there."""
        unrecorded = self._store_sync.unrecorded
        try:
            while unrecorded:
                await self._record(*unrecorded[0])
                unrecorded.popleft()
        except (
            StoreError
        ) as error:  # still broken: what follows finds out what can be done all the same
            self._store_sync.stand(str(error))

    async def _record(self, started_at: float, answer: Minted | Failure) -> None:
        account, store = self._live.account, self._dependencies.store
        grant = await store.reserve(account, lambda *_: Claim(Lane.SCHEDULED))
        if isinstance(grant, Denied):
            raise TypeError("a claim was denied that nobody denies")
        outcome, change = self._store_sync.outcome_rules().answer(
            replace(grant, started_at=started_at), answer
        )
        held = await store.settle(account, grant, f"emergency {outcome}", change)
        await asyncio.to_thread(self._dependencies.emergency_budget.record, account.id, started_at)
        self._store_sync.stand(None)
        self._live.entries = grant.entries
        if not transitions.is_older(held, self._live.credential):
            self._store_sync.adopt(held)
