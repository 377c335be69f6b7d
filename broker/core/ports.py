"""What the keeper needs of the world, and what both sides owe each other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol

from broker.core.credential import Account, Credential
from broker.core.errcodes import Failure
from broker.core.quota import Entry, Lane, Limit
from broker.core.secret import Secret


class StoreError(Exception):
    """The store cannot do it now (disk full, read-only, locked, damaged).

    The text is for the operator and holds no token.
    """


class StoreBusy(Exception):  # noqa: N818 -- a state, not a fault
    """Another daemon owns the store."""


class StoreRefused(Exception):  # noqa: N818 -- the same
    """The store must not be opened as it is (newer schema, readable by others, a symlink).

    The text names the cure.
    """


STEP_S: Final = 5.0  # a wall clock that moves so far against the steady one was set


class Clock(Protocol):
    """Two clocks: one to count with, one to show."""

    def now(self) -> float:
        """Return steady seconds: they run through suspend, and nobody can set them.

        Comparable within one boot only.
        """

    def wall(self) -> float:
        """Return unix time, as right as the machine's clock."""


def wall_offset(clock: Clock) -> float:
    """Return what the wall clock would have shown when the steady clock was at 0, in unix seconds.

    Another value later means that the wall clock was set in between.
    """
    return clock.wall() - clock.now()


@dataclass(frozen=True, slots=True)
class Minted:
    """WeChat's good answer; `expires_in` in seconds, within (0, 86400]."""

    token: Secret
    expires_in: float


class Verdict(StrEnum):
    """What WeChat says of a token we asked about."""

    ALIVE = "alive"
    DEAD = "dead"
    UNDECIDED = "undecided"  # it answered, and not to the question: a limit, a missing right
    UNKNOWN = "unknown"  # it could not be asked


class Upstream(Protocol):
    """WeChat.

    Neither method raises for anything the network or WeChat may do; both end within the call
    timeout.

    What goes over the wire is one request per call of a method: no repetition, no redirect, no
    second host.
    """

    async def fetch(self, account: Account, *, force: bool) -> Minted | Failure:
        """Spend one token call.

        `force` asks the stable endpoint for another token than the current one.
        """

    async def check(self, account: Account, token: Secret) -> Verdict:
        """Ask whether a token is alive; costs no token quota."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A wish to make a token call: on whose behalf, and of which kind."""

    lane: Lane
    force: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """A reserved call: its row is durable, its outcome is open.

    `entries` is the ledger with this call in it.
    """

    call: int
    started_at: float
    claim: Claim
    credential: Credential
    entries: Sequence[Entry]


class Reason(StrEnum):
    """Why a reservation was not granted."""

    SUPERSEDED = "superseded"  # somebody replaced the token meanwhile
    IN_FLIGHT = "in-flight"  # somebody's call is under way
    TOO_SOON = "too-soon"  # min_gap, or a pause after failures
    QUOTA = "quota"


@dataclass(frozen=True, slots=True)
class Denial:
    """No call: why, and the steady time from which it is worth asking again.

    `limit` names the limit that is reached, where that is the reason.
    """

    reason: Reason
    until: float
    limit: Limit | None = None


@dataclass(frozen=True, slots=True)
class Denied:
    """A denial, with what the store holds."""

    denial: Denial
    credential: Credential
    entries: Sequence[Entry]


Decide = Callable[[Credential, Sequence[Entry], float], Claim | Denial]
Change = Callable[[Credential, float], Credential | None]


@dataclass(frozen=True, slots=True)
class Held:
    """What the store holds for an account: its state, and the calls that still count."""

    credential: Credential
    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class Node:
    """One of the processes that share a store, as it last reported itself.

    Times are unix seconds by the store's clock.

    `notified_at`: when it last heard from the store that another one changed something. `versions`:
    by account, what it serves.
    """

    name: str
    seen_at: float
    notified_at: float | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)


OnStoreChanged = Callable[[str | None], None]
Versions = Callable[[], Mapping[str, str | None]]


class Store(Protocol):
    """Where tokens and the ledger live, for one process (SQLite) or several (a shared database).

    The store owes: each method is one transaction; `reserve` and `settle` are durable when they
    return; `decide` and `change` see what is stored at that moment, under a lock that keeps others
    of the same account out, and the store's own `now` (a shared store has its own clock) put on the
    caller's steady clock. Every instant it returns is on that clock. No version recurs: where what
    it holds is older than what it handed out once, it begins a new epoch. The caller owes: `decide`
    and `change` are pure and fast, and may run on another thread; one `settle` per grant. All
    methods raise StoreError, and change nothing when they do.
    """

    sole_owner: (
        bool  # nobody else can have a call under way: an open reservation at start is a crash's
    )

    @property
    def last_error(self) -> str | None:
        """What keeps the store from working, as far as is known without asking it; or None."""

    @property
    def node(self) -> str:
        """This process's name among those that share it; empty where it has a sole owner."""

    @property
    def nodes(self) -> Sequence[Node]:
        """The processes that share the store, this one included, as last read.

        Empty where the store has a sole owner.
        """

    def watch(self, on_store_changed: OnStoreChanged, versions: Versions) -> None:
        """Call `on_store_changed(id)` on the loop when another process may have changed an account.

        `on_store_changed(None)` says that any of them may have changed.

        A hint: it may come late, twice or for nothing, but after each change that is not our own
        one comes, if need be when the connection is back. `versions` is asked now and then for what
        this process serves, to tell the others.
        """

    async def load(self, account: Account) -> Held:
        """Return what is held, an empty credential for a new account.

        A reservation that a crash left open is still in `reserved_call`; what it means is the
        caller's to say.
        """

    async def reserve(self, account: Account, decide: Decide) -> Grant | Denied:
        """Decide about a token call and, if it is to be made, write its ledger row."""

    async def settle(
        self,
        account: Account,
        grant: Grant,
        outcome: str,
        change: Change,
        *,
        emergency: bool = False,
    ) -> Credential:
        """Write the outcome of a call and what it changes.

        Return what is held afterwards, which may be a newer token.

        `emergency` says in the ledger that the call was made while the store was broken. Where the
        reservation is no longer this grant's (another process took it for dead), `change` sees that
        in `reserved_call`, and the ledger row says `lease_lost`.
        """

    async def amend(self, account: Account, change: Change) -> tuple[Credential, bool]:
        """Change what is held, unless `change` returns None.

        Return what is held afterwards, and True if this call changed it.
        """

    async def history(self, since: float, account: Account) -> list[dict[str, Any]]:
        """Return an account's calls since a wall time, oldest first.

        Each is a row with lane, forced, outcome, emergency, lease_lost, wall_at and more.
        """

    async def close(self) -> None:
        """Finish what is under way and let go of the files."""


class EventSink(Protocol):
    """Who is told what happened: the log and the metrics. Never given a token or a secret."""

    def __call__(self, event: str, app: str, **facts: object) -> None:
        """Take note; must not raise or block."""
