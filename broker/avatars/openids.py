"""The followers' openids, packed: 33 bytes each where a list of strings takes 85. Pure."""

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

PAGE = 10_000
"""Openids on a page of `user/get`, at most."""


class Openids:
    """Some openids in order."""

    __slots__ = ("_packed", "_starts")

    def __init__(self, openids: Sequence[str]) -> None:
        self._packed = "".join(f"{openid}\n" for openid in openids).encode()
        self._starts = array(
            "I", accumulate((len(openid.encode()) + 1 for openid in openids), initial=0)
        )

    def __len__(self) -> int:
        return len(self._starts) - 1

    def slice(self, start: int, stop: int) -> list[str]:
        """The openids of these positions, as far as there are any."""
        stop = min(stop, len(self))
        return (
            self._packed[self._starts[start] : self._starts[stop]].decode().split()
            if start < stop
            else []
        )

    def find(self, openid: str) -> int | None:
        """Where it stands."""
        wanted = f"{openid}\n".encode()
        at = 0 if self._packed.startswith(wanted) else self._packed.find(b"\n" + wanted) + 1
        return bisect_right(self._starts, at) - 1 if at or self._packed.startswith(wanted) else None


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of `user/get`.

    It begins behind the openid `after`. `total` is how many followers WeChat says there are in all,
    and `at` when it was asked.
    """

    after: str
    openids: Openids
    total: int
    is_last: bool
    at: float

    @property
    def end(self) -> str:
        """The last openid: what the next page begins after."""
        count = len(self.openids)
        return self.openids.slice(count - 1, count)[0] if count else self.after
