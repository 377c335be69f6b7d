"""One app's flight: look, reserve, call WeChat, settle, publish. The only place where a refresh happens.

Nothing here decides *whether*: that is `broker.core`. This module sees to it that one look at a time acts on it.
"""

import asyncio
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from broker.core import credential as core
from broker.core.credential import NEVER, Credential, Doubt, Policy, fingerprint
from broker.core.errcodes import Failure, Kind
from broker.core.outcome import Judge
from broker.core.ports import (
    STEP_S,
    Change,
    Claim,
    Clock,
    Denial,
    Denied,
    Grant,
    Minted,
    Reason,
    Store,
    StoreError,
    Upstream,
    Verdict,
    Witness,
    wall_offset,
)
from broker.core.quota import Entry, Lane, Limits, full
from broker.core.reservation import admit, claim_for
from broker.emergency import LAST_MINUTES_S, EmergencyBudget
from broker.epoch import in_emergency
from broker.published import Published

LEASE_SLACK_S: Final = 5.0  # this long after a call must have ended, its open reservation is nobody's any more
LATEST_START_S: Final = LEASE_SLACK_S / 2  # a call begun later after its reservation might not end within the lease
VERIFIES_WITHIN_S: Final = 2.0  # how long a verification takes that another process has begun, as a rule

Flight = asyncio.Task[Verdict | None]


@dataclass(slots=True)
class Tools:
    """What all apps share. `slots` bounds the calls to WeChat at once; `spread` draws from [0, 1); `policy` may be replaced.

    `on_change` is called whenever an app's answer becomes another one, before anybody can ask for it.
    """

    store: Store
    upstream: Upstream
    clock: Clock
    policy: Policy
    slots: asyncio.Semaphore
    witness: Witness
    call_timeout_s: float
    emergency: EmergencyBudget = field(default_factory=lambda: EmergencyBudget(None))
    spread: Callable[[], float] = random.random
    on_change: Callable[[], None] = lambda: None


