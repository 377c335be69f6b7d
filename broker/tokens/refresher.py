"""One app's flight: look, reserve, call WeChat, settle, publish. The only place where a refresh happens.

Nothing here decides *whether*: that is `broker.core`. This module sees to it that one look at a time acts on it.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from broker.core import credential as core
from broker.core.credential import NEVER, Credential, Doubt
from broker.core.outcome import Judge
from broker.core.ports import Change, Claim, Denied, Grant, Reason, StoreError, Verdict
from broker.core.quota import Lane
from broker.core.reservation import admit, claim_for
from broker.tokens.dependencies import Tools
from broker.tokens.emergency import LastResort
from broker.tokens.live import Published
from broker.tokens.store_sync import Books

LEASE_SLACK_S: Final = 5.0  # this long after a call must have ended, its open reservation is nobody's any more
LATEST_START_S: Final = LEASE_SLACK_S / 2  # a call begun later after its reservation might not end within the lease

Flight = asyncio.Task[Verdict | None]


class Flights:
    """Owns the one task in which an app's token is verified and refreshed."""

    def __init__(self, published: Published, tools: Tools) -> None:
        self.books = Books(published, tools)
        self._app = published
        self._tools = tools
        self._last_resort = LastResort(published, tools, self.books)
        self._flight: Flight | None = None
        self._crashes = 0
        self._stopping = False

    async def start(self) -> None:
        """Take up what the store holds. Calls nobody. Raises StoreError."""
        await self.books.open()
        if not self.books.is_shared:
            if self._app.credential.reserved_call is not None:
                await self._close_orphan()
            await self._last_resort.inherit()
        await self.books.forgive()

    def hear(self) -> None:
        """Another process may have changed what is stored: look, at once or after the flight under way."""
        self.books.rumour = True
        if self.join() is None:  # too soon after a failure: the schedule is to know of it
            self._app.reconsider()

    @property
    def flies_elsewhere(self) -> bool:
        """Whether another process is at it, verifying or refreshing, as far as we know."""
        held = self._app.credential
        calls_until = NEVER if held.reserved_call is None else held.called_at + self._lease_s
        return self.books.is_shared and self._tools.clock.now() < max(self.books.checked_elsewhere_until, calls_until)

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
        due = max(core.refresh_at(self._app.credential, endpoint, policy), self.books.resume_at)
        lane = claim_for(self._app.credential, endpoint, policy, now).lane
        denial = self.books.denials.get(lane)
        if denial is None:
            return due
        if lane is Lane.REPORT:  # the schedule will not wait for reports' quota
            return max(due, min(denial.until, core.scheduled_at(self._app.credential, endpoint, policy)))
        return max(due, denial.until)

    def join(self, *, report: bool = False) -> Flight | None:
        """The flight under way, or a new one where something is due. No await between the look and the start."""
        now, policy = self._tools.clock.now(), self._app.policy
        if self._flight is None and not self._stopping and now >= self.books.resume_at:
            check = now >= core.check_at(self._app.credential, policy)
            due = self.books.wall_was_set or now >= self.due_at()
            if report and not self._app.credential.refused:
                check = due = now >= self._app.credential.checked_at + policy.verify_gap
            if due:
                self.launch(partial(self._look, check=check))
        return self._flight

    def due_at(self) -> float:
        """Steady time from which a look finds something to do, as things stand."""
        if self.books.owe:
            return self.books.resume_at
        held, policy = self._app.credential, self._app.policy
        over_at = math.inf if held.reserved_call is None else held.called_at + self._lease_s
        return max(self.books.resume_at, min(core.check_at(held, policy), self.next_call_at(), over_at))

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
            self.books.failed(error)
        except Exception as error:  # noqa: BLE001 -- the daemon outlives its bugs
            self._crashes += 1
            policy = self._app.policy
            self.books.resume_at = self._tools.clock.now() + min(policy.max_backoff, policy.min_gap * 2 ** min(self._crashes, 30))
            self._tools.witness("crashed", self._app.account.name, error=error)
        else:
            return verdict
        finally:
            self._flight = None
            self._app.reconsider()
            if self.books.rumour:
                self.join()
        return None

    async def _look(self, *, check: bool) -> Verdict | None:
        """One look: put in order what was left open, verify if asked to, refresh if due."""
        await self.books.catch_up()
        await self._last_resort.record()
        if self._abandoned():
            await self._close_orphan()
        verdict = await self._check() if check else None
        now = self._tools.clock.now()
        if now >= self.next_call_at():
            await self.refresh(claim_for(self._app.credential, self._app.account.endpoint, self._app.policy, now))
        elif self.books.error is not None:
            await self._last_resort.call()
        return verdict

    def _abandoned(self) -> bool:
        """Whether there is a reservation that nobody can still be working on."""
        held = self._app.credential
        return held.reserved_call is not None and self._tools.clock.now() >= held.called_at + self._lease_s

    async def _check(self) -> Verdict | None:
        """Ask WeChat whether the held token lives. None where another node asks, or asked a moment ago."""
        memory, policy = self._app.credential, self._app.policy
        version, token = memory.version, memory.token
        claimed = await self.books.amend(lambda held, now: core.begin_check(held, version, policy, now))
        if token is None or not claimed:
            self.books.note_check(self._app.credential, memory)
            return None
        verdict = await self._tools.upstream.check(self._app.account, token.value)
        self._tools.witness("checked", self._app.account.name, version=version, verdict=verdict.value)
        if verdict is Verdict.ALIVE:
            await self.books.amend(lambda held, now: core.found_alive(held, version, policy, now))
        elif verdict is Verdict.DEAD:
            before, wall = self._app.credential.rivalry.count, self._tools.clock.wall()
            endpoint = self._app.account.endpoint
            await self.books.amend(lambda held, now: core.found_dead(held, version, now, wall, endpoint), lasting=True)
            if self._app.credential.rivalry.count > before:
                rivalry = self._app.credential.rivalry
                self._tools.witness("second-issuer", self._app.account.name, count=rivalry.count, suspected=rivalry.suspected)
        return verdict

    async def refresh(self, claim: Claim) -> None:
        """Reserve, call, settle. No reservation, no call."""
        account, memory, asked_at = self._app.account, self._app.credential, self._tools.clock.now()
        try:
            grant = await self.books.reserve(admit(account, self._app.policy, memory.version, claim, self._lease_s))
        except StoreError as error:
            self.books.failed(error)
            await self._last_resort.call()
            return
        if isinstance(grant, Denied):
            await self._denied(grant, claim, memory)
            return
        self.books.denials.pop(claim.lane, None)
        if self.books.is_shared and self._tools.clock.now() > asked_at + LATEST_START_S:
            await self._settle(grant, *Judge.withheld(grant))
            return
        answer = await self._tools.upstream.fetch(account, force=claim.force)
        await self._settle(grant, *self.books.judge().answer(grant, answer))

    async def _denied(self, denied: Denied, claim: Claim, memory: Credential) -> None:
        denial = denied.denial
        if denial.reason is not Reason.FASTER:
            self.books.denials[claim.lane] = denial
        else:  # perhaps not faster but poorer
            await self.books.give_back(denied.credential, memory)
        if denial.reason is Reason.QUOTA:
            self._tools.witness("quota-spent", self._app.account.name, lane=claim.lane.value, limit=denial.limit)

    async def _settle(self, grant: Grant, outcome: str, change: Change) -> None:
        before = self._app.credential
        if await self.books.settle(grant, outcome, change):
            self._tell(before, grant, outcome)

    async def _close_orphan(self) -> None:
        """A reserved call whose outcome nobody knows, since its process died: spent, perhaps minted, a failure like others."""
        held = self._app.credential
        force = any(entry.forced and entry.at >= held.called_at for entry in self._app.entries)
        if await self.books.amend(self.books.judge().orphan(held.reserved_call, force=force)):
            self._tools.witness("orphan-closed", self._app.account.name, version=self._app.credential.version)

    def _tell(self, before: Credential, grant: Grant, outcome: str) -> None:
        """One line for one transition."""
        after, lane = self._app.credential, grant.claim.lane.value
        if outcome == "minted" and not _is_from(grant, after):
            self._tools.witness("deposed", self._app.account.name, lane=lane, version=after.version)
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
