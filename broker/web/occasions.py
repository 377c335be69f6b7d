"""What may happen a thousand times a second is said seldom, with how often it has happened."""

from collections.abc import Callable, Hashable
from typing import Final

MOST_KNOWN: Final = 1024


class Occasions:
    """Says of each kind of thing when it is time to speak of it: at once, then every `gap_s`.

    `now` gives steady seconds. At most MOST_KNOWN kinds are remembered.
    """

    def __init__(self, now: Callable[[], float], gap_s: float) -> None:
        self._now = now
        self._gap_s = gap_s
        self._known: dict[Hashable, tuple[float, int]] = {}  # spoken of when, not told since

    def note(self, kind: Hashable) -> int:
        """Note that it happened. Return how often since it was last told; 0 if not to tell now."""
        now = self._now()
        told_at, silent = self._known.get(kind, (float("-inf"), 0))
        if now < told_at + self._gap_s:
            self._known[kind] = told_at, silent + 1
            return 0
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[kind] = now, 0
        return silent + 1
