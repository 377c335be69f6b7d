"""The one place where a refresh happens: plan, reserve, call WeChat, settle, publish.

Nothing here decides *whether*: that is `broker.core.plan`. This module sees to it that one look at
a time acts on it. It reads from top to bottom in the order in which things happen.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Final

from broker.core import transitions
from broker.core.credential import NEVER, Credential, Doubt, Policy
from broker.core.decision import check_allowed_at
from broker.core.outcome import OutcomeRules
from broker.core.plan import Plan, make_plan
from broker.core.ports import Claim, Denial, Denied, Grant, Reason, StoreError, Verdict
from broker.core.quota import Lane
from broker.core.reservation import admit
from broker.tokens.dependencies import Dependencies
from broker.tokens.emergency import Emergency
from broker.tokens.live import LiveCredential
from broker.tokens.store_sync import StoreSync

# This long after a call must have ended, its open reservation is nobody's any more.
LEASE_SLACK_S: Final = 5.0
# A call begun later than this after its reservation might not end within the lease.
LATEST_START_S: Final = LEASE_SLACK_S / 2

Flight = asyncio.Task[Verdict | None]


class Refresher:
    """Owns the one task, the flight, in which an app's token is verified and replaced.

    `denials` says why the ledger denied calls, by lane, until another token comes.
    `on_plan_changed` is called when the next look may be due at another time than before.
    """

    def __init__(
        self,
        live: LiveCredential,
        sync: StoreSync,
        dependencies: Dependencies,
        on_plan_changed: Callable[[], None],
    ) -> None:
        self.denials: dict[Lane, Denial] = {}
        self.lease_s = dependencies.call_timeout_s + LEASE_SLACK_S
        self._live = live
        self._sync = sync
        self._dependencies = dependencies
        self._on_plan_changed = on_plan_changed
        self._emergency = Emergency(live, dependencies, sync)
        self._flight: Flight | None = None
        self._plan: Plan | None = None
        self._planned_for: Credential | None = None
        self._planned_by: Policy | None = None
        self._denied_token: tuple[str, int] | None = None
        self._crashes = 0
        self._rests_until = NEVER  # after a bug
        self._stopping = False

    # --- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up what the store holds. Calls nobody. Raises StoreError."""
        await self._sync.open()
        if not self._sync.is_shared:
            if self._live.credential.reserved_call is not None:
                await self._close_abandoned()
            await self._emergency.take_over()
        await self._sync.after_secret_change()

    def stop(self) -> None:
        """Begin no more flights."""
        self._stopping = True

    async def drain(self) -> None:
        """See the call under way to its end; it is bounded by the call timeout."""
        while self._flight is not None:
            await asyncio.wait({self._flight})

    # --- what is due ------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """What is to be done and when, as things stand."""
        live = self._live
        held, policy = live.credential, live.policy
        if self._plan is None or held is not self._planned_for or policy is not self._planned_by:
            self._planned_for, self._planned_by = held, policy
            self._forget_denials_of_another_token(held)
            endpoint = live.account.endpoint
            self._plan = make_plan(held, endpoint, policy, self.denials, self.lease_s)
        return self._plan

    def _forget_denials_of_another_token(self, held: Credential) -> None:
        token = (held.epoch, held.token.call) if held.token else None
        if self._denied_token != token:
            self._denied_token = token
            self.denials.clear()

    def forget_denials(self) -> None:
        """Ask the ledger again: what it went by, such as the quota, is another now."""
        self.denials.clear()
        self._plan = None

    def due_at(self) -> float:
        """Return the steady time from which a look finds something to do, as things stand."""
        rests_until = max(self._sync.retry_at, self._rests_until)
        if self._sync.owes:
            return rests_until
        look_at = self.plan.look_at(self._dependencies.clock.now())
        return max(rests_until, min(look_at, self._age_check_at()))

    def _age_check_at(self) -> float:
        """Return when to ask WeChat whether a token lives that may be older than it seems."""
        if not self._live.may_be_older:
            return math.inf
        return check_allowed_at(self._live.credential, self._live.policy)

    def next_call_at(self) -> float:
        """Return the steady time of the next token call, as things stand."""
        call_at = self.plan.call_at(self._dependencies.clock.now())
        return max(call_at, self._sync.retry_at, self._rests_until)

    @property
    def current(self) -> Flight | None:
        """The flight under way."""
        return self._flight

    @property
    def flies_elsewhere(self) -> bool:
        """True while another process is verifying or refreshing, as far as we know."""
        held = self._live.credential
        is_open = held.reserved_call is not None
        calls_until = held.called_at + self.lease_s if is_open else NEVER
        known_until = max(self._sync.checked_elsewhere_until, calls_until)
        return self._sync.is_shared and self._dependencies.clock.now() < known_until

    def look(self, *, report: bool = False) -> Flight | None:
        """Return the flight under way, or a new one if something is due.

        With `report` somebody says that the current token is refused: then WeChat is asked, unless
        it was asked within `verify_gap`. There is no await between the look and the start.
        """
        if self._flight is not None or self._stopping:
            return self._flight
        now, held = self._dependencies.clock.now(), self._live.credential
        if now < max(self._sync.retry_at, self._rests_until):
            return None
        if report and not held.refused:
            check = due = now >= check_allowed_at(held, self._live.policy)
        else:
            due = self._sync.wall_was_set or now >= self.due_at()
            check = due and now >= min(self.plan.check_at, self._age_check_at())
        return self._launch(lambda: self._fly(check=check), urgent=report) if due else None

    def launch_call(self, claim: Claim) -> Flight:
        """Begin a flight that makes one call. The caller has seen that none is under way."""
        self._deny(claim.lane, None)
        return self._launch(lambda: self._call(claim), urgent=True)

    # --- a flight ---------------------------------------------------------------------------------

    def _launch(self, work: Callable[[], Awaitable[Verdict | None]], *, urgent: bool) -> Flight:
        name = f"flight {self._live.account.name}"
        slots = self._dependencies.urgent_slots if urgent else self._dependencies.slots
        self._flight = asyncio.create_task(self._guarded(work, slots), name=name)
        return self._flight

    async def _guarded(
        self, work: Callable[[], Awaitable[Verdict | None]], slots: asyncio.Semaphore
    ) -> Verdict | None:
        """Fly. A broken store and a bug both back off like a failure; nothing else raises."""
        verdict = None
        try:
            async with slots:
                verdict = await work()
            self._crashes = 0
        except StoreError as error:
            self._sync.failed(error)
        except Exception as error:  # noqa: BLE001 -- the daemon outlives its bugs
            self._crashes += 1
            policy = self._live.policy
            rest_s = min(policy.max_backoff, policy.min_gap * 2 ** min(self._crashes, 30))
            self._rests_until = self._dependencies.clock.now() + rest_s
            self._dependencies.emit("crashed", self._live.account.name, error=error)
        finally:
            self._flight = None
            self._on_plan_changed()
            if self._sync.reload_pending:
                self.look()
        return verdict

    async def _fly(self, *, check: bool) -> Verdict | None:
        """Put in order what was left open, verify if asked to, refresh if due."""
        if self._sync.reload_pending:  # what others changed may have ended a denial
            self.forget_denials()
        await self._sync.catch_up()
        if self._sync.unrecorded:
            await self._emergency.record()
        if self._dependencies.clock.now() >= self.plan.abandoned_at:
            await self._close_abandoned()
        verdict = await self._check() if check else None
        now = self._dependencies.clock.now()
        if now >= self.next_call_at():
            await self._call(self.plan.claim(now))
        elif self._sync.error is not None:
            await self._emergency.call()
        return verdict

    async def _close_abandoned(self) -> None:
        """Close a reservation whose process died before its outcome was known.

        Its call is spent, may have minted, and counts as a failure like others.
        """
        held = self._live.credential
        entries = self._live.entries
        force = any(entry.forced and entry.at >= held.called_at for entry in entries)
        change = self._sync.outcome_rules().abandoned(held.reserved_call, force=force)
        if await self._sync.amend(change):
            version = self._live.credential.version
            name = self._live.account.name
            self._dependencies.emit("abandoned-call-closed", name, version=version)

    async def _check(self) -> Verdict | None:
        """Ask WeChat whether the held token lives.

        None where another process is asking, or asked a moment ago.
        """
        account, memory, policy = self._live.account, self._live.credential, self._live.policy
        version, token = memory.version, memory.token
        claimed = await self._sync.amend(
            lambda held, now: transitions.begin_check(held, version, policy, now)
        )
        if token is None or not claimed:
            self._sync.note_check(self._live.credential, memory)
            return None
        verdict = await self._dependencies.upstream.check(account, token.value)
        self._dependencies.emit("checked", account.name, version=version, verdict=verdict.value)
        if verdict is not Verdict.UNKNOWN:
            self._live.trust_age()
        if verdict is Verdict.ALIVE:
            await self._sync.amend(
                lambda held, now: transitions.found_alive(held, version, policy, now)
            )
        elif verdict is Verdict.DEAD:
            wall, signs = self._dependencies.clock.wall(), memory.second_issuer.count
            await self._sync.amend(
                lambda held, now: transitions.found_dead(
                    held, version, now, wall, account.endpoint
                ),
                lasting=True,
            )
            found = self._live.credential.second_issuer
            if found.count > signs:
                self._dependencies.emit(
                    "second-issuer", account.name, count=found.count, suspected=found.suspected
                )
        return verdict

    async def _call(self, claim: Claim) -> None:
        """Reserve, call, settle. Without a reservation there is no call."""
        memory, asked_at = self._live.credential, self._dependencies.clock.now()
        grant = await self._reserve(claim, memory)
        if grant is None:
            return
        is_late = self._dependencies.clock.now() > asked_at + LATEST_START_S
        if self._sync.is_shared and is_late:
            outcome, change = OutcomeRules.withheld(grant)
        else:
            account = self._live.account
            answer = await self._dependencies.upstream.fetch(account, force=claim.force)
            outcome, change = self._sync.outcome_rules().answer(grant, answer)
        before = self._live.credential
        if await self._sync.settle(grant, outcome, change):
            self._report(before, grant, outcome)

    async def _reserve(self, claim: Claim, memory: Credential) -> Grant | None:
        """Write the call into the ledger before it is made; None where it must not be made."""
        account, policy = self._live.account, self._live.policy
        decide = admit(account, policy, memory.version, claim, self.lease_s)
        try:
            answer = await self._sync.reserve(decide)
        except StoreError as error:
            self._sync.failed(error)
            await self._emergency.call()
            return None
        if isinstance(answer, Grant):
            self._deny(claim.lane, None)
            return answer
        await self._denied(answer, claim, memory)
        return None

    async def _denied(self, denied: Denied, claim: Claim, memory: Credential) -> None:
        denial = denied.denial
        if denial.reason is Reason.SUPERSEDED:
            # The store's version differs from ours: perhaps since it lost our token. Restore it.
            await self._sync.read_repair(denied.credential, memory)
            return
        self._deny(claim.lane, denial)
        if denial.reason is Reason.QUOTA:
            name, lane = self._live.account.name, claim.lane.value
            self._dependencies.emit("quota-spent", name, lane=lane, limit=denial.limit)

    def _deny(self, lane: Lane, denial: Denial | None) -> None:
        """Note why the ledger denied a lane, or that it denies it no more."""
        self._forget_denials_of_another_token(self._live.credential)
        if denial is not None:
            self.denials[lane] = denial
        elif self.denials.pop(lane, None) is None:
            return
        self._plan = None

    # --- what is said of it -----------------------------------------------------------------------

    def _report(self, before: Credential, grant: Grant, outcome: str) -> None:
        """Emit one event for one transition."""
        emit, name = self._dependencies.emit, self._live.account.name
        after, lane = self._live.credential, grant.claim.lane.value
        now = self._dependencies.clock.now()
        if outcome == "minted" and not _is_from(grant, after):
            emit("lease-lost", name, lane=lane, version=after.version)
            return
        if outcome == "minted":
            left = round(self._live.seconds_to_live())
            emit("refreshed", name, lane=lane, version=after.version, expires_in=left)
            return
        failure = after.failure
        emit(
            "refresh-failed",
            name,
            lane=lane,
            outcome=outcome,
            failure=failure,
            retry_in=round(self.next_call_at() - now),
        )
        found, earlier = after.suspicion, before.suspicion
        if found is not None and earlier is None and found.doubt is Doubt.LOST_ANSWER:
            safe_for = round(found.safe_until - now)
            emit("suspect", name, version=after.version, safe_for=safe_for)


def _is_from(grant: Grant, credential: Credential) -> bool:
    """Return True if the token's last word is this call's.

    The same token, repeated, keeps the number of an earlier call.
    """
    token = credential.token
    return token is not None and abs(token.requested_at - grant.started_at) < 1
