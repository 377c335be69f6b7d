"""Keeps one app's memory and the store in agreement.

What the store took is published; what it did not take is kept in memory and written again; what
another process wrote is read; what the store lost is restored.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

from broker.core import transitions
from broker.core.credential import NEVER, Credential
from broker.core.errcodes import Failure
from broker.core.outcome import OutcomeRules
from broker.core.ports import (
    STEP_S,
    Change,
    Claim,
    Decide,
    Denial,
    Denied,
    Grant,
    Minted,
    Reason,
    StoreError,
    wall_offset,
)
from broker.core.quota import Entry, Lane
from broker.core.secret import fingerprint
from broker.tokens.dependencies import Dependencies
from broker.tokens.live import LiveCredential

# How long a verification takes, as a rule, that another process has begun.
VERIFIES_WITHIN_S: Final = 2.0


class StoreSync:
    """One app's dealings with the store.

    `reload_pending`: another process may have changed what is stored. `unrecorded`: emergency calls
    that the ledger lacks. `retry_at`: steady time at which a store that failed is tried again.
    """

    def __init__(self, live: LiveCredential, dependencies: Dependencies) -> None:
        self.reload_pending = False
        self.unrecorded: deque[tuple[float, Minted | Failure]] = deque()
        self.retry_at = NEVER
        self.is_shared = not dependencies.store.sole_owner
        self.checked_elsewhere_until = NEVER
        self._live = live
        self._dependencies = dependencies
        self._error: str | None = None
        self._unsettled: tuple[Grant, str, Change] | None = None  # an outcome not yet taken
        self._unwritten: Change | None = None  # what WeChat said of the token, not yet taken
        self._wall_offset = wall_offset(dependencies.clock)  # as it was when last written down

    @property
    def error(self) -> str | None:
        """What keeps the store from working, while it does not."""
        return self._error or self._dependencies.store.last_error

    @property
    def owes(self) -> bool:
        """True if something is to be written or read, or the store is to be tried again."""
        is_unwritten = self._unsettled is not None or self._unwritten is not None
        return is_unwritten or bool(self.unrecorded) or self.reload_pending or bool(self._error)

    @property
    def wall_was_set(self) -> bool:
        """True if the wall clock was set since the account was last written."""
        clock = self._dependencies.clock
        return abs(clock.wall() - clock.now() - self._wall_offset) > STEP_S

    def outcome_rules(self) -> OutcomeRules:
        """Return the rules by which a call is judged now."""
        clock, jitter = self._dependencies.clock, self._dependencies.jitter()
        return OutcomeRules(
            self._live.account,
            self._live.policy,
            clock.now(),
            clock.wall(),
            jitter,
            shared=self.is_shared,
        )

    # --- reading ----------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take up what the store holds.

        Where a shared store cannot be reached, that is done when it is back. Raises StoreError
        where a store that is ours alone cannot be read.
        """
        try:
            held = await self._dependencies.store.load(self._live.account)
        except StoreError as error:
            if not self.is_shared:
                raise
            self.failed(error)
            self.reload_pending = True
            return
        self._take(held.credential, held.entries)
        self.found(self._dependencies.store.last_error)  # a start on a full disk: write later

    async def catch_up(self) -> None:
        """Read what others wrote and write what was left unwritten.

        Raises StoreError where nothing can be read.
        """
        if self.reload_pending:
            await self._reload()
        if self._unsettled is not None:
            await self.settle(*self._unsettled)
        elif self._unwritten is not None:
            await self.amend(self._unwritten)
        elif self._error is not None or self.wall_was_set:
            await self._write_again()

    async def _reload(self) -> None:
        self.reload_pending = False
        try:
            held = await self._dependencies.store.load(self._live.account)
        except StoreError:
            self.reload_pending = True
            raise
        memory = self._live.credential
        self.note_check(held.credential, memory)
        self._take(held.credential, held.entries)
        await self.read_repair(held.credential, memory)
        await self.after_secret_change()  # which a start without the store could not see to

    async def _write_again(self) -> None:
        """Write what is held, to see whether the store works.

        It also puts down the wall clock as it is now: after a reboot the account is known by the
        wall of the time at which it was last written.
        """
        offset = wall_offset(self._dependencies.clock)
        await self.amend(lambda held, _: held)
        if self._error is None:
            self._wall_offset = offset

    def note_check(self, found: Credential, memory: Credential) -> None:
        """Remember whether another process has begun to verify the token we hold.

        Its result is published only if it is bad.
        """
        # An instant that is read again may differ by as much as reading it took.
        is_same = found.version == memory.version
        began = is_same and found.checked_at > memory.checked_at + 1
        self.checked_elsewhere_until = found.checked_at + VERIFIES_WITHIN_S if began else NEVER

    async def read_repair(self, stored: Credential, memory: Credential) -> None:
        """Restore the token we hold to a store that lost it.

        In a shared store others may do so too, with other tokens: there each gets a call number of
        its own, by a reservation.
        """
        if not transitions.is_older(stored, memory):
            return
        if self._unsettled is not None:
            # Settling restores it. Restored before, it would look like another's and be doubted.
            self.reload_pending = True
            return
        if not self.is_shared or stored.epoch == memory.epoch:
            await self.amend(lambda held, _: transitions.read_repair(held, memory))
            return

        def decide(held: Credential, _: Sequence[Entry], now: float) -> Claim | Denial:
            if held.reserved_call is not None or not transitions.is_older(held, memory):
                return Denial(Reason.SUPERSEDED, now)
            return Claim(Lane.SCHEDULED)

        grant = await self.reserve(decide)
        if isinstance(grant, Grant):
            call = grant.call
            await self.settle(
                grant,
                "given back",
                lambda held, _: transitions.read_repair(held, memory, call),
            )

    # --- writing ----------------------------------------------------------------------------------

    async def reserve(self, decide: Decide) -> Grant | Denied:
        """Ask for a token call, and publish what is held. Raises StoreError."""
        grant = await self._dependencies.store.reserve(self._live.account, decide)
        self._error = None
        self._take(grant.credential, grant.entries)
        return grant

    async def settle(self, grant: Grant, outcome: str, change: Change) -> bool:
        """Write the outcome of a call and publish it.

        Where the store does not take it, publish it all the same and try again later. Return True
        if this was the first try.
        """
        memory, is_first = self._live.credential, self._unsettled is None
        try:
            held = await self._dependencies.store.settle(self._live.account, grant, outcome, change)
        except StoreError as error:
            self.failed(error)
            if is_first:
                self.adopt(change(memory, self._dependencies.clock.now()) or memory)
            self._unsettled = (grant, outcome, change)
        else:
            self._unsettled = self._error = None
            self.adopt(held)
        return is_first

    async def amend(self, change: Change, *, lasting: bool = False) -> bool:
        """Change what is stored, or, while the store is broken, what is in memory.

        `lasting`: the change stays true, so memory goes by it, whatever is read, until the store
        has taken it. Return True if anything changed.
        """
        try:
            credential, changed = await self._dependencies.store.amend(self._live.account, change)
        except StoreError as error:
            self.failed(error)
            amended = change(self._live.credential, self._dependencies.clock.now())
            credential, changed = amended or self._live.credential, amended is not None
            if lasting:
                self._unwritten = change
        else:
            if change is self._unwritten:
                self._unwritten = None
            # A change that changes nothing is not written: it says nothing of a full disk.
            if changed and self._unsettled is None and not self.unrecorded:
                self._error = None
        self.adopt(credential)
        return changed

    async def after_secret_change(self) -> None:
        """End a pause that was about another AppSecret than the one in use now."""
        held = self._live.credential
        known = fingerprint(self._live.account.secret, held.epoch)
        if transitions.after_secret_change(held, known) is not None:
            await self.amend(
                lambda credential, _: transitions.after_secret_change(credential, known)
            )

    def adopt(self, credential: Credential) -> None:
        """Publish a credential, changed by what the store has not taken yet."""
        if self._unwritten is not None:
            credential = self._unwritten(credential, self._dependencies.clock.now()) or credential
        self._live.adopt(credential)

    def failed(self, error: StoreError) -> None:
        """Rest for a tick: the store has failed."""
        self.found(str(error))
        self.retry_at = self._dependencies.clock.now() + self._live.policy.tick

    def found(self, error: str | None) -> None:
        """Note what keeps the store from working, None where it works; emit it once."""
        if error is not None and self._error is None:
            self._dependencies.emit("store-failed", self._live.account.name, reason=error)
        self._error = error

    def _take(self, credential: Credential, entries: Sequence[Entry]) -> None:
        self._live.entries = entries
        self.adopt(credential)
