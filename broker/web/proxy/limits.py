"""How much may go through the proxy at once, and in a second."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from broker.config.schema import ProxyTable

MOST_KNOWN: Final = 4096


class Busy(Exception):  # noqa: N818 -- an answer, raised
    """Too many; the text says of what."""


class TooFast(Busy):
    """One client makes too many requests: its service loops, or `rate` is too small."""


class ProxyLimits:
    """Those of the configuration's `[proxy]`, on the clock `now` (steady seconds)."""

    def __init__(self, table: ProxyTable, now: Callable[[], float]) -> None:
        self._rate, self._burst, self._most, self._now = (
            table.rate,
            table.burst,
            table.max_concurrency,
            now,
        )
        self._left: dict[str, tuple[float, float]] = {}  # by client: what was left, and when
        self._under_way: Counter[str] = Counter()

    @contextmanager
    def passing(self, client: str, app: str) -> Iterator[None]:
        """A call of that client for that app, while it is under way. Raises Busy, TooFast."""
        self._take(client)
        if self._under_way[app] >= self._most:
            raise Busy(f"{self._most} calls of this app are under way")
        self._under_way[app] += 1
        try:
            yield
        finally:
            self._under_way[app] -= 1

    def _take(self, client: str) -> None:
        now = self._now()
        left, at = self._left.get(client, (float(self._burst), now))
        left = min(self._burst, left + (now - at) * self._rate)
        if len(self._left) >= MOST_KNOWN:
            self._left.clear()  # names come from the configuration, which may be read often
        self._left[client] = (left - 1 if left >= 1 else left, now)
        if left < 1:
            raise TooFast(f"this client may make {self._rate:g} requests a second")
