"""One app's flight: look, reserve, call WeChat, settle, publish.

The only place where a refresh happens.

Nothing here decides *whether*: that is `broker.core`. This module sees to it that one look at a
time acts on it.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from broker.core import decision, transitions
from broker.core.credential import NEVER, Credential, Doubt
from broker.core.outcome import OutcomeRules
from broker.core.ports import Change, Claim, Denied, Grant, Reason, StoreError, Verdict
from broker.core.quota import Lane
from broker.core.reservation import admit, claim_for
from broker.tokens.dependencies import Dependencies
from broker.tokens.emergency import Emergency
from broker.tokens.live import LiveCredential
from broker.tokens.store_sync import StoreSync

LEASE_SLACK_S: Final = (
    5.0  # this long after a call must have ended, its open reservation is nobody's any more
)
LATEST_START_S: Final = (
    LEASE_SLACK_S / 2
)  # a call begun later after its reservation might not end within the lease

Flight = asyncio.Task[Verdict | None]


class Refresher:
    """Owns the one task in which an app's token is verified and refreshed."""

    def __init__(self, live: LiveCredential, dependencies: Dependencies) -> None:
        self.store_sync = StoreSync(live, dependencies)
        self._live = live
        self._dependencies = dependencies
        self._emergency = Emergency(live, dependencies, self.store_sync)
        self._flight: Flight | None = None
        self._crashes = 0
        self._stopping = False

    async def start(self) -> None:
        """Take up what the store holds. Calls nobody. Raises StoreError."""
        await self.store_sync.open()
        if not self.store_sync.is_shared:
            if self._live.credential.reserved_call is not None:
                await self._close_abandoned()
            await self._emergency.take_over()
        await self.store_sync.after_secret_change()

    def on_store_changed(self) -> None:
        """Another process may have changed what is stored: look, at once or after the flight under way."""
        self.store_sync.reload_pending = True
        if self.join() is None:  # too soon after a failure: the schedule is to know of it
            self._live.reconsider()

    @property
    def flies_elsewhere(self) -> bool:
        """Whether another process is at it, verifying or refreshing, as far as we know."""
        held = self._live.credential
        calls_until = NEVER if held.reserved_call is None else held.called_at + self._lease_s
        return self.store_sync.is_shared and self._dependencies.clock.now() < max(
            self.store_sync.checked_elsewhere_until, calls_until
        )

    def stop(self) -> None:
        """Begin no more flights."""
        self._stopping = True

    async def drain(self) -> None:
        """See the call under way to its end; it is bounded by the call timeout."""
        while self._flight is not None:
            await asyncio.wait({self._flight})

    def next_call_at(self) -> float:
        """Steady time of the next token call, as things stand."""
        endpoint, policy, now = (
            self._live.account.endpoint,
            self._live.policy,
            self._dependencies.clock.now(),
        )
        due = max(
            decision.refresh_at(self._live.credential, endpoint, policy), self.store_sync.resume_at
        )
        lane = claim_for(self._live.credential, endpoint, policy, now).lane
        denial = self.store_sync.denials.get(lane)
        if denial is None:
            return due
        if lane is Lane.REPORT:  # the schedule will not wait for reports' quota
            return max(
                due,
                min(denial.until, decision.scheduled_at(self._live.credential, endpoint, policy)),
            )
        return max(due, denial.until)

    def join(self, *, report: bool = False) -> Flight | None:
        """The flight under way, or a new one where something is due.

        No await between the look and the start.
        """
        now, policy = self._dependencies.clock.now(), self._live.policy
        if self._flight is None and not self._stopping and now >= self.store_sync.resume_at:
            check = now >= decision.check_at(self._live.credential, policy)
            due = self.store_sync.wall_was_set or now >= self.due_at()
            if report and not self._live.credential.refused:
                check = due = now >= self._live.credential.checked_at + policy.verify_gap
            if due:
                self.launch(partial(self._look, check=check))
        return self._flight

    def due_at(self) -> float:
        """Steady time from which a look finds something to do, as things stand."""
        if self.store_sync.owe:
            return self.store_sync.resume_at
        held, policy = self._live.credential, self._live.policy
        over_at = math.inf if held.reserved_call is None else held.called_at + self._lease_s
        return max(
            self.store_sync.resume_at,
            min(decision.check_at(held, policy), self.next_call_at(), over_at),
        )

    @property
    def current(self) -> Flight | None:
        """The flight under way."""
        return self._flight

    def launch(self, work: Callable[[], Awaitable[Verdict | None]]) -> Flight:
        """Begin a flight. The caller has seen that there is none."""
        self._flight = asyncio.create_task(
            self._guarded(work), name=f"flight {self._live.account.name}"
        )
        return self._flight

    async def _guarded(self, work: Callable[[], Awaitable[Verdict | None]]) -> Verdict | None:
        """Fly.

        Only a bug raises in there besides a broken store, and both back off like a failure.
        """
        try:
            async with self._dependencies.slots:
                verdict = await work()
            self._crashes = 0
        except StoreError as error:
            self.store_sync.failed(error)
        except Exception as error:  # noqa: BLE001 -- the daemon overlap_after_replacement its bugs
            self._crashes += 1
            policy = self._live.policy
            self.store_sync.resume_at = self._dependencies.clock.now() + min(
                policy.max_backoff, policy.min_gap * 2 ** min(self._crashes, 30)
            )
            self._dependencies.emit("crashed", self._live.account.name, error=error)
        else:
            return verdict
        finally:
            self._flight = None
            self._live.reconsider()
            if self.store_sync.reload_pending:
                self.join()
        return None

    async def _look(self, *, check: bool) -> Verdict | None:
        """One look: put in order what was left open, verify if asked to, refresh if due."""
        await self.store_sync.catch_up()
        await self._emergency.record()
        if self._is_abandoned():
            await self._close_abandoned()
        verdict = await self._check() if check else None
        now = self._dependencies.clock.now()
        if now >= self.next_call_at():
            await self.refresh(
                claim_for(
                    self._live.credential, self._live.account.endpoint, self._live.policy, now
                )
            )
        elif self.store_sync.error is not None:
            await self._emergency.call()
        return verdict

    def _is_abandoned(self) -> bool:
        """Whether there is a reservation that nobody can still be working on."""
        held = self._live.credential
        return (
            held.reserved_call is not None
            and self._dependencies.clock.now() >= held.called_at + self._lease_s
        )

    async def _check(self) -> Verdict | None:
        """Ask WeChat whether the held token lives.

        None where another node asks, or asked a moment ago.
        """
        memory, policy = self._live.credential, self._live.policy
        version, token = memory.version, memory.token
        claimed = await self.store_sync.amend(
            lambda held, now: transitions.begin_check(held, version, policy, now)
        )
        if token is None or not claimed:
            self.store_sync.note_check(self._live.credential, memory)
            return None
        verdict = await self._dependencies.upstream.check(self._live.account, token.value)
        self._dependencies.emit(
            "checked", self._live.account.name, version=version, verdict=verdict.value
        )
        if verdict is Verdict.ALIVE:
            await self.store_sync.amend(
                lambda held, now: transitions.found_alive(held, version, policy, now)
            )
        elif verdict is Verdict.DEAD:
            before, wall = (
                self._live.credential.second_issuer.count,
                self._dependencies.clock.wall(),
            )
            endpoint = self._live.account.endpoint
            await self.store_sync.amend(
                lambda held, now: transitions.found_dead(held, version, now, wall, endpoint),
                lasting=True,
            )
            if self._live.credential.second_issuer.count > before:
                second_issuer = self._live.credential.second_issuer
                self._dependencies.emit(
                    "second-issuer",
                    self._live.account.name,
                    count=second_issuer.count,
                    suspected=second_issuer.suspected,
                )
        return verdict

    async def refresh(self, claim: Claim) -> None:
        """Reserve, call, settle. No reservation, no call."""
        account, memory, asked_at = (
            self._live.account,
            self._live.credential,
            self._dependencies.clock.now(),
        )
        try:
            grant = await self.store_sync.reserve(
                admit(account, self._live.policy, memory.version, claim, self._lease_s)
            )
        except StoreError as error:
            self.store_sync.failed(error)
            await self._emergency.call()
            return
        if isinstance(grant, Denied):
            await self._denied(grant, claim, memory)
            return
        self.store_sync.denials.pop(claim.lane, None)
        if self.store_sync.is_shared and self._dependencies.clock.now() > asked_at + LATEST_START_S:
            await self._settle(grant, *OutcomeRules.withheld(grant))
            return
        answer = await self._dependencies.upstream.fetch(account, force=claim.force)
        await self._settle(grant, *self.store_sync.outcome_rules().answer(grant, answer))

    async def _denied(self, denied: Denied, claim: Claim, memory: Credential) -> None:
        denial = denied.denial
        if denial.reason is not Reason.SUPERSEDED:
            self.store_sync.denials[claim.lane] = denial
        else:  # perhaps not faster but poorer
            await self.store_sync.read_repair(denied.credential, memory)
        if denial.reason is Reason.QUOTA:
            self._dependencies.emit(
                "quota-spent", self._live.account.name, lane=claim.lane.value, limit=denial.limit
            )

    async def _settle(self, grant: Grant, outcome: str, change: Change) -> None:
        before = self._live.credential
        if await self.store_sync.settle(grant, outcome, change):
            self._tell(before, grant, outcome)

    async def _close_abandoned(self) -> None:
        """A reserved call whose outcome nobody knows, since its process died: spent, perhaps minted, a failure like others."""
        held = self._live.credential
        force = any(entry.forced and entry.at >= held.called_at for entry in self._live.entries)
        if await self.store_sync.amend(
            self.store_sync.outcome_rules().abandoned(held.reserved_call, force=force)
        ):
            self._dependencies.emit(
                "abandoned-call-closed",
                self._live.account.name,
                version=self._live.credential.version,
            )

    def _tell(self, before: Credential, grant: Grant, outcome: str) -> None:
        """One line for one transition."""
        after, lane = self._live.credential, grant.claim.lane.value
        if outcome == "minted" and not _is_from(grant, after):
            self._dependencies.emit(
                "lease-lost", self._live.account.name, lane=lane, version=after.version
            )
            return
        if outcome == "minted":
            left = round(self._live.seconds_to_live())
            self._dependencies.emit(
                "refreshed",
                self._live.account.name,
                lane=lane,
                version=after.version,
                expires_in=left,
            )
            return
        failure = after.failure
        self._dependencies.emit(
            "refresh-failed",
            self._live.account.name,
            lane=lane,
            outcome=outcome,
            reason=failure and failure.reason,
            advice=failure and failure.advice,
            ip=failure and failure.ip,
            rid=failure and failure.rid,
            retry_in=round(self.next_call_at() - self._dependencies.clock.now()),
        )
        if (
            after.suspicion is not None
            and before.suspicion is None
            and after.suspicion.doubt is Doubt.LOST_ANSWER
        ):
            safe_for = round(after.suspicion.safe_until - self._dependencies.clock.now())
            self._dependencies.emit(
                "suspect", self._live.account.name, version=after.version, safe_for=safe_for
            )

    @property
    def _lease_s(self) -> float:
        return self._dependencies.call_timeout_s + LEASE_SLACK_S


def _is_from(grant: Grant, credential: Credential) -> bool:
    """Whether the token's last word is this call's (the same token, repeated, keeps the number of an earlier one)."""
    return (
        credential.token is not None and abs(credential.token.requested_at - grant.started_at) < 1
    )
