"""Keeps one live token per app: look, reserve, call WeChat, settle, publish. The only place where a refresh happens.

Nothing here decides *whether*: that is `broker.core`. This module sees to it that one look at a time acts on it.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hmac import compare_digest
from typing import Final

from broker.core import credential as core
from broker.core.credential import NEVER, Account, Credential, Doubt, Policy, fingerprint
from broker.core.errcodes import Failure, Kind, pause
from broker.core.ports import (
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
)
from broker.core.quota import Entry, Lane, Usage, until_next_day, usage
from broker.core.reservation import admit, claim_for
from broker.core.serving import Code, Outcome, Served, State, Unavailable, seconds, why_not

LEASE_SLACK_S: Final = 5.0  # this long after a call must have ended, its open reservation is nobody's any more

Flight = asyncio.Task[Verdict | None]


@dataclass(frozen=True, slots=True)
class Tools:
    """What all keepers share. `slots` bounds the calls to WeChat at once; `spread` draws from [0, 1)."""

    store: Store
    upstream: Upstream
    clock: Clock
    policy: Policy
    slots: asyncio.Semaphore
    witness: Witness
    call_timeout_s: float
    spread: Callable[[], float] = random.random


class Keeper:
    """The keeper of one app's token. Reading it costs no I/O; it owns at most one task, its flight."""

    def __init__(self, account: Account, tools: Tools) -> None:
        self.account = account
        self.credential = Credential()
        self.entries: Sequence[Entry] = ()  # the ledger, as last read or written
        self.store_error: str | None = None
        self._tools = tools
        self._flight: Flight | None = None
        self._denials: dict[Lane, Denial] = {}
        self._unsettled: tuple[Grant, str, Change] | None = None  # an outcome the disk did not take
        self._crashes = 0
        self._resume_at = NEVER  # after a bug or a broken disk
        self._stopping = False
        self._changed = asyncio.Event()
        self._stale_at = self._ends_at = NEVER

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up what the store holds. Calls nobody. Raises StoreError."""
        held = await self._tools.store.load(self.account)
        self.entries = held.entries
        self._adopt(held.credential)
        if held.credential.reserved_call is not None and self._tools.store.sole_owner:
            await self._close_orphan()
        known = fingerprint(self.account.secret, self.credential.epoch)
        if core.forgiven(self.credential, known) is not None:
            await self._amend(lambda credential, _: core.forgiven(credential, known))

    def halt(self) -> None:
        """Begin no more calls, hand out nothing more, and wake everyone who waits."""
        self._stopping = True
        self._wake()

    async def landed(self) -> None:
        """See the call under way to its end; it is bounded by the call timeout."""
        while self._flight is not None:
            await asyncio.wait({self._flight})

    def tick(self) -> None:
        """Look, and act if something is due. The plan is in the data: a lost tick costs one tick."""
        self._join()

    # --- what may be served -------------------------------------------------------------------------------------------

    def serve(self, min_ttl: float = 0) -> Served | None:
        """The token, if one may be handed out that lives at least `min_ttl` seconds more."""
        now = self._tools.clock.now()
        left = self._ends_at - now
        if left < max(min_ttl, self._tools.policy.min_serve, 1) or self._stopping:
            return None
        state = State.STALE if now >= self._stale_at else State.FRESH
        return Served(self.credential, int(left), State.SUSPECT if self.credential.suspicion else state)

    async def get(self, min_ttl: float = 0, patience_s: float = 0) -> Served | Unavailable:
        """Serve at once if possible; else wait, at most `patience_s`, for a refresh that is under way or due."""
        served = self.serve(min_ttl)
        deadline = _deadline(patience_s)
        while served is None and not self._stopping:
            if not await self._progress(deadline):
                break
            served = self.serve(min_ttl)
        return served or self._unavailable()

    async def watch(self, version: str, patience_s: float) -> Served | Unavailable | None:
        """Answer as soon as the token is another than `version`; None when the time is up and it is not."""
        deadline = _deadline(patience_s)
        while self.credential.version == version and not self._stopping:
            if not await _until(self._changed.wait(), deadline):
                return None if self.serve() else self._unavailable()
        return await self.get(patience_s=_left(deadline))

    async def _progress(self, deadline: float) -> bool:
        """Wait for what may bring a token; False where nothing will before the deadline."""
        if (flight := self._join()) is not None:
            return await _until(asyncio.wait({flight}), deadline)
        soon = self.next_call_at() - self._tools.clock.now() < _left(deadline)
        if self.serve() is None or self.credential.failure is not None or not soon:
            return False
        return await _until(self._changed.wait(), deadline)  # the token is good, only not for as long as was asked

    # --- what services and people ask for -----------------------------------------------------------------------------

    def is_current(self, *, version: str | None = None, token: str | None = None) -> bool:
        """Whether a report names the token we hold; a report of any other costs nothing."""
        held = self.credential.token
        if held is None:
            return False
        if version is not None:
            return version == self.credential.version
        return token is not None and compare_digest(token.encode(), held.value.reveal().encode())

    async def report(self, patience_s: float, **named: str | None) -> tuple[Outcome, Served] | Unavailable:
        """Take a report that the token named by `version` or `token` is refused.

        It is hearsay: WeChat is asked, and only on its word the token is replaced.
        """
        deadline = _deadline(patience_s)
        version = self.credential.version if self.is_current(**named) else None
        outcome = Outcome.SUPERSEDED if version is None else Outcome.REFRESHED
        while version is not None and self.credential.version == version and not self._stopping:
            flight = self._join(report=True)
            if flight is None:
                return self._throttled()
            if not await _until(asyncio.wait({flight}), deadline):
                return self._unavailable()
            if (heard := self._heard(flight, version)) is not None:
                return heard
        answer = await self.get(patience_s=_left(deadline))
        return (outcome, answer) if isinstance(answer, Served) else answer

    def _heard(self, flight: Flight, version: str) -> tuple[Outcome, Served] | Unavailable | None:
        """What a flight says of a reported token; None where the report must look again."""
        served = self.serve()
        if self.credential.version != version:
            return None
        if flight.result() is Verdict.ALIVE and served is not None:
            return Outcome.VERIFIED, served
        if flight.result() is Verdict.UNKNOWN:
            return Unavailable(Code.UPSTREAM_UNAVAILABLE, "WeChat could not be asked whether the token lives.", 1)
        return None

    def _throttled(self) -> Unavailable:
        now = self._tools.clock.now()
        if not self.credential.refused:
            wait = self.credential.checked_at + self._tools.policy.verify_gap - now
            return Unavailable(Code.REPORT_THROTTLED, "WeChat accepted this token a moment ago.", seconds(wait))
        why = self._unavailable()
        if self.credential.failure is not None:
            return why
        return replace(why, code=Code.REPORT_THROTTLED)

    async def refresh(self, patience_s: float, *, force: bool = False) -> Served | Unavailable:
        """A person wants a token call now, within `min_gap` and the quota."""
        deadline = _deadline(patience_s)
        while self._flight is not None:
            if not await _until(asyncio.wait({self._flight}), deadline):
                return self._unavailable()
        if self._stopping:
            return self._unavailable()
        self._denials.pop(Lane.ADMIN, None)
        flight = self._launch(partial(self._refresh, Claim(Lane.ADMIN, force=force)))
        if not await _until(asyncio.wait({flight}), deadline):
            return self._unavailable()
        if (denial := self._denials.get(Lane.ADMIN)) is not None:
            why = why_not(self.credential, denial, None, denial.until - self._tools.clock.now())
            return why if denial.reason is Reason.QUOTA else replace(why, code=Code.REFRESH_THROTTLED, detail=_GAP)
        return self._unavailable() if self.credential.failure else self.serve() or self._unavailable()

    # --- for people ---------------------------------------------------------------------------------------------------

    def next_call_at(self) -> float:
        """Steady time of the next token call, as things stand."""
        endpoint, policy, now = self.account.endpoint, self._tools.policy, self._tools.clock.now()
        due = max(core.refresh_at(self.credential, endpoint, policy), self._resume_at)
        lane = claim_for(self.credential, endpoint, policy, now).lane
        denial = self._denials.get(lane)
        if denial is None:
            return due
        if lane is Lane.REPORT:  # the schedule will not wait for reports' quota
            return max(due, min(denial.until, core.scheduled_at(self.credential, endpoint, policy)))
        return max(due, denial.until)

    def next_call_in(self) -> float:
        """Seconds until then, 0 where it is due."""
        return max(0.0, self.next_call_at() - self._tools.clock.now())

    def usage(self) -> Usage:
        """Token calls spent."""
        return usage(self.entries, self.account.daily_quota, self._tools.clock.now(), self._tools.clock.wall())

    def _unavailable(self) -> Unavailable:
        if self._stopping:
            return Unavailable(Code.STOPPING, "The broker is stopping; another one will answer in a moment.", 1)
        lane = claim_for(self.credential, self.account.endpoint, self._tools.policy, self._tools.clock.now()).lane
        wait = self.next_call_at() - self._tools.clock.now()
        return why_not(self.credential, self._denials.get(lane), self.store_error, wait)

    # --- the flight ---------------------------------------------------------------------------------------------------

    def _join(self, *, report: bool = False) -> Flight | None:
        """The flight under way, or a new one where something is due. No await between the look and the start."""
        now, policy = self._tools.clock.now(), self._tools.policy
        if self._flight is None and not self._stopping and now >= self._resume_at:
            check = core.check_due(self.credential, policy, now)
            if report and not self.credential.refused:
                check = now >= self.credential.checked_at + policy.verify_gap
                due = check
            else:
                due = check or self._unsettled is not None or now >= self.next_call_at()
            if due:
                self._launch(partial(self._look, check=check))
        return self._flight

    def _launch(self, work: Callable[[], Awaitable[Verdict | None]]) -> Flight:
        self._flight = asyncio.create_task(self._guarded(work), name=f"flight {self.account.name}")
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
            policy = self._tools.policy
            self._resume_at = self._tools.clock.now() + min(policy.max_backoff, policy.min_gap * 2 ** min(self._crashes, 30))
            self._tools.witness("crashed", self.account.name, error=error)
        else:
            return verdict
        finally:
            self._flight = None
        return None

    async def _look(self, *, check: bool) -> Verdict | None:
        """One look: put in order what was left open, verify if asked to, refresh if due."""
        if self._unsettled is not None:
            await self._settle(*self._unsettled)
        if self.credential.reserved_call is not None and self._tools.clock.now() >= self.credential.called_at + self._lease_s:
            await self._close_orphan()
        verdict = await self._check() if check else None
        now = self._tools.clock.now()
        if now >= self.next_call_at():
            await self._refresh(claim_for(self.credential, self.account.endpoint, self._tools.policy, now))
        return verdict

    async def _check(self) -> Verdict | None:
        """Ask WeChat whether the held token lives. None where another node asks, or asked a moment ago."""
        version, token, policy = self.credential.version, self.credential.token, self._tools.policy
        claimed = await self._amend(lambda held, now: core.begin_check(held, version, policy, now))
        if token is None or not claimed:
            return None
        verdict = await self._tools.upstream.check(token.value)
        self._tools.witness("checked", self.account.name, version=version, verdict=verdict.value)
        if verdict is Verdict.ALIVE:
            await self._amend(lambda held, now: core.found_alive(held, version, policy, now))
        elif verdict is Verdict.DEAD:
            before, wall = self.credential.rivalry.count, self._tools.clock.wall()
            await self._amend(lambda held, now: core.found_dead(held, version, now, wall))
            if self.credential.rivalry.count > before:
                rivalry = self.credential.rivalry
                self._tools.witness("second-issuer", self.account.name, count=rivalry.count, suspected=rivalry.suspected)
        return verdict

    async def _refresh(self, claim: Claim) -> None:
        """Reserve, call, settle. No reservation, no call."""
        wall, account = self._tools.clock.wall(), self.account
        decide = admit(account, self._tools.policy, self.credential.version, claim, self._lease_s, wall)
        grant = await self._tools.store.reserve(account, decide)
        self.store_error = None
        self.entries = grant.entries
        self._adopt(grant.credential)
        if isinstance(grant, Denied):
            if grant.denial.reason is not Reason.FASTER:
                self._denials[claim.lane] = grant.denial
            if grant.denial.reason is Reason.QUOTA:
                self._tools.witness("quota-spent", account.name, lane=claim.lane.value, limit=grant.denial.limit)
            return
        self._denials.pop(claim.lane, None)
        answer = await self._tools.upstream.fetch(account, force=claim.force)
        await self._settle(grant, *self._judge(grant, answer))

    def _judge(self, grant: Grant, answer: Minted | Failure) -> tuple[str, Change]:
        """What an answer is called in the ledger, and what it changes."""
        account, policy, call, started_at = self.account, self._tools.policy, grant.call, grant.started_at
        if isinstance(answer, Minted):
            good = answer.token, answer.expires_in
            return "minted", lambda held, _: core.minted(held, call, started_at, good, account.endpoint)
        wall = self._tools.clock.wall()
        wait = pause(
            answer, grant.credential.failures + 1, policy.min_gap, policy.max_backoff, until_next_day(wall), self._tools.spread()
        )
        failure = replace(answer, wall=wall)
        known = fingerprint(account.secret, grant.credential.epoch)

        def change(held: Credential, now: float) -> Credential:
            held = core.lost(held, started_at, account.endpoint, policy) if failure.lost else held
            return core.failed(held, call, failure, now + wait, known)

        return "lost" if failure.lost else f"errcode {failure.errcode}" if failure.errcode else failure.kind.value, change

    async def _settle(self, grant: Grant, outcome: str, change: Change) -> None:
        """Write the outcome and publish it; where the disk does not take it, publish it all the same and try again."""
        before = self.credential
        try:
            held = await self._tools.store.settle(self.account, grant, outcome, change)
        except StoreError as error:
            self._store_failed(error)
            if self._unsettled is None:
                self._adopt(change(before, self._tools.clock.now()) or before)
            self._unsettled = (grant, outcome, change)
        else:
            self._unsettled = self.store_error = None
            self._adopt(held)
        self._tell(before, grant, outcome)

    async def _close_orphan(self) -> None:
        """A reserved call whose outcome nobody knows, since its process died: spent, perhaps minted, a failure like others."""
        policy, spread = self._tools.policy, self._tools.spread()
        known = fingerprint(self.account.secret, self.credential.epoch)
        failure = Failure(Kind.TRANSIENT, "the broker was stopped during a token call", lost=True, wall=self._tools.clock.wall())

        def change(held: Credential, _: float) -> Credential | None:
            if held.reserved_call is None:
                return None
            wait = pause(failure, held.failures + 1, policy.min_gap, policy.max_backoff, 0, spread)
            suspected = core.lost(held, held.called_at, self.account.endpoint, policy)
            return core.failed(suspected, held.reserved_call, failure, held.called_at + wait, known)

        await self._amend(change)
        self._tools.witness("orphan-closed", self.account.name, version=self.credential.version)

    # --- memory -------------------------------------------------------------------------------------------------------

    async def _amend(self, change: Change) -> bool:
        """Change what is stored, or, while the disk is broken, what is in memory; whether anything changed."""
        try:
            credential, changed = await self._tools.store.amend(self.account, change)
        except StoreError as error:
            self._store_failed(error)
            amended = change(self.credential, self._tools.clock.now())
            credential, changed = amended or self.credential, amended is not None
        self._adopt(credential)
        return changed

    def _adopt(self, credential: Credential) -> None:
        """Publish, unless it is older than what was served already (the fence)."""
        held = self.credential
        older = held.token is not None and (credential.token is None or credential.token.call < held.token.call)
        if older and held.epoch == credential.epoch:
            return
        self.credential = credential
        self._stale_at = core.scheduled_at(credential, self.account.endpoint, self._tools.policy)
        self._ends_at = core.safe_end(credential)
        if credential.version != held.version:
            self._denials.clear()
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _store_failed(self, error: StoreError) -> None:
        if self.store_error is None:
            self._tools.witness("store-failed", self.account.name, reason=str(error))
        self.store_error = str(error)
        self._resume_at = self._tools.clock.now() + self._tools.policy.tick

    def _tell(self, before: Credential, grant: Grant, outcome: str) -> None:
        """One line for one transition."""
        after, lane = self.credential, grant.claim.lane.value
        if outcome == "minted":
            left = round(self._ends_at - self._tools.clock.now())
            self._tools.witness("refreshed", self.account.name, lane=lane, version=after.version, expires_in=left)
            return
        failure = after.failure
        self._tools.witness(
            "refresh-failed",
            self.account.name,
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
            self._tools.witness("suspect", self.account.name, version=after.version, safe_for=safe_for)

    @property
    def _lease_s(self) -> float:
        return self._tools.call_timeout_s + LEASE_SLACK_S


_GAP: Final = "A token call was made less than min_gap ago, or WeChat itself asked for a pause."


def _deadline(patience_s: float) -> float:
    return asyncio.get_running_loop().time() + patience_s


def _left(deadline: float) -> float:
    return max(0.0, deadline - asyncio.get_running_loop().time())


async def _until(what: Awaitable[object], deadline: float) -> bool:
    """Wait no longer than the deadline; whether it came to pass. A task inside `asyncio.wait` is not cancelled with us."""
    try:
        async with asyncio.timeout_at(deadline):
            await what
    except TimeoutError:
        return False
    return True
