"""How many logins may be under way and how fast they may come, for each client and app.

Limits are kept by pairs of client and app, so that a client which floods one app takes nothing from
other clients, nor from its own logins with other apps.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

MOST_AT_ONCE: Final = 256  # over all clients and apps: each takes a file descriptor
MOST_PAIRS: Final = 4096


class LoginLimitsTable(Protocol):
    """What is configured: `rate` is logins a second, `burst` how many of them may come at once."""

    @property
    def rate(self) -> float: ...  # noqa: D102 -- said above
    @property
    def burst(self) -> int: ...  # noqa: D102
    @property
    def max_concurrency(self) -> int: ...  # noqa: D102


class LoginsBusyError(Exception):
    """No call is made, so the code is still good. The text says of what there is too much."""

    outcome = "busy"


class LoginsTooFastError(LoginsBusyError):
    """A client's logins with one app come faster than they may."""

    outcome = "too-fast"


class LoginLimits:
    """Counts logins on the clock `now` (steady seconds)."""

    def __init__(self, table: LoginLimitsTable, now: Callable[[], float]) -> None:
        self._table, self._now = table, now
        self._left: dict[tuple[str, str], tuple[float, float]] = {}  # what was left, and when
        self._under_way: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def passing(self, client: str, app: str) -> Iterator[None]:
        """Hold a place for one call.

        Raises LoginsBusyError or LoginsTooFastError where there is none.
        """
        pair = client, app
        self._take(pair)
        if self._under_way[pair] >= self._table.max_concurrency:
            raise LoginsBusyError(
                f"{self._table.max_concurrency} logins of this client are under way"
            )
        if self._under_way.total() >= MOST_AT_ONCE:
            raise LoginsBusyError(f"{MOST_AT_ONCE} logins are under way")
        self._under_way[pair] += 1
        try:
            yield
        finally:
            self._under_way[pair] -= 1
            if not self._under_way[pair]:
                del self._under_way[pair]

    def _take(self, pair: tuple[str, str]) -> None:
        now, rate, burst = self._now(), self._table.rate, self._table.burst
        left, at = self._left.get(pair, (float(burst), now))
        left = min(float(burst), left + (now - at) * rate)
        if pair not in self._left and len(self._left) >= MOST_PAIRS:
            self._left.clear()  # names come from the configuration, which may be read often
        self._left[pair] = (left - 1 if left >= 1 else left, now)
        if left < 1:
            raise LoginsTooFastError(f"this client may make {rate:g} logins a second")
