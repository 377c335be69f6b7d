"""How an app's logins go, in numbers: nothing of a user's, and nothing of a code."""

from collections import Counter
from dataclasses import dataclass, field

from broker.core.errcodes import Failure
from broker.core.login import LoginKind


@dataclass(slots=True)
class LoginRecord:
    """Since the start of the daemon: how many logins ended how, and what went wrong last.

    `news` is a failure that a person must see to (a wrong secret, an address that is not on the
    whitelist); it is None again when WeChat has taken the secret since. `last_at` is Unix time.
    """

    counts: Counter[tuple[LoginKind, str]] = field(default_factory=Counter)
    last_at: float | None = None
    failure: Failure | None = None
    failed_kind: LoginKind | None = None
    news: Failure | None = None

    def by_outcome(self) -> dict[str, int]:
        """Return how many logins of either kind ended how."""
        found: Counter[str] = Counter()
        for (_, outcome), number in self.counts.items():
            found[outcome] += number
        return dict(sorted(found.items()))
