"""What one app has published: the newest credential, and the ones who wait for the next.

Reading it costs no I/O.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from broker.core.credential import NEVER, Account, Credential, HeldToken, Policy
from broker.core.decision import safe_end, scheduled_at
from broker.core.ports import Clock
from broker.core.quota import Entry
from broker.core.serving import Served, TokenState
from broker.core.transitions import is_older


class LiveCredential:
    """The credential in force.

    `entries` is the ledger as last read or written; `on_change` hears before anyone is answered.
    """

    def __init__(
        self, account: Account, clock: Clock, policy: Policy, on_change: Callable[[], None]
    ) -> None:
        self.account = account
        self.credential = Credential()
        self.entries: Sequence[Entry] = ()
        self.policy = policy
        self._clock = clock
        self._on_change = on_change
        self._changed = asyncio.Event()
        self._stale_at = self._ends_at = NEVER
        self._previous: tuple[HeldToken, float] | None = (
            None  # the one before, and when it was replaced
        )

    def adopt(self, credential: Credential) -> bool:
        """Publish, unless it is older than what was served already (the fence); whether the version is another now."""
        held = self.credential
        if held.token is not None and is_older(credential, held):
            return False
        self.credential = credential
        self._stale_at = scheduled_at(credential, self.account.endpoint, self.policy)
        self._ends_at = safe_end(credential)
        self.reconsider()
        if credential.version == held.version:
            return False
        if held.token is not None:
            self._previous = held.token, self._clock.now()
        self.wake()
        return True

    def apply_policy(self, policy: Policy) -> None:
        """Go by another policy from now on."""
        self.policy = policy
        self.adopt(self.credential)

    def serve(self, min_ttl: float = 0) -> Served | None:
        """The token, if one may be handed out that lives at least `min_ttl` seconds more."""
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
        """Whether this is the token in force, or the one before while it may still live."""
        known = [self.credential.token] if self.credential.token else []
        if (
            self._previous is not None
            and self._clock.now() < self._previous[1] + self.policy.overlap
        ):
            known.append(self._previous[0])
        return any(one.value.matches(token) for one in known)

    def seconds_to_live(self) -> float:
        """Seconds the token may still be handed out; negative where it may not."""
        return self._ends_at - self._clock.now()

    def change(self) -> Awaitable[object]:
        """What to wait on for the next version."""
        return self._changed.wait()

    def reconsider(self) -> None:
        """Say that things stand otherwise than before: what is served, or what is due."""
        self._on_change()

    def wake(self) -> None:
        """Wake everyone who waits for a change."""
        self.reconsider()
        self._changed.set()
        self._changed = asyncio.Event()
