"""One app's dealings with the store: what is written is published, and what the store does not take is kept in memory."""

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

VERIFIES_WITHIN_S: Final = (
    2.0  # how long a verification takes that another process has begun, as a rule
)


class StoreSync:
    """`reload_pending`: another process may have changed what is stored.

    `unrecorded`: emergency calls that the ledger lacks.

    `denials` are why the ledger denied calls, by lane, until another token comes; `resume_at` is
    when a store that failed, or a bug, is tried again.
    """

    def __init__(self, live: LiveCredential, dependencies: Dependencies) -> None:
        self.denials: dict[Lane, Denial] = {}
        self.reload_pending = False
        self.unrecorded: deque[tuple[float, Minted | Failure]] = deque()
        self.resume_at = NEVER
        self.is_shared = not dependencies.store.sole_owner
        self.checked_elsewhere_until = NEVER
        self._live = live
        self._dependencies = dependencies
        self._error: str | None = None
        self._unsettled: tuple[Grant, str, Change] | None = (
            None  # an outcome the store did not take
        )
        self._unwritten: Change | None = (
            None  # what WeChat said of the token, and the store did not take
        )
        self._wall_offset = wall_offset(dependencies.clock)  # as it was when last written down

    @property
    def error(self) -> str | None:
        """What keeps the store from working, while it does not."""
        return self._error or self._dependencies.store.last_error

    @property
    def owe(self) -> bool:
        """Whether something is to be written down, or read, or whether the store works again."""
        is_unwritten = (
            self._unsettled is not None or self._unwritten is not None or bool(self.unrecorded)
        )
        return is_unwritten or self.reload_pending or self._error is not None

    @property
    def wall_was_set(self) -> bool:
        """Whether the wall clock was set since the account was last written."""
        return abs(wall_offset(self._dependencies.clock) - self._wall_offset) > STEP_S

    def outcome_rules(self) -> OutcomeRules:
        """Who judges calls, as of now."""
        clock, spread = self._dependencies.clock, self._dependencies.jitter()
        return OutcomeRules(
            self._live.account,
            self._live.policy,
            clock.now(),
            clock.wall(),
            spread,
            shared=self.is_shared,
        )

    async def open(self) -> None:
        """Take up what the store holds. Raises StoreError."""
        held = await self._dependencies.store.load(self._live.account)
        self._take(held.credential, held.entries)

    async def after_secret_change(self) -> None:
        """End a pause that was about another AppSecret than the one in use now."""
        known = fingerprint(self._live.account.secret, self._live.credential.epoch)
        if transitions.after_secret_change(self._live.credential, known) is not None:
            await self.amend(
                lambda credential, _: transitions.after_secret_change(credential, known)
            )

    async def catch_up(self) -> None:
        """Read what others wrote, write what was left unwritten.

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

    async def _write_again(self) -> None:
        """Write what is held: to see whether the store works, and since after a reboot it is known by the wall of that time."""
        offset = wall_offset(self._dependencies.clock)
        await self.amend(lambda held, _: held)
        if self._error is None:
            self._wall_offset = offset

    async def _reload(self) -> None:
        self.reload_pending = False
        try:
            held = await self._dependencies.store.load(self._live.account)
        except StoreError:
            self.reload_pending = True
            raise
        memory = self._live.credential
        self.note_check(held.credential, memory)
        self.denials.clear()
        self._take(held.credential, held.entries)
        await self.read_repair(held.credential, memory)

    async def read_repair(self, stored: Credential, memory: Credential) -> None:
        """Where the store lost the token that we hold, let it have it again.

        In a shared store others may do so too, with other tokens: there a number of its own is
        reserved for each.
        """
        if not transitions.is_older(stored, memory):
            return
        if self._unsettled is not None:
            # Settling brings it back; given back before, it would look like another's, and be
            # doubted
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
                grant, "given back", lambda held, _: transitions.read_repair(held, memory, call)
            )

    def note_check(self, found: Credential, memory: Credential) -> None:
        """Remember that another process has begun to verify, if it has; what comes of it is heard only if it is bad."""
        # An instant read again may differ by what it took to read it.
        began = found.version == memory.version and found.checked_at > memory.checked_at + 1
        self.checked_elsewhere_until = found.checked_at + VERIFIES_WITHIN_S if began else NEVER

    async def reserve(self, decide: Decide) -> Grant | Denied:
        """Ask for a token call, and publish what is held. Raises StoreError."""
        grant = await self._dependencies.store.reserve(self._live.account, decide)
        self._error = None
        self._take(grant.credential, grant.entries)
        return grant

    async def settle(self, grant: Grant, outcome: str, change: Change) -> bool:
        """Write the outcome and publish it; where the store does not take it, publish it all the same and try again.

        Whether this was the first time.
        """
        memory, again = self._live.credential, self._unsettled is not None
        try:
            held = await self._dependencies.store.settle(self._live.account, grant, outcome, change)
        except StoreError as error:
            self.failed(error)
            if not again:
                self.adopt(change(memory, self._dependencies.clock.now()) or memory)
            self._unsettled = (grant, outcome, change)
        else:
            self._unsettled = self._error = None
            self.adopt(held)
        return not again

    async def amend(self, change: Change, *, lasting: bool = False) -> bool:
        """Change what is stored, or, while the store is broken, what is in memory; whether anything changed.

        `lasting`: it stays true, so memory goes by it, whatever is read, until the store has taken
        it.
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
            if self._unsettled is None and not self.unrecorded:
                self._error = None
        self.adopt(credential)
        return changed

    def adopt(self, credential: Credential) -> None:
        """Publish, and begin anew with a new token."""
        if self._unwritten is not None:
            credential = self._unwritten(credential, self._dependencies.clock.now()) or credential
        if self._live.adopt(credential):
            self.denials.clear()

    def failed(self, error: StoreError) -> None:
        """The store has failed: rest for a tick."""
        self.stand(str(error))
        self.resume_at = self._dependencies.clock.now() + self._live.policy.tick

    def stand(self, error: str | None) -> None:
        """What keeps the store from working, as was just found, and said once; None where it works."""
        if error is not None and self._error is None:
            self._dependencies.emit("store-failed", self._live.account.name, reason=error)
        self._error = error

    def _take(self, credential: Credential, entries: Sequence[Entry]) -> None:
        self._live.entries = entries
        self.adopt(credential)
