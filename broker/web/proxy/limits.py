"""How much may go through the proxy: calls under way of a client and of an app, and their rate.

Apps share one pool of connections. An app may have as many calls under way as there are places left
in it: one that takes all it can get leaves half, and however many do so, the next one finds some.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final

from broker.config.schema import ProxyTable
from broker.web.gate import LOCAL, LOCAL_SOCKET, Client
from broker.web.proxy.session import MOST_CONNECTIONS

MOST_KNOWN: Final = 4096


class Busy(Exception):  # noqa: N818 -- an answer, raised
    """Too many; the text says of what."""


class TooFast(Busy):
    """One client makes too many requests: its service loops, or `rate` is too small."""


class ProxyLimits:
    """Those of the configuration's `[proxy]`, on the clock `now` (steady seconds)."""

    def __init__(self, table: ProxyTable, now: Callable[[], float]) -> None:
        self._table, self._now = table, now
        self._left: dict[str, tuple[float, float]] = {}  # by client: what was left, and when
        self._of_client: Counter[str] = Counter()
        self._of_app: Counter[str] = Counter()
        self._total = 0

    def under_way(self, app: str) -> int:
        """Return how many calls for an app are under way."""
        return self._of_app[app]

    def passing(self, client: Client, app: str) -> "CallPlace":
        """A call of that client for that app, while it is under way. Raises Busy, TooFast.

        Where no clients are configured, only the app's limits hold: programs cannot be told apart.
        """
        name = client.name
        self._take(name)
        has_others = client is not LOCAL and client is not LOCAL_SOCKET
        if has_others and self._of_client[name] >= self._table.client_concurrency:
            raise Busy(f"{self._of_client[name]} calls of this client are under way")
        most = min(self._table.max_concurrency, MOST_CONNECTIONS - self._total)
        if self.under_way(app) >= most:
            raise Busy(f"{self.under_way(app)} calls of this app are under way")
        return CallPlace(self, name, app)

    def count(self, client: str, app: str, number: int) -> None:
        """Count calls that begin, or with a negative number end."""
        self._of_client[client] += number
        self._of_app[app] += number
        self._total += number

    def _take(self, client: str) -> None:
        now = self._now()
        rate, burst = self._table.rate, self._table.burst
        left, at = self._left.get(client, (float(burst), now))
        left = min(burst, left + (now - at) * rate)
        if len(self._left) >= MOST_KNOWN:
            self._left.clear()  # names come from the configuration, which may be read often
        self._left[client] = (left - 1 if left >= 1 else left, now)
        if left < 1:
            raise TooFast(f"this client may make {rate:g} requests a second")


class CallPlace:
    """One call's place among those under way, taken and given back as a context."""

    __slots__ = ("_app", "_client", "_limits")

    def __init__(self, limits: ProxyLimits, client: str, app: str) -> None:
        self._limits, self._client, self._app = limits, client, app

    def __enter__(self) -> None:
        self._limits.count(self._client, self._app, 1)

    def __exit__(self, *_: object) -> None:
        self._limits.count(self._client, self._app, -1)
