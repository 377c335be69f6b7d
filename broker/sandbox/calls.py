"""The log of token calls, how many are in flight at once, and the gate that holds them."""

import asyncio
import hashlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from .tokens import IssuedToken, QuotaWindow

_KEPT = 200_000


@dataclass
class LoggedCall:
    """One token call, logged when it arrives; ``outcome`` is None until it is answered.

    Then it is WeChat's errcode (0: success), or the kind of the fault, or "hung-up": the peer left
    while it was held.
    """

    n: int
    at: float
    appid: str
    endpoint: str
    force: bool
    by: str
    outcome: int | str | None = None
    minted: bool = False
    token_sha256: str | None = None

    def granted(self, token: IssuedToken, *, minted: bool) -> None:
        """Note which token it gave, without keeping it."""
        self.minted = minted
        self.token_sha256 = hashlib.sha256(token.value.encode()).hexdigest()


@dataclass
class Traffic:
    """What the token endpoints saw of one account."""

    in_flight: int = 0
    max_in_flight: int = 0
    total: Counter[str] = field(default_factory=Counter)
    today: defaultdict[str, QuotaWindow] = field(default_factory=lambda: defaultdict(QuotaWindow))


class CallLog:
    """Every token call in order of arrival; the oldest are forgotten."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._calls: deque[LoggedCall] = deque(maxlen=_KEPT)
        self._count = 0
        self._traffic: dict[str, Traffic] = {}

    @contextmanager
    def arriving(
        self, appid: str, endpoint: str, *, force: bool = False, by: str = "client"
    ) -> Iterator[LoggedCall]:
        """Log a call; it is in flight until the block ends."""
        now, appid = self._now(), appid[:64]
        self._count += 1
        call = LoggedCall(self._count, now, appid, endpoint, force, by)
        self._calls.append(call)
        traffic = self.traffic(appid)
        traffic.total[endpoint] += 1
        traffic.today[endpoint].take(now)
        traffic.in_flight += 1
        traffic.max_in_flight = max(traffic.max_in_flight, traffic.in_flight)
        try:
            yield call
        finally:
            traffic.in_flight -= 1
            if call.outcome is None:
                call.outcome = "hung-up"

    def traffic(self, appid: str) -> Traffic:
        """Return an account's traffic; names beyond the first 20 000 share one."""
        crowded = len(self._traffic) >= 20_000  # noqa: PLR2004 - said above
        return self._traffic.setdefault(
            "" if crowded and appid not in self._traffic else appid, Traffic()
        )

    def since(self, n: int) -> list[dict[str, Any]]:
        """Return the calls whose number is greater than ``n``."""
        forgotten = self._count - len(self._calls)
        return [asdict(call) for call in islice(self._calls, max(0, n - forgotten), None)]

    def count(self) -> int:
        """How many token calls there ever were, of all accounts."""
        return self._count


class CallGate:
    """Holds the token calls of an account until they are released."""

    def __init__(self) -> None:
        self._held: dict[str, asyncio.Event] = {}

    def hold(self, appid: str) -> None:
        """Close the gate; holding twice is holding once."""
        self._held.setdefault(appid, asyncio.Event())

    def release(self, appid: str) -> None:
        """Open it, and let everybody through who waits."""
        if event := self._held.pop(appid, None):
            event.set()

    def event(self, appid: str) -> asyncio.Event | None:
        """Return what to wait for, None if the gate is open."""
        return self._held.get(appid)
