"""When the disk is broken and the token dies: a call without a reservation, from a budget that is kept elsewhere."""

import asyncio
from dataclasses import replace

from broker.core import credential as core
from broker.core.epoch import in_emergency
from broker.core.errcodes import Failure, Kind
from broker.core.ports import Claim, Denied, Grant, Minted, StoreError
from broker.core.quota import Entry, Lane, Limits, full
from broker.tokens.dependencies import Tools
from broker.tokens.emergency_budget import LAST_MINUTES_S
from broker.tokens.live import Published
from broker.tokens.store_sync import Books


class LastResort:
    """One app's emergency calls, and their way into the ledger when the disk works again."""

    def __init__(self, app: Published, tools: Tools, books: Books) -> None:
        self._app = app
        self._tools = tools
        self._books = books

    async def inherit(self) -> None:
        """An emergency call that a dead process made is spent, and may have pushed out the token that the store still holds."""
        account, budget = self._app.account, self._tools.emergency
        lost = Failure(Kind.TRANSIENT, "the broker was stopped during an emergency", lost=True)
        self._books.unrecorded.extend((at, lost) for at in budget.unrecorded(account.id))
        token = self._app.credential.token
        safe_for = core.outlives(account.endpoint, self._app.policy, force=False)
        later = [at for at in budget.spent(account.id) if token and at > token.requested_at]
        if later:
            await self._books.amend(lambda held, _: core.lost(held, min(later), safe_for))

    async def call(self) -> None:
        """Make one call, where the token is in its last minutes and the budget has one."""
        account, now, held = self._app.account, self._tools.clock.now(), self._app.credential
        if self._books.is_shared:  # each process would call, and kill the others' tokens
            return
        if self._app.seconds_to_live() > LAST_MINUTES_S or now < core.allowed_at(held, self._app.policy):
            return
        limits = Limits.of(account.daily_quota, account.endpoint, self._app.policy)
        wall = self._tools.clock.wall()
        made = [*self._app.entries, *(Entry(at, wall, Lane.SCHEDULED) for at, _ in self._books.unrecorded)]
        if full(made, limits, Lane.SCHEDULED, now) is not None:
            return
        if not await asyncio.to_thread(self._tools.emergency.spend, account.id, now):
            return
        answer = await self._tools.upstream.fetch(account, force=False)
        # A number of its own in an epoch of its own: the store will know nothing of this call until it works again.
        epoch, call = in_emergency(held.epoch), held.token.call + 1 if held.token else 1
        grant = Grant(call, now, Claim(Lane.SCHEDULED), replace(held, called_at=now), self._app.entries)
        outcome, change = self._books.judge().answer(grant, answer)
        changed = change(replace(held, epoch=epoch, called_at=now), self._tools.clock.now())
        if changed is not None:
            self._books.adopt(changed)
        self._books.unrecorded.append((now, answer))
        self._tools.witness("emergency-call", account.name, outcome=outcome)

    async def record(self) -> None:
        """Enter emergency calls into the ledger, where the disk takes them, and give their token a version there."""
        unrecorded = self._books.unrecorded
        try:
            while unrecorded:
                await self._record(*unrecorded[0])
                unrecorded.popleft()
        except StoreError as error:  # still broken: what follows finds out what can be done all the same
            self._books.stand(str(error))

    async def _record(self, started_at: float, answer: Minted | Failure) -> None:
        account, store = self._app.account, self._tools.store
        grant = await store.reserve(account, lambda *_: Claim(Lane.SCHEDULED))
        if isinstance(grant, Denied):
            raise TypeError("a claim was denied that nobody denies")
        outcome, change = self._books.judge().answer(replace(grant, started_at=started_at), answer)
        held = await store.settle(account, grant, f"emergency {outcome}", change)
        await asyncio.to_thread(self._tools.emergency.record, account.id, started_at)
        self._books.stand(None)
        self._app.entries = grant.entries
        if not core.is_older(held, self._app.credential):
            self._books.adopt(held)
