"""The credential in force of one app, and those who wait for the next. Reading it costs no I/O."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from broker.core.credential import (
    NEVER,
    Account,
    Credential,
    Endpoint,
    HeldToken,
    Policy,
)
from broker.core.decision import RENEWED_AFTER, promised_until, safe_end, scheduled_at
from broker.core.ports import Clock, wall_offset
from broker.core.quota import Entry
from broker.core.serving import Served, TokenState
from broker.core.transitions import is_older

# A wall clock that moves so far ahead of the steady one may have run on while the machine, and its
# steady clock with it, was paused.
PAUSE_S: Final = 60.0


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
        self.previous: HeldToken | None = None  # the token before the one in force
        self._replaced_at = NEVER
        self._aged_by = wall_offset(clock)  # as it was when the token's age was last certain

    @property
    def may_be_older(self) -> bool:
        """True if the machine may have been paused while the token grew older at WeChat."""
        held, clock = self.credential, self._clock
        ahead = clock.wall() - clock.now() - self._aged_by
        return ahead > PAUSE_S and held.token is not None and not held.refused

    def trust_age(self) -> None:
        """Go by the steady clock again, since WeChat was asked, or since the token is a new one."""
        self._aged_by = wall_offset(self._clock)
        self._on_change(self.account.name)

    def adopt(self, credential: Credential) -> bool:
        """Publish a credential, unless it is older than the one in force (the fence).

        Return True if the version is another one now.
        """
        held = self.credential
        if held.token is not None and is_older(credential, held):
            return False
        self.credential = credential
        is_new = _call_of(credential) != _call_of(held)
        if is_new or credential.suspicion != held.suspicion or credential.token != held.token:
            self._time(credential)
        if is_new:
            self.previous, self._replaced_at = held.token, self._clock.now()
            self._aged_by = wall_offset(self._clock)
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
        """Return the token if it may be handed out and is promised for `min_ttl` seconds more.

        The last seconds of a WeCom token are served too: it cannot be replaced before its end
        (WECHAT.md W62). A token in doubt whose promise is over is served for a second at a time.
        """
        now, held, policy = self._clock.now(), self.credential, self.policy
        endpoint = self.account.endpoint
        is_wecom = endpoint is Endpoint.WECOM
        least = RENEWED_AFTER if is_wecom else max(policy.min_serve, 1)
        left = self._ends_at - now
        if left < max(least, min_ttl):
            return None
        promised = promised_until(held, endpoint, policy, now) - now
        if held.suspicion is not None:
            promised = max(promised, 1.0)
        if promised < min_ttl:
            return None
        is_stale = now >= self._stale_at
        # While a call is due the promise moves with the clock; rounding down strictly leaves a
        # moment in which the same answer may be repeated.
        whole = max(math.ceil(promised) - 1 if is_stale else int(promised), 1)
        state = TokenState.STALE if is_stale else TokenState.FRESH
        until = now + promised - max(whole, min_ttl, 1)
        until = min(until, self._ends_at - max(int(left), least))
        in_doubt = held.suspicion is not None or self.may_be_older
        return Served(
            held,
            whole,
            int(left),
            TokenState.SUSPECT if in_doubt else state,
            until if is_stale else min(until, self._stale_at),
        )

    def recognizes(self, token: str) -> bool:
        """Return True for the token in force, and for the one before it while that may live."""
        held, before = self.credential.token, self.previous
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


def _call_of(credential: Credential) -> tuple[str, int] | None:
    """Return what the version is made of: the epoch and the number of the token's call."""
    token = credential.token
    return None if token is None else (credential.epoch, token.call)
