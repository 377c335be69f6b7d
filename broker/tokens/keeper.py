"""Keeps one live token of one app and hands it out: get, watch, report, refresh, tick.

A stale token is served; only an expired one makes a request wait. Every waiter has a deadline of
its own, and none can end the flight that others wait for. How a refresh goes is in refresher.py,
when it is due in core/decision.py and core/plan.py.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from broker.core.credential import Account, Credential, HeldToken, Policy
from broker.core.decision import check_allowed_at, steady_check_at
from broker.core.ports import Claim, Reason, Verdict
from broker.core.quota import Lane, Usage, usage
from broker.core.secret import Secret
from broker.core.serving import (
    Code,
    ReportOutcome,
    Served,
    Unavailable,
    UnavailableReason,
    seconds,
    why_not,
)
from broker.tokens.dependencies import Dependencies
from broker.tokens.refresher import Flight
from broker.tokens.upkeep import Upkeep

# How long a report waits for what another process is doing about the same token.
ELSEWHERE_S: Final = 1.0
# A request that finds no token waits for a call that is due so soon: longer than WeCom's renewal
# takes (WECHAT.md W63), and shorter than SDKs wait for an answer, which is five seconds.
DUE_SOON_S: Final = 4.5


class Keeper:
    """The keeper of one app's token. Reading the token costs no I/O.

    `on_plan_changed` is called when the next look may be due at another time than the last tick
    said. `on_left` is given an upkeep that another one has succeeded; it has to be stopped.
    """

    def __init__(
        self,
        account: Account,
        dependencies: Dependencies,
        on_plan_changed: Callable[[], None] = lambda: None,
        upkeep: Upkeep | None = None,
        on_left: Callable[[Upkeep], None] = Upkeep.stop,
    ) -> None:
        self._dependencies = dependencies
        self._on_plan_changed = on_plan_changed
        self._on_left = on_left
        self._successor: Upkeep | None = None
        # A reported version that WeChat gives no verdict on, and when it was first reported.
        self._undecided: tuple[str, float] | None = None
        self._stopping = False
        self._removed = False
        self._use(upkeep or Upkeep(account, dependencies))

    def _use(self, upkeep: Upkeep) -> None:
        self.upkeep = upkeep
        self._live, self._sync, self._refresher = upkeep.live, upkeep.sync, upkeep.refresher
        upkeep.on_plan_changed = self._plan_changed

    @property
    def account(self) -> Account:
        """The account whose token is served."""
        return self._live.account

    # --- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up what the store holds. Calls nobody. Raises StoreError."""
        await self.upkeep.start()

    def tick(self) -> float:
        """Look, act if something is due, and return the steady time of the next look.

        The plan is in the data: a lost tick costs one tick.
        """
        due_at = self.upkeep.look()
        if self._successor is not None:
            due_at = min(due_at, self._successor.look())
            self._succeed_if_ready()
        return due_at

    def _plan_changed(self) -> None:
        self._succeed_if_ready()
        self._on_plan_changed()

    def apply_policy(self, policy: Policy) -> None:
        """Go by another policy from now on."""
        for upkeep in self.upkeeps():
            upkeep.live.apply_policy(policy)
        self._on_plan_changed()

    def change_secret(self, secret: Secret) -> None:
        """Go by another AppSecret from the next call on.

        A pause that was about the secret before ends with the next look.
        """
        upkeep = self._successor or self.upkeep
        upkeep.take(replace(upkeep.account, secret=secret))

    def stop(self) -> None:
        """Begin no more calls and wake everyone who watches; memory is handed out to the end."""
        self._stopping = True
        for upkeep in self.upkeeps():
            upkeep.stop()
        self._dependencies.on_change(self.account.name)

    # --- another configuration --------------------------------------------------------------------

    def upkeeps(self) -> list[Upkeep]:
        """Return the upkeep in use, and the one that waits to succeed it."""
        return [self.upkeep] if self._successor is None else [self.upkeep, self._successor]

    def succeed(self, upkeep: Upkeep, *, at_once: bool) -> None:
        """Serve the token of this upkeep as soon as there is one, and until then as before.

        With `at_once` the token of before is not served any more, and its upkeep is the caller's.
        """
        self._successor = None if upkeep is self.upkeep else upkeep
        upkeep.on_plan_changed = self._plan_changed
        self._succeed_if_ready(at_once=at_once)

    def _succeed_if_ready(self, *, at_once: bool = False) -> None:
        successor, before = self._successor, self.upkeep
        if successor is None or not (at_once or successor.live.serve()):
            return
        self._successor = None
        self._use(successor)
        self._dependencies.on_change(self.account.name)
        before.live.wake()  # who waits for another version looks at the successor's
        if not at_once:
            self._on_left(before)
            self._dependencies.emit("app-replaced", self.account.name)

    def remove(self) -> None:
        """Serve nothing any more, since the configuration does not name the app any more."""
        self._removed = self._stopping = True
        self._dependencies.on_change(self.account.name)
        self._live.wake()

    def on_store_changed(self) -> None:
        """Another process that shares the store may have changed what it holds: look."""
        self._sync.reload_pending = True
        if self._refresher.look() is None:  # too soon after a failure: the schedule must know
            self._on_plan_changed()

    async def drain(self) -> None:
        """See the call under way to its end; it is bounded by the call timeout."""
        for upkeep in self.upkeeps():
            await upkeep.drain()

    # --- the token --------------------------------------------------------------------------------

    def serve(self, min_ttl: float = 0) -> Served | None:
        """Return the token if it may be handed out and lives at least `min_ttl` seconds more."""
        return None if self._removed else self._live.serve(min_ttl)

    async def get(self, min_ttl: float = 0, patience_s: float = 0) -> Served | Unavailable:
        """Serve at once if possible.

        Else wait, at most `patience_s`, for a refresh that is under way or due.
        """
        served = self.serve(min_ttl)
        deadline = _deadline(patience_s)
        while served is None and await self._progress(deadline):
            served = self.serve(min_ttl)
        return served or self._unavailable()

    async def changed(self, patience_s: float) -> bool:
        """Wait for a change, at most `patience_s`; return True if there was one. Starts no call."""
        return await _until(self._live.change(), _deadline(patience_s))

    async def watch(self, version: str, patience_s: float) -> Served | Unavailable | None:
        """Answer as soon as the token is another than `version`.

        None when the time is up, or the daemon stops, and it is not.
        """
        deadline = _deadline(patience_s)
        while self.credential.version == version and not self._stopping:
            if not await _until(self._live.change(), deadline):
                break
        if self.credential.version == version:
            return None if self.serve() else self._unavailable()
        return await self.get(patience_s=_left(deadline))

    async def _progress(self, deadline: float) -> bool:
        """Wait for what may bring a token; return False if nothing will before the deadline."""
        if (flight := self._refresher.look()) is not None:
            return await _until(asyncio.wait({flight}), deadline)
        if self._stopping:
            return False
        if self._refresher.flies_elsewhere:
            return await _until(self._live.change(), deadline)
        if self.credential.failure is not None:
            return False
        due_in, most = self.next_call_in(), _left(deadline)
        if due_in >= (most if self.serve() else min(most, DUE_SOON_S)):
            return False
        # The token is good, only not for as long as was asked; or nothing may be handed out until
        # the next call, which is due before the deadline (WECHAT.md W63).
        await _until(self._live.change(), min(deadline, _deadline(due_in)))
        return True

    # --- reports and orders -----------------------------------------------------------------------

    def is_current(self, *, version: str | None = None, token: str | None = None) -> bool:
        """Return True if a report names the token we hold; a report of any other costs nothing."""
        held = self.credential.token
        if held is None:
            return False
        if version is not None:
            return version == self.credential.version
        return token is not None and held.value.matches(token)

    def recognizes(self, token: str) -> bool:
        """Return True for the token in force, and for the one before it while that may live."""
        return self._live.recognizes(token)

    async def report(
        self,
        patience_s: float,
        *,
        version: str | None = None,
        token: str | None = None,
        seen: bool = False,
        is_doubt: bool = False,
    ) -> tuple[ReportOutcome, Served] | Unavailable:
        """Take a report that the token named by `version` or `token` is refused.

        It is hearsay: WeChat is asked, and on its word the token is replaced. Where WeChat gives no
        verdict (WECHAT.md W37), a second report after `verify_gap` is enough, and so is `seen`:
        this process itself has read the refusal in WeChat's answer to a call. `is_doubt`: nobody
        said so, a client has only asked again; that is never enough without a verdict.
        """
        deadline, tried = _deadline(patience_s), False
        is_current = self.is_current(version=version, token=token)
        version = self.credential.version if is_current else None
        outcome = ReportOutcome.SUPERSEDED if version is None else ReportOutcome.REFRESHED
        while version is not None and self.credential.version == version and not self._stopping:
            flight = self._refresher.look(report=True)
            if flight is None:
                soon = min(deadline, _deadline(ELSEWHERE_S))
                if self._refresher.flies_elsewhere and await _until(self._live.change(), soon):
                    continue
                tried = tried or is_doubt
                flight = None if tried else self._replace_without_verdict(version, seen=seen)
                if flight is None:
                    return self._throttled()
                tried = True
            if not await _until(asyncio.wait({flight}), deadline):
                return self._unavailable()
            if (heard := self._heard(flight, version)) is not None:
                return heard
            if flight.result() is Verdict.UNDECIDED and not is_doubt:
                self._note_undecided(version)
        if version is not None and self.credential.version == version:
            return self._unavailable()  # stopping: nobody has asked WeChat
        answer = await self.get(patience_s=_left(deadline))
        return (outcome, answer) if isinstance(answer, Served) else answer

    def _heard(
        self, flight: Flight, version: str
    ) -> tuple[ReportOutcome, Served] | Unavailable | None:
        """Return what a flight says of a reported token; None where the report must look again."""
        served = self.serve()
        if self.credential.version != version:
            return None
        if flight.result() is Verdict.ALIVE and served is not None:
            self._undecided = None
            return ReportOutcome.VERIFIED, served
        if flight.result() is Verdict.UNKNOWN:
            return Unavailable(Code.UPSTREAM_UNAVAILABLE, UnavailableReason.NOT_VERIFIED, 1)
        return None

    def _note_undecided(self, version: str) -> None:
        if self._undecided is None or self._undecided[0] != version:
            self._undecided = version, self._dependencies.clock.now()

    def _replace_without_verdict(self, version: str, *, seen: bool) -> Flight | None:
        """Begin a call at the expense of reports where WeChat gives no verdict on `version`.

        None where it may still give one, and where what was said of the token is not enough.
        """
        held, policy, now = self.credential, self._live.policy, self._dependencies.clock.now()
        if held.checks >= policy.verify_quota and now < check_allowed_at(held, policy):
            self._note_undecided(version)  # the day's verifications are spent
        if self._undecided is None or self._undecided[0] != version or held.refused:
            return None
        if not seen and now < self._undecided[1] + policy.verify_gap:
            return None
        return self._refresher.launch_call(Claim(Lane.REPORT, force=self._refresher.plan.forces))

    def _throttled(self) -> Unavailable:
        why = self._unavailable()
        if self.credential.refused:
            is_failing = self.credential.failure is not None
            return why if is_failing else replace(why, code=Code.REPORT_THROTTLED)
        now, version = self._dependencies.clock.now(), self.credential.version
        if self._undecided is not None and self._undecided[0] == version:
            wait = seconds(self._undecided[1] + self._live.policy.verify_gap - now)
            return Unavailable(Code.REPORT_THROTTLED, UnavailableReason.NO_VERDICT, wait)
        wait = seconds(check_allowed_at(self.credential, self._live.policy) - now)
        return Unavailable(Code.REPORT_THROTTLED, UnavailableReason.JUST_VERIFIED, wait)

    async def doubt(self, patience_s: float) -> None:
        """Have the token in force verified promptly, since a client seems to doubt it.

        Wait no longer than `patience_s` for what comes of it; the verification goes on behind.
        """
        await self.report(patience_s, version=self.credential.version, is_doubt=True)

    def doubt_quietly(self) -> None:
        """Have the token in force verified behind the answers, if it has not been for a while."""
        now = self._dependencies.clock.now()
        if now >= steady_check_at(self.credential, self._live.policy):
            self._refresher.look(report=True)

    async def refresh(self, patience_s: float, *, force: bool = False) -> Served | Unavailable:
        """Make a token call now for a person who wants it, within `min_gap` and the quota."""
        deadline = _deadline(patience_s)
        while (flight := self._refresher.current) is not None:
            if not await _until(asyncio.wait({flight}), deadline):
                return self._unavailable()
        if self._stopping:
            return self._unavailable()
        before = self.credential.version
        flight = self._refresher.launch_call(Claim(Lane.ADMIN, force=force))
        if not await _until(asyncio.wait({flight}), deadline):
            return self._unavailable()
        if (denial := self._refresher.denials.get(Lane.ADMIN)) is not None:
            wait = denial.until - self._dependencies.clock.now()
            why = why_not(self.credential, denial, None, wait)
            if denial.reason is Reason.QUOTA:
                return why
            too_soon = UnavailableReason.TOO_SOON
            return Unavailable(Code.REFRESH_THROTTLED, too_soon, why.retry_after)
        if self.store_error is not None and self.credential.version == before:
            return self._unavailable()
        served = None if self.credential.failure else self.serve()
        return served or self._unavailable()

    # --- for people -------------------------------------------------------------------------------

    @property
    def credential(self) -> Credential:
        """What is in force."""
        return self._live.credential

    @property
    def previous(self) -> HeldToken | None:
        """The token before the one in force, where it was seen to be replaced."""
        return self._live.previous

    @property
    def store_error(self) -> str | None:
        """What the disk refuses, while it does."""
        return self._sync.error

    def next_call_in(self) -> float:
        """Return the seconds until the next token call, as things stand; 0 where it is due."""
        return max(0.0, self._refresher.next_call_at() - self._dependencies.clock.now())

    def usage(self) -> Usage:
        """Return the token calls spent, from the ledger as last read or written."""
        clock = self._dependencies.clock
        return usage(self._live.entries, self.account.daily_quota, clock.now(), clock.wall())

    def _unavailable(self) -> Unavailable:
        if self._removed:
            return Unavailable(Code.UNKNOWN_APP, UnavailableReason.REMOVED, 1)
        if self._stopping:
            return Unavailable(Code.STOPPING, UnavailableReason.STOPPING, 1)
        lane = self._refresher.plan.claim(self._dependencies.clock.now()).lane
        denial = self._refresher.denials.get(lane)
        return why_not(self.credential, denial, self.store_error, self.next_call_in())


def _deadline(patience_s: float) -> float:
    return asyncio.get_running_loop().time() + patience_s


def _left(deadline: float) -> float:
    return max(0.0, deadline - asyncio.get_running_loop().time())


async def _until(what: Awaitable[object], deadline: float) -> bool:
    """Wait no longer than the deadline; return True if it came to pass.

    A task inside `asyncio.wait` is not cancelled with the waiter.
    """
    try:
        async with asyncio.timeout_at(deadline):
            await what
    except TimeoutError:
        return False
    return True
