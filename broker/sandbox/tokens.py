"""Tokens and what is counted: pure arithmetic on Unix seconds, no clock of its own."""

import math
import secrets
from dataclasses import dataclass, field

DAY = 86_400
_BEIJING = 8 * 3600


@dataclass
class QuotaWindow:
    """A counter that starts again with every Beijing day (WECHAT.md W17), or every ``seconds``.

    ``limit`` None counts without ever refusing.
    """

    limit: int | None = None
    seconds: int = DAY
    _number: int = 0
    _count: int = 0

    def used(self, now: float) -> int:
        """How many were taken in the window that ``now`` is in."""
        return self._count if self._number == self._at(now) else 0

    def take(self, now: float) -> bool:
        """Take one; False, and nothing taken, if the window is used up."""
        used = self.used(now)
        if self.limit is not None and used >= self.limit:
            return False
        self._number, self._count = self._at(now), used + 1
        return True

    def _at(self, now: float) -> int:
        return int((now + _BEIJING) // self.seconds)


@dataclass
class IssuedToken:
    """A token or a ticket.

    It is too old from ``expires_at`` on, and refused from ``refused_from`` on, because it was
    replaced or killed. Both are Unix seconds.
    """

    expires_at: float
    refused_from: float = math.inf
    value: str = field(default_factory=lambda: f"97_{secrets.token_urlsafe(99)}", repr=False)

    def errcode(self, now: float) -> int:
        """Return what a data API says of it (WECHAT.md W31).

        0, 40001 (pushed out or killed) or 42001 (too old).
        """
        if now >= self.refused_from:
            return 40001
        return 42001 if now >= self.expires_at else 0

    def left(self, now: float) -> int:
        """Whole seconds until it is too old."""
        return int(self.expires_at - now)

    def refuse(self, at: float) -> None:
        """Have it refused from ``at`` on; an earlier end stands."""
        self.refused_from = min(self.refused_from, at)


@dataclass
class Lineage:
    """The two generations that one endpoint knows: the current token and the one before."""

    current: IssuedToken | None = None
    previous: IssuedToken | None = None

    def alive(self) -> list[IssuedToken]:
        """Return the generations there are, the newer first."""
        return [token for token in (self.current, self.previous) if token]

    def succeed(self, heir: IssuedToken) -> IssuedToken | None:
        """Put ``heir`` on the throne; returns the token that is forgotten by it."""
        forgotten, self.previous, self.current = self.previous, self.current, heir
        return forgotten
