"""Keeps one live token per app and hands it out: get, watch, report, refresh, tick.

Stale is served, only expired waits; every waiter has its own deadline and none can take the flight
down with it. How a refresh goes is in refresher.py, when it is due in core/decision.py.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Final

from broker.core.credential import Account, Credential, Policy
from broker.core.ports import Claim, Reason, Verdict
from broker.core.quota import Lane, Usage, usage
from broker.core.reservation import claim_for
from broker.core.serving import Code, ReportOutcome, Served, Unavailable, seconds, why_not
from broker.tokens.dependencies import Dependencies
from broker.tokens.live import LiveCredential
from broker.tokens.refresher import Flight, Refresher

ELSEWHERE_S: Final = (
    1.0  # how long a report waits for what another process is doing about the same token
)
_GAP: Final = "A token call was made less than min_gap ago, or WeChat itself asked for a pause."


class Keeper:
    """The keeper of one app's token. Reading it costs no I/O."""

    def __init__(
        self,
        account: Account,
        dependencies: Dependencies,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.account = account
        self._dependencies = dependencies
        self._live = LiveCredential(
            account, dependencies.clock, dependencies.policy, on_change or dependencies.on_change
        )
        self._refresher = Refresher(self._live, dependencies)
        self._stopping = False

    # --- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up what the store holds. Calls nobody. Raises StoreError."""
        await self._refresher.start()

    def tick(self) -> None:
        """Look, and act if something is due.

        The plan is in the data: a lost tick costs one tick.
        """
        self._refresher.join()

    def due_at(self) -> float:
        """Steady time before which a look finds nothing to do, as things stand."""
        return self._refresher.due_at()

    def apply_policy(self, policy: Policy) -> None:
        """Go by another policy from now on."""
        self._live.apply_policy(policy)

    def stop(self) -> None:
        """Begin no more calls and wake everyone who watches; what is in memory is handed out to the end."""
        self._stopping = True
        self._refresher.stop()
        self._live.wake()

    def on_store_changed(self) -> None:
        """Another process that shares the store may have changed what it holds."""
        self._refresher.on_store_changed()

    async def drain(self) -> None:
        """See the call under way to its end; it is bounded by the call timeout."""
        await self._refresher.drain()

    # --- the token --------------------------------------------------------------------------------

    def serve(self, min_ttl: float = 0) -> Served | None:
        """The token, if one may be handed out that lives at least `min_ttl` seconds more."""
        return self._live.serve(min_ttl)

    async def get(self, min_ttl: float = 0, patience_s: float = 0) -> Served | Unavailable:
        """Serve at once if possible; else wait, at most `patience_s`, for a refresh that is under way or due."""
        served = self.serve(min_ttl)
        deadline = _deadline(patience_s)
        while served is None and await self._progress(deadline):
            served = self.serve(min_ttl)
        return served or self._unavailable()

    async def watch(self, version: str, patience_s: float) -> Served | Unavailable | None:
        """Answer as soon as the token is another than `version`; None when the time is up (or we stop) and it is not."""
        deadline = _deadline(patience_s)
        while self.credential.version == version and not self._stopping:
            if not await _until(self._live.change(), deadline):
                break
        if self.credential.version == version:
            return None if self.serve() else self._unavailable()
        return await self.get(patience_s=_left(deadline))

    async def _progress(self, deadline: float) -> bool:
        """Wait for what may bring a token; False where nothing will before the deadline."""
        if (flight := self._refresher.join()) is not None:
            return await _until(asyncio.wait({flight}), deadline)
        if self._refresher.flies_elsewhere and not self._stopping:
            return await _until(self._live.change(), deadline)
        if self._stopping or self.serve() is None or self.credential.failure is not None:
            return False
        if self.next_call_in() >= _left(deadline):
            return False
        return await _until(
            self._live.change(), deadline
        )  # the token is good, only not for as long as was asked

    # --- reports and orders -----------------------------------------------------------------------

    def is_current(self, *, version: str | None = None, token: str | None = None) -> bool:
        """Whether a report names the token we hold; a report of any other costs nothing."""
        held = self.credential.token
        if held is None:
            return False
        if version is not None:
            return version == self.credential.version
        return token is not None and held.value.matches(token)

    def recognizes(self, token: str) -> bool:
        """Whether this is the token in force, or the one before while it may still live."""
        return self._live.recognizes(token)

    async def report(
        self, patience_s: float, **named: str | None
    ) -> tuple[ReportOutcome, Served] | Unavailable:
        """Take a report that the token named by `version` or `token` is refused.

        It is hearsay: WeChat is asked, and only on its word the token is replaced.
        """
        deadline = _deadline(patience_s)
        version = self.credential.version if self.is_current(**named) else None
        outcome = ReportOutcome.SUPERSEDED if version is None else ReportOutcome.REFRESHED
        while version is not None and self.credential.version == version and not self._stopping:
            flight = self._refresher.join(report=True)
            if flight is None:
                if self._refresher.flies_elsewhere and await _until(
                    self._live.change(), min(deadline, _deadline(ELSEWHERE_S))
                ):
                    continue
                return self._throttled()
            if not await _until(asyncio.wait({flight}), deadline):
                return self._unavailable()
            if (heard := self._heard(flight, version)) is not None:
                return heard
        if version is not None and self.credential.version == version:
            return self._unavailable()  # stopping: nobody has asked WeChat
        answer = await self.get(patience_s=_left(deadline))
        return (outcome, answer) if isinstance(answer, Served) else answer

    def _heard(
        self, flight: Flight, version: str
    ) -> tuple[ReportOutcome, Served] | Unavailable | None:
        """What a flight says of a reported token; None where the report must look again."""
        served = self.serve()
        if self.credential.version != version:
            return None
        if flight.result() is Verdict.ALIVE and served is not None:
            return ReportOutcome.VERIFIED, served
        if flight.result() is Verdict.UNKNOWN:
            return Unavailable(
                Code.UPSTREAM_UNAVAILABLE, "WeChat could not be asked whether the token lives.", 1
            )
        return None

    def _throttled(self) -> Unavailable:
        why = self._unavailable()
        if self.credential.refused:
            return (
                why
                if self.credential.failure is not None
                else replace(why, code=Code.REPORT_THROTTLED)
            )
        wait = (
            self.credential.checked_at
            + self._live.policy.verify_gap
            - self._dependencies.clock.now()
        )
        return Unavailable(
            Code.REPORT_THROTTLED, "This token was verified a moment ago.", seconds(wait)
        )

    async def refresh(self, patience_s: float, *, force: bool = False) -> Served | Unavailable:
        """A person wants a token call now, within `min_gap` and the quota."""
        deadline = _deadline(patience_s)
        while (flight := self._refresher.current) is not None:
            if not await _until(asyncio.wait({flight}), deadline):
                return self._unavailable()
        if self._stopping:
            return self._unavailable()
        before = self.credential.version
        self._refresher.store_sync.denials.pop(Lane.ADMIN, None)
        flight = self._refresher.launch(
            partial(self._refresher.refresh, Claim(Lane.ADMIN, force=force))
        )
        if not await _until(asyncio.wait({flight}), deadline):
            return self._unavailable()
        if (denial := self._refresher.store_sync.denials.get(Lane.ADMIN)) is not None:
            why = why_not(
                self.credential, denial, None, denial.until - self._dependencies.clock.now()
            )
            return (
                why
                if denial.reason is Reason.QUOTA
                else replace(why, code=Code.REFRESH_THROTTLED, detail=_GAP)
            )
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
    def store_error(self) -> str | None:
        """What the disk refuses, while it does."""
        return self._refresher.store_sync.error

    def next_call_in(self) -> float:
        """Seconds until the next token call, as things stand; 0 where it is due."""
        return max(0.0, self._refresher.next_call_at() - self._dependencies.clock.now())

    def usage(self) -> Usage:
        """Token calls spent, from the ledger as last read or written."""
        return usage(
            self._live.entries,
            self.account.daily_quota,
            self._dependencies.clock.now(),
            self._dependencies.clock.wall(),
        )

    def _unavailable(self) -> Unavailable:
        if self._stopping:
            return Unavailable(
                Code.STOPPING, "The broker is stopping; another one will answer in a moment.", 1
            )
        lane = claim_for(
            self.credential,
            self.account.endpoint,
            self._live.policy,
            self._dependencies.clock.now(),
        ).lane
        return why_not(
            self.credential,
            self._refresher.store_sync.denials.get(lane),
            self.store_error,
            self.next_call_in(),
        )


def _deadline(patience_s: float) -> float:
    return asyncio.get_running_loop().time() + patience_s


def _left(deadline: float) -> float:
    return max(0.0, deadline - asyncio.get_running_loop().time())


async def _until(what: Awaitable[object], deadline: float) -> bool:
    """Wait no longer than the deadline; whether it came to pass.

    A task inside `asyncio.wait` is not cancelled with us.
    """
    try:
        async with asyncio.timeout_at(deadline):
            await what
    except TimeoutError:
        return False
    return True
