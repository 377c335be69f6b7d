"""Keeps one live token per app and hands it out: get, watch, report, refresh, tick.

Stale is served, only expired waits; every waiter has its own deadline and none can take the flight down with it. How a
refresh goes is in flight.py, when it is due in core/credential.py.
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
from broker.core.serving import Code, Outcome, Served, Unavailable, seconds, why_not
from broker.tokens.dependencies import Tools
from broker.tokens.live import Published
from broker.tokens.refresher import Flight, Flights

ELSEWHERE_S: Final = 1.0  # how long a report waits for what another process is doing about the same token
_GAP: Final = "A token call was made less than min_gap ago, or WeChat itself asked for a pause."


class Keeper:
    """The keeper of one app's token. Reading it costs no I/O."""

    def __init__(self, account: Account, tools: Tools, on_change: Callable[[], None] | None = None) -> None:
        self.account = account
        self._tools = tools
        self._app = Published(account, tools.clock, tools.policy, on_change or tools.on_change)
        self._flights = Flights(self._app, tools)
        self._stopping = False

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up what the store holds. Calls nobody. Raises StoreError."""
        await self._flights.start()

    def tick(self) -> None:
        """Look, and act if something is due. The plan is in the data: a lost tick costs one tick."""
        self._flights.join()

    def due_at(self) -> float:
        """Steady time before which a look finds nothing to do, as things stand."""
        return self._flights.due_at()

    def govern(self, policy: Policy) -> None:
        """Go by another policy from now on."""
        self._app.govern(policy)

    def halt(self) -> None:
        """Begin no more calls and wake everyone who watches; what is in memory is handed out to the end."""
        self._stopping = True
        self._flights.halt()
        self._app.wake()

    def hear(self) -> None:
        """Another process that shares the store may have changed what it holds."""
        self._flights.hear()

    async def landed(self) -> None:
        """See the call under way to its end; it is bounded by the call timeout."""
        await self._flights.landed()

    # --- the token ----------------------------------------------------------------------------------------------------

    def serve(self, min_ttl: float = 0) -> Served | None:
        """The token, if one may be handed out that lives at least `min_ttl` seconds more."""
        return self._app.serve(min_ttl)

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
            if not await _until(self._app.change(), deadline):
                break
        if self.credential.version == version:
            return None if self.serve() else self._unavailable()
        return await self.get(patience_s=_left(deadline))

    async def _progress(self, deadline: float) -> bool:
        """Wait for what may bring a token; False where nothing will before the deadline."""
        if (flight := self._flights.join()) is not None:
            return await _until(asyncio.wait({flight}), deadline)
        if self._flights.flies_elsewhere and not self._stopping:
            return await _until(self._app.change(), deadline)
        if self._stopping or self.serve() is None or self.credential.failure is not None:
            return False
        if self.next_call_in() >= _left(deadline):
            return False
        return await _until(self._app.change(), deadline)  # the token is good, only not for as long as was asked

    # --- reports and orders -------------------------------------------------------------------------------------------

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
        return self._app.recognizes(token)

    async def report(self, patience_s: float, **named: str | None) -> tuple[Outcome, Served] | Unavailable:
        """Take a report that the token named by `version` or `token` is refused.

        It is hearsay: WeChat is asked, and only on its word the token is replaced.
        """
        deadline = _deadline(patience_s)
        version = self.credential.version if self.is_current(**named) else None
        outcome = Outcome.SUPERSEDED if version is None else Outcome.REFRESHED
        while version is not None and self.credential.version == version and not self._stopping:
            flight = self._flights.join(report=True)
            if flight is None:
                if self._flights.flies_elsewhere and await _until(self._app.change(), min(deadline, _deadline(ELSEWHERE_S))):
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
        why = self._unavailable()
        if self.credential.refused:
            return why if self.credential.failure is not None else replace(why, code=Code.REPORT_THROTTLED)
        wait = self.credential.checked_at + self._app.policy.verify_gap - self._tools.clock.now()
        return Unavailable(Code.REPORT_THROTTLED, "This token was verified a moment ago.", seconds(wait))

    async def refresh(self, patience_s: float, *, force: bool = False) -> Served | Unavailable:
        """A person wants a token call now, within `min_gap` and the quota."""
        deadline = _deadline(patience_s)
        while (flight := self._flights.current) is not None:
            if not await _until(asyncio.wait({flight}), deadline):
                return self._unavailable()
        if self._stopping:
            return self._unavailable()
        before = self.credential.version
        self._flights.books.denials.pop(Lane.ADMIN, None)
        flight = self._flights.launch(partial(self._flights.refresh, Claim(Lane.ADMIN, force=force)))
        if not await _until(asyncio.wait({flight}), deadline):
            return self._unavailable()
        if (denial := self._flights.books.denials.get(Lane.ADMIN)) is not None:
            why = why_not(self.credential, denial, None, denial.until - self._tools.clock.now())
            return why if denial.reason is Reason.QUOTA else replace(why, code=Code.REFRESH_THROTTLED, detail=_GAP)
        if self.store_error is not None and self.credential.version == before:
            return self._unavailable()
        served = None if self.credential.failure else self.serve()
        return served or self._unavailable()

    # --- for people ---------------------------------------------------------------------------------------------------

    @property
    def credential(self) -> Credential:
        """What is in force."""
        return self._app.credential

    @property
    def store_error(self) -> str | None:
        """What the disk refuses, while it does."""
        return self._flights.books.error

    def next_call_in(self) -> float:
        """Seconds until the next token call, as things stand; 0 where it is due."""
        return max(0.0, self._flights.next_call_at() - self._tools.clock.now())

    def usage(self) -> Usage:
        """Token calls spent, from the ledger as last read or written."""
        return usage(self._app.entries, self.account.daily_quota, self._tools.clock.now(), self._tools.clock.wall())

    def _unavailable(self) -> Unavailable:
        if self._stopping:
            return Unavailable(Code.STOPPING, "The broker is stopping; another one will answer in a moment.", 1)
        lane = claim_for(self.credential, self.account.endpoint, self._app.policy, self._tools.clock.now()).lane
        return why_not(self.credential, self._flights.books.denials.get(lane), self.store_error, self.next_call_in())


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
