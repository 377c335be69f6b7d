"""Who was handed which token version, and where that is kept. Versions only, never a token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

KEPT_DAYS: Final = 30
MOST_KEPT: Final = 100_000  # rows of a store, over all apps: some 15 MB


@dataclass(frozen=True, slots=True)
class Handout:
    """What one client had to do with one version of one account's token; times are unix time.

    `count` is how often the client was handed the version, between `first_at` and `last_at`.
    `held` is how often the client said that it holds the version, the last time at `held_at`.
    Times are None where the number beside them is 0. `account` is :attr:`Account.id`.
    """

    client: str
    account: str
    version: str
    count: int = 0
    first_at: float | None = None
    last_at: float | None = None
    held: int = 0
    held_at: float | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What names the row."""
        return self.client, self.account, self.version

    @property
    def seen_at(self) -> float:
        """When the client was last handed the version or named it."""
        return max(self.last_at or 0.0, self.held_at or 0.0)

    def plus(self, other: "Handout") -> "Handout":
        """The two observations of one row, added up."""
        return Handout(
            *self.key,
            self.count + other.count,
            _of(min, self.first_at, other.first_at),
            _of(max, self.last_at, other.last_at),
            self.held + other.held,
            _of(max, self.held_at, other.held_at),
        )


def _of(
    choose: Callable[[list[float]], float], one: float | None, other: float | None
) -> float | None:
    known = [at for at in (one, other) if at is not None]
    return choose(known) if known else None


class HandoutStore(Protocol):
    """Where hand-outs are kept, added up over all brokers of a shared store.

    All methods raise StoreError, and change nothing when they do.
    """

    async def add_handouts(self, handouts: Sequence[Handout]) -> None:
        """Add what was seen since the last time to what is kept."""

    async def drop_handouts(self, before: float, most: int) -> None:
        """Forget rows last seen before that unix time, and all but the `most` seen last."""

    async def handouts(self, account: str, most: int) -> list[Handout]:
        """Return an account's rows, the one seen last first, at most so many."""
