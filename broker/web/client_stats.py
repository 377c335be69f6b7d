"""Who asks: by client, how often, and when last.

Kept in memory since the start; names come from the configuration.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

MOST: Final = 1024  # a configuration names fewer at a time, but it is read again and again


@dataclass(slots=True)
class ClientStat:
    """One client: requests that were let in, and the steady time of the last."""

    name: str
    requests: int
    last_at: float


class ClientStats:
    """Everyone who was let in where tokens are handed out; of more than :data:`MOST`, the latest."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self._known: dict[str, ClientStat] = {}

    def record(self, name: str, requests: int, at: float) -> None:
        """Count requests of a client."""
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= MOST:
                del self._known[min(self, key=lambda one: one.last_at).name]
            known = self._known[name] = ClientStat(name, 0, at)
        known.requests += requests
        known.last_at = max(known.last_at, at)

    def __iter__(self) -> Iterator[ClientStat]:
        """The latest first."""
        return iter(sorted(self._known.values(), key=lambda one: -one.last_at))

    def __len__(self) -> int:
        return len(self._known)
