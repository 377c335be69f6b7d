"""What one app has published: the newest credential, and the ones who wait for the next. Reading it costs no I/O."""

import asyncio
from collections.abc import Awaitable, Sequence

from broker.core.credential import NEVER, Account, Credential, Policy, is_older, safe_end, scheduled_at
from broker.core.ports import Clock
from broker.core.quota import Entry
from broker.core.serving import Served, State


class Published:
    """The credential in force. `entries` is the ledger as last read or written."""

    def __init__(self, account: Account, clock: Clock, policy: Policy) -> None:
        self.account = account
        self.credential = Credential()
        self.entries: Sequence[Entry] = ()
        self.policy = policy
        self._clock = clock
        self._changed = asyncio.Event()
        self._stale_at = self._ends_at = NEVER

    def adopt(self, credential: Credential) -> bool:
        """Publish, unless it is older than what was served already (the fence); whether the version is another now."""
        held = self.credential
        if held.token is not None and is_older(credential, held):
            return False
        self.credential = credential
        self._stale_at = scheduled_at(credential, self.account.endpoint, self.policy)
        self._ends_at = safe_end(credential)
        if credential.version == held.version:
            return False
        self.wake()
        return True

    def govern(self, policy: Policy) -> None:
        """Go by another policy from now on."""
        self.policy = policy
        self.adopt(self.credential)

    def serve(self, min_ttl: float = 0) -> Served | None:
        """The token, if one may be handed out that lives at least `min_ttl` seconds more."""
        now = self._clock.now()
        left = self._ends_at - now
        if left < max(min_ttl, self.policy.min_serve, 1):
            return None
        state = State.STALE if now >= self._stale_at else State.FRESH
        return Served(self.credential, int(left), State.SUSPECT if self.credential.suspicion else state)

    def seconds_to_live(self) -> float:
        """Seconds the token may still be handed out; negative where it may not."""
        return self._ends_at - self._clock.now()

    def change(self) -> Awaitable[object]:
        """What to wait on for the next version."""
        return self._changed.wait()

    def wake(self) -> None:
        """Wake everyone who waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()