class Flights:
    """Owns the one task in which an app's token is verified and refreshed."""

    def __init__(self, published: Published, tools: Tools) -> None:
        self.denials: dict[Lane, Denial] = {}
        self._app = published
        self._tools = tools
        self._store_error: str | None = None
        self._shared = not tools.store.sole_owner
        self._rumour = False  # another process may have changed what is stored
        self._flight: Flight | None = None
        self._unsettled: tuple[Grant, str, Change] | None = None  # an outcome the disk did not take
        self._unrecorded: deque[tuple[float, Minted | Failure]] = deque()  # emergency calls, not in the ledger yet
        self._crashes = 0
        self._resume_at = NEVER  # after a bug or a broken disk
        self._checked_elsewhere_until = NEVER
        self._wall_offset = wall_offset(tools.clock)  # as it was when last written down
        self._stopping = False

    async def start(self) -> None:
        """Take up what the store holds. Calls nobody. Raises StoreError."""
        held = await self._tools.store.load(self._app.account)
        self._app.entries = held.entries
        self._adopt(held.credential)
        if not self._shared:
            if held.credential.reserved_call is not None:
                await self._close_orphan()
            await self._suspect_emergency()
        known = fingerprint(self._app.account.secret, self._app.credential.epoch)
        if core.forgiven(self._app.credential, known) is not None:
            await self._amend(lambda credential, _: core.forgiven(credential, known))

    async def _suspect_emergency(self) -> None:
        """An emergency call that a dead process made is spent, and may have pushed out the token that the store still holds."""
        lost = Failure(Kind.TRANSIENT, "the broker was stopped during an emergency", lost=True)
        self._unrecorded.extend((at, lost) for at in self._tools.emergency.unrecorded(self._app.account.id))
        token = self._app.credential.token
        safe_for = core.outlives(self._app.account.endpoint, self._app.policy, force=False)
        later = [at for at in self._tools.emergency.spent(self._app.account.id) if token and at > token.requested_at]
        if later:
            await self._amend(lambda held, _: core.lost(held, min(later), safe_for))

    def hear(self) -> None:
        """Another process may have changed what is stored: look, at once or after the flight under way."""
        self._rumour = True
        self.join()

    @property
    def store_error(self) -> str | None:
        """What keeps the store from working, while it does not."""
        return self._store_error or self._tools.store.trouble

    @property
    def flies_elsewhere(self) -> bool:
        """Whether another process is at it, verifying or refreshing, as far as we know."""
        held = self._app.credential
        calls_until = NEVER if held.reserved_call is None else held.called_at + self._lease_s
        return self._shared and self._tools.clock.now() < max(self._checked_elsewhere_until, calls_until)

    def halt(self) -> None:
        """Begin no more flights."""
        self._stopping = True

    async def landed(self) -> None:
        """See the call under way to its end; it is bounded by the call timeout."""
        while self._flight is not None:
            await asyncio.wait({self._flight})

    def next_call_at(self) -> float:
        """Steady time of the next token call, as things stand."""
        endpoint, policy, now = self._app.account.endpoint, self._app.policy, self._tools.clock.now()
        due = max(core.refresh_at(self._app.credential, endpoint, policy), self._resume_at)
        lane = claim_for(self._app.credential, endpoint, policy, now).lane
        denial = self.denials.get(lane)
        if denial is None:
            return due
        if lane is Lane.REPORT:  # the schedule will not wait for reports' quota
            return max(due, min(denial.until, core.scheduled_at(self._app.credential, endpoint, policy)))
        return max(due, denial.until)

    def join(self, *, report: bool = False) -> Flight | None:
        """The flight under way, or a new one where something is due. No await between the look and the start."""
        now, policy = self._tools.clock.now(), self._app.policy
        if self._flight is None and not self._stopping and now >= self._resume_at:
            check = now >= core.check_at(self._app.credential, policy)
            due = self._wall_was_set() or now >= self.due_at()
            if report and not self._app.credential.refused:
                check = due = now >= self._app.credential.checked_at + policy.verify_gap
            if due:
                self.launch(partial(self._look, check=check))
        return self._flight

    def due_at(self) -> float:
        """Steady time from which a look finds something to do, as things stand."""
        if self._unsettled is not None or self._unrecorded or self._rumour:  # something is to be written down, or read
            return self._resume_at
        held, policy = self._app.credential, self._app.policy
        over_at = math.inf if held.reserved_call is None else held.called_at + self._lease_s
        return max(self._resume_at, min(core.check_at(held, policy), self.next_call_at(), over_at))

    def _wall_was_set(self) -> bool:
        return abs(wall_offset(self._tools.clock) - self._wall_offset) > STEP_S

    @property
    def current(self) -> Flight | None:
        """The flight under way."""
        return self._flight

    def launch(self, work: Callable[[], Awaitable[Verdict | None]]) -> Flight:
        """Begin a flight. The caller has seen that there is none."""
        self._flight = asyncio.create_task(self._guarded(work), name=f"flight {self._app.account.name}")
        return self._flight

    async def _guarded(self, work: Callable[[], Awaitable[Verdict | None]]) -> Verdict | None:
        """Fly. Only a bug raises in there besides a broken store, and both back off like a failure."""
        try:
            async with self._tools.slots:
                verdict = await work()
            self._crashes = 0
        except StoreError as error:
            self._store_failed(error)
        except Exception as error:  # noqa: BLE001 -- the daemon outlives its bugs
            self._crashes += 1
            policy = self._app.policy
            self._resume_at = self._tools.clock.now() + min(policy.max_backoff, policy.min_gap * 2 ** min(self._crashes, 30))
            self._tools.witness("crashed", self._app.account.name, error=error)
        else:
            return verdict
        finally:
            self._flight = None
            self._app.reconsider()
            if self._rumour:
                self.join()
        return None

    async def _look(self, *, check: bool) -> Verdict | None:
        """One look: read what others wrote, put in order what was left open, verify if asked to, refresh if due."""
        if self._rumour:
            await self._reload()
        if self._unsettled is not None:
            await self._settle(*self._unsettled)
        try:
            await self._record_emergency()
        except StoreError as error:  # still broken: what follows finds out what can be done all the same
            self._store_error = str(error)
        if self._wall_was_set():
            offset = wall_offset(self._tools.clock)
            await self._amend(lambda held, _: held)  # written again, it is known by the new wall after a reboot
            self._wall_offset = offset
        if self._abandoned():
            await self._close_orphan()
        verdict = await self._check() if check else None
        now = self._tools.clock.now()
        if now >= self.next_call_at():
            await self.refresh(claim_for(self._app.credential, self._app.account.endpoint, self._app.policy, now))
        return verdict

    async def _reload(self) -> None:
        """Take up what others wrote; where the store lost what we hold, give it back."""
        self._rumour = False
        try:
            held = await self._tools.store.load(self._app.account)
        except StoreError:
            self._rumour = True
            raise
        memory, self._app.entries = self._app.credential, held.entries
        self._store_error = None
        self._checked_elsewhere(held.credential, memory)
        self.denials.clear()
        self._adopt(held.credential)
        if core.is_older(held.credential, memory):
            await self._amend(lambda stored, _: core.transplanted(stored, memory))

    def _checked_elsewhere(self, found: Credential, memory: Credential) -> None:
        """Remember that another process has begun to verify, if it has; what comes of it is heard only if it is bad."""
        began = found.version == memory.version and found.checked_at > memory.checked_at
        self._checked_elsewhere_until = found.checked_at + VERIFIES_WITHIN_S if began else NEVER

    def _abandoned(self) -> bool:
        """Whether there is a reservation that nobody can still be working on."""
        held = self._app.credential
        return held.reserved_call is not None and self._tools.clock.now() >= held.called_at + self._lease_s

    async def _check(self) -> Verdict | None:
        """Ask WeChat whether the held token lives. None where another node asks, or asked a moment ago."""
        memory, policy = self._app.credential, self._app.policy
        version, token = memory.version, memory.token
        claimed = await self._amend(lambda held, now: core.begin_check(held, version, policy, now))
        if token is None or not claimed:
            self._checked_elsewhere(self._app.credential, memory)
            return None
        verdict = await self._tools.upstream.check(self._app.account, token.value)
        self._tools.witness("checked", self._app.account.name, version=version, verdict=verdict.value)
        if verdict is Verdict.ALIVE:
            await self._amend(lambda held, now: core.found_alive(held, version, policy, now))
        elif verdict is Verdict.DEAD:
            before, wall = self._app.credential.rivalry.count, self._tools.clock.wall()
            await self._amend(lambda held, now: core.found_dead(held, version, now, wall, self._app.account.endpoint))
            if self._app.credential.rivalry.count > before:
                rivalry = self._app.credential.rivalry
                self._tools.witness("second-issuer", self._app.account.name, count=rivalry.count, suspected=rivalry.suspected)
        return verdict

    async def refresh(self, claim: Claim) -> None:
        """Reserve, call, settle. No reservation, no call."""
        account, asked_at = self._app.account, self._tools.clock.now()
        decide = admit(account, self._app.policy, self._app.credential.version, claim, self._lease_s)
        try:
            grant = await self._tools.store.reserve(account, decide)
        except StoreError as error:
            self._store_failed(error)
            await self._call_in_emergency()
            return
        self._store_error = None
        self._app.entries = grant.entries
        if isinstance(grant, Denied):
            await self._denied(grant, claim)
            return
        self._adopt(grant.credential)
        self.denials.pop(claim.lane, None)
        if self._shared and self._tools.clock.now() > asked_at + LATEST_START_S:
            await self._settle(grant, *Judge.withheld(grant))
            return
        answer = await self._tools.upstream.fetch(account, force=claim.force)
        await self._settle(grant, *self._judge().answer(grant, answer))

    async def _denied(self, denied: Denied, claim: Claim) -> None:
        denial, memory = denied.denial, self._app.credential
        self._adopt(denied.credential)
        if denial.reason is not Reason.FASTER:
            self.denials[claim.lane] = denial
        elif core.is_older(denied.credential, memory):  # not faster but poorer: the store lost what we hold
            await self._amend(lambda stored, _: core.transplanted(stored, memory))
        if denial.reason is Reason.QUOTA:
            self._tools.witness("quota-spent", self._app.account.name, lane=claim.lane.value, limit=denial.limit)

    async def _call_in_emergency(self) -> None:
        """The disk takes no reservation and the token is in its last minutes: one call from the budget kept elsewhere."""
        account, now, held = self._app.account, self._tools.clock.now(), self._app.credential
        if self._shared:  # each of them would call, and kill the others' tokens
            return
        if self._app.seconds_to_live() > LAST_MINUTES_S or now < core.allowed_at(held, self._app.policy):
            return
        limits = Limits.of(account.daily_quota, account.endpoint, self._app.policy)
        made = [*self._app.entries, *(Entry(at, self._tools.clock.wall(), Lane.SCHEDULED) for at, _ in self._unrecorded)]
        if full(made, limits, Lane.SCHEDULED, now) is not None:
            return
        if not await asyncio.to_thread(self._tools.emergency.spend, account.id, now):
            return
        answer = await self._tools.upstream.fetch(account, force=False)
        # A number of its own in an epoch of its own: the store will know nothing of this call until it works again.
        epoch, call = in_emergency(held.epoch), held.token.call + 1 if held.token else 1
        grant = Grant(call, now, Claim(Lane.SCHEDULED), replace(held, called_at=now), self._app.entries)
        outcome, change = self._judge().answer(grant, answer)
        changed = change(replace(held, epoch=epoch, called_at=now), self._tools.clock.now())
        if changed is not None:
            self._adopt(changed)
        self._unrecorded.append((now, answer))
        self._tools.witness("emergency-call", account.name, outcome=outcome)

    async def _record_emergency(self) -> None:
        """Enter emergency calls into the ledger, now that the disk takes them, and give their token a version there."""
        while self._unrecorded:
            started_at, answer = self._unrecorded[0]
            grant = await self._tools.store.reserve(self._app.account, lambda *_: Claim(Lane.SCHEDULED))
            if isinstance(grant, Denied):
                raise TypeError("a claim was denied that nobody denies")
            outcome, change = self._judge().answer(replace(grant, started_at=started_at), answer)
            held = await self._tools.store.settle(self._app.account, grant, f"emergency {outcome}", change)
            self._unrecorded.popleft()
            await asyncio.to_thread(self._tools.emergency.record, self._app.account.id, started_at)
            self._store_error, self._app.entries = None, grant.entries
            if not core.is_older(held, self._app.credential):
                self._adopt(held)

    def _judge(self) -> Judge:
        clock, spread = self._tools.clock, self._tools.spread()
        return Judge(self._app.account, self._app.policy, clock.now(), clock.wall(), spread, shared=self._shared)

    async def _settle(self, grant: Grant, outcome: str, change: Change) -> None:
        """Write the outcome and publish it; where the disk does not take it, publish it all the same and try again."""
        before, again = self._app.credential, self._unsettled is not None
        try:
            held = await self._tools.store.settle(self._app.account, grant, outcome, change)
        except StoreError as error:
            self._store_failed(error)
            if not again:
                self._adopt(change(before, self._tools.clock.now()) or before)
            self._unsettled = (grant, outcome, change)
        else:
            self._unsettled = self._store_error = None
            self._adopt(held)
        if not again:
            self._tell(before, grant, outcome)

    async def _close_orphan(self) -> None:
        """A reserved call whose outcome nobody knows, since its process died: spent, perhaps minted, a failure like others."""
        held = self._app.credential
        force = any(entry.forced and entry.at >= held.called_at for entry in self._app.entries)
        if await self._amend(self._judge().orphan(held.reserved_call, force=force)):
            self._tools.witness("orphan-closed", self._app.account.name, version=self._app.credential.version)

    async def _amend(self, change: Change) -> bool:
        """Change what is stored, or, while the disk is broken, what is in memory; whether anything changed."""
        try:
            credential, changed = await self._tools.store.amend(self._app.account, change)
        except StoreError as error:
            self._store_failed(error)
            amended = change(self._app.credential, self._tools.clock.now())
            credential, changed = amended or self._app.credential, amended is not None
        else:
            if self._unsettled is None and not self._unrecorded:
                self._store_error = None
        self._adopt(credential)
        return changed

    def _adopt(self, credential: Credential) -> None:
        if self._app.adopt(credential):
            self.denials.clear()

    def _store_failed(self, error: StoreError) -> None:
        if self._store_error is None:
            self._tools.witness("store-failed", self._app.account.name, reason=str(error))
        self._store_error = str(error)
        self._resume_at = self._tools.clock.now() + self._app.policy.tick

    def _tell(self, before: Credential, grant: Grant, outcome: str) -> None:
        """One line for one transition."""
        after, lane = self._app.credential, grant.claim.lane.value
        if outcome == "minted" and not _is_from(grant, after):
            self._tools.witness("deposed", self._app.account.name, version=after.version)
            return
        if outcome == "minted":
            left = round(self._app.seconds_to_live())
            self._tools.witness("refreshed", self._app.account.name, lane=lane, version=after.version, expires_in=left)
            return
        failure = after.failure
        self._tools.witness(
            "refresh-failed",
            self._app.account.name,
            lane=lane,
            outcome=outcome,
            reason=failure and failure.reason,
            advice=failure and failure.advice,
            ip=failure and failure.ip,
            rid=failure and failure.rid,
            retry_in=round(self.next_call_at() - self._tools.clock.now()),
        )
        if after.suspicion is not None and before.suspicion is None and after.suspicion.doubt is Doubt.LOST_ANSWER:
            safe_for = round(after.suspicion.safe_until - self._tools.clock.now())
            self._tools.witness("suspect", self._app.account.name, version=after.version, safe_for=safe_for)

    @property
    def _lease_s(self) -> float:
        return self._tools.call_timeout_s + LEASE_SLACK_S


def _is_from(grant: Grant, credential: Credential) -> bool:
    """Whether the token's last word is this call's (the same token, repeated, keeps the number of an earlier one)."""
    return credential.token is not None and abs(credential.token.requested_at - grant.started_at) < 1
