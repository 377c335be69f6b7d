"""What was seen by the clients, the sandbox and the database, and what was done to them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.history.audit import Event


@dataclass(frozen=True)
class Rules:
    """What the brokers were told; seconds where a time. `quota` is by appid."""

    lifetime: float
    overlap: float
    lease: float
    quota: dict[str, int]


@dataclass(frozen=True)
class Answer:
    """What one client got; unix times.

    `life` counts a node's starts; `digest` is the token's SHA-256 in hex.
    """

    sent_at: float
    received_at: float
    node: str
    life: int
    appid: str
    asked: str
    status: int
    version: str = ""
    digest: str = ""
    expires_in: int = 0
    code: str = ""


@dataclass
class Blow:
    """One fault: from when to when things were not as they should be.

    `on`: the node it struck, or "" for all.
    """

    kind: str
    began_at: float
    on: str = ""
    step: str = ""
    healed_at: float | None = None

    def touches(self, since: float, until: float) -> bool:
        """Whether it lasted in that time."""
        return self.began_at <= until and (self.healed_at is None or self.healed_at >= since)


@dataclass
class History:
    """All of it.

    `calls` is the sandbox's log; `lost` are ledger rows that a failover lost; `synchronous`: none
    may be.

    `lives`: when each life of a node began; `converged_s`: how long after a healing all nodes
    agreed.
    """

    rules: Rules
    synchronous: bool = True
    answers: list[Answer] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    lost: list[dict[str, Any]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    blows: list[Blow] = field(default_factory=list)
    lives: dict[tuple[str, int], float] = field(default_factory=dict)
    converged_s: list[float] = field(default_factory=list)
    promoted_at: float | None = None

    def tokens(self) -> Iterable[Answer]:
        """The answers with a token."""
        return (answer for answer in self.answers if answer.status == 200 and answer.digest)

    def of_client(self, appid: str) -> list[dict[str, Any]]:
        """The token calls of our own, in the order in which they arrived."""
        return [call for call in self.calls if call["appid"] == appid and call["by"] == "client"]

    def summary(self) -> str:
        """In a line."""
        kinds = sorted({f"{blow.kind} {blow.step}".strip() for blow in self.blows})
        orphans = sum(row["outcome"] is None for row in self.ledger)
        lease_lost = sum(row["lease_lost"] for row in self.ledger)
        return (
            f"{len(self.blows)} faults ({', '.join(kinds)}), {len(self.answers)} answers,"
            f" {len(self.calls)} calls, {len(self.ledger)} rows ({orphans} orphans,"
            f" {lease_lost} without their lease, {len(self.lost)} lost)"
        )
