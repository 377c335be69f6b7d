"""The credential in force of one app, and those who wait for the next. Reading it costs no I/O."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from broker.core.credential import NEVER, Account, Credential, HeldToken, Policy
from broker.core.decision import safe_end, scheduled_at
from broker.core.ports import Clock
from broker.core.quota import Entry
from broker.core.serving import Served, TokenState
from broker.core.transitions import is_older


class LiveCredential:
    """What is served. `entries` is the ledger as last read or written.

    `on_change` is called with the app's name whenever its answers become others, before anybody can
    be given one.
    """

    def __init__(
        self, account: Account, clock: Clock, policy: Policy, on_change: Callable[[str], None]
    ) -> None:
        self.account = account
        self.credential = Credential()
        self.entries: Sequence[Entry] = ()
        self.policy = policy
        self._clock = clock
        self._on_change = on_change
        self._changed = asyncio.Event()
        self._stale_at = self._ends_at = NEVER
        self._previous: HeldToken | None = None  # the token before this one
        self._replaced_at = NEVER

    def adopt(self, credential: Credential) -> bool:
        """Publish a credential, unless it is older than the one in force (the fence).

        Return True if the version is another one now.
        """
        held = self.credential
        if held.token is not None and is_older(credential, held):
            return False
        self.credential = credential
        is_new = credential.version != held.version
        if is_new or credential.suspicion != held.suspicion or credential.token != held.token:
            self._time(credential)
        if is_new:
            self._previous, self._replaced_at = held.token, self._clock.now()
            self.wake()
        return is_new

    def _time(self, credential: Credential) -> None:
        """Note until when the token is fresh, and until when it is good at all."""
        self._stale_at = scheduled_at(credential, self.account.endpoint, self.policy)
        self._ends_at = safe_end(credential)
        self._on_change(self.account.name)

    def apply_policy(self, policy: Policy) -> None:
        """Go by another policy from now on."""
        self.policy = policy
        self._time(self.credential)

    def serve(self, min_ttl: float = 0) -> Served | None:
        """Return the token if it may be handed out and lives at least `min_ttl` seconds more."""
        now = self._clock.now()
        left, least = self._ends_at - now, max(min_ttl, self.policy.min_serve, 1)
        if left < least:
            return None
        whole, is_stale = int(left), now >= self._stale_at
        until = self._ends_at - max(whole, least)
        state = TokenState.STALE if is_stale else TokenState.FRESH
        return Served(
            self.credential,
            whole,
            TokenState.SUSPECT if self.credential.suspicion else state,
            until if is_stale else min(until, self._stale_at),
        )

    def recognizes(self, token: str) -> bool:
        """Return True for the token in force, and for the one before it while that may live."""
        held, before = self.credential.token, self._previous
        if held is not None and held.value.matches(token):
            return True
        may_live = self._clock.now() < self._replaced_at + self.policy.overlap
        return before is not None and may_live and before.value.matches(token)

    def seconds_to_live(self) -> float:
        """Return the seconds for which the token may be handed out; negative where it may not."""
        return self._ends_at - self._clock.now()

    def change(self) -> Awaitable[object]:
        """Return what to await for the next version."""
        return self._changed.wait()

    def wake(self) -> None:
        """Wake everyone who waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()
