"""Counts requests by client, and notes when each client asked last.

It is kept in memory since the start. The names are those of the configuration.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

# A configuration names fewer clients at a time, but it may be changed and read again any number of
# times.
MOST: Final = 1024


@dataclass(slots=True)
class ClientStat:
    """One client: its requests that were let in, and the steady time of the last."""

    name: str
    requests: int
    last_at: float


class ClientStats:
    """The clients that were let in where tokens are handed out; at most :data:`MOST`, the latest.

    `now` gives steady seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self._known: dict[str, ClientStat] = {}

    def record(self, name: str, requests: int, at: float) -> None:
        """Count requests of a client; the last of them came at the steady time `at`."""
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= MOST:
                del self._known[min(self, key=lambda one: one.last_at).name]
            known = self._known[name] = ClientStat(name, 0, at)
        known.requests += requests
        known.last_at = max(known.last_at, at)

    def __iter__(self) -> Iterator[ClientStat]:
        """Iterate over the clients, the one that asked last first."""
        return iter(sorted(self._known.values(), key=lambda one: -one.last_at))

    def __len__(self) -> int:
        return len(self._known)
