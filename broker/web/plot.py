"""Token calls per hour as a picture: bars by whom a call was made for, hatched where it brought no token."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from broker.core.quota import Lane

HOURS: Final = 48
HOUR: Final = 3600.0
STEP: Final = 10  # of the picture's own units, per hour
HEIGHT: Final = 80
LEAST_SCALE: Final = 4  # calls that fill the height at least: one call is no wall
LANES: Final = tuple(lane.value for lane in Lane)


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle: calls of one lane and outcome within an hour."""

    lane: str
    good: bool
    x: int
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Hour:
    """What a table says of an hour that had calls: `began` in unix time, `counts` by (lane, whether it brought a token)."""

    began: float
    counts: Mapping[tuple[str, bool], int]


@dataclass(frozen=True, slots=True)
class Plot:
    """Two days of one app. `most` is the number of calls at the top of the scale."""

    bars: list[Bar]
    hours: list[Hour]
    most: int
    total: int
    failed: int


def plot(calls: Iterable[Mapping[str, Any]], wall: float) -> Plot:
    """Draw ledger rows of one app (`lane`, `outcome`, `wall_at`); `wall` is now, at the right edge."""
    first = wall // HOUR * HOUR - (HOURS - 1) * HOUR
    counts: list[Counter[tuple[str, bool]]] = [Counter() for _ in range(HOURS)]
    for call in calls:
        at = int((call["wall_at"] - first) // HOUR)
        if 0 <= at < HOURS and call["outcome"] != "assumed":
            counts[at][call["lane"], (call["outcome"] or "").endswith("minted")] += 1
    most = max(LEAST_SCALE, *(count.total() for count in counts))
    hours = [Hour(first + at * HOUR, count) for at, count in enumerate(counts) if count]
    failed = sum(number for count in counts for (_, good), number in count.items() if not good)
    bars = [bar for at, count in enumerate(counts) for bar in _stack(at, count, most)]
    return Plot(bars, hours, most, sum(count.total() for count in counts), failed)


def _stack(at: int, count: Mapping[tuple[str, bool], int], most: int) -> Iterable[Bar]:
    top = float(HEIGHT)
    for lane in LANES:
        for good in (True, False):
            if number := count.get((lane, good), 0):
                height = number / most * HEIGHT
                top -= height
                yield Bar(lane, good, at * STEP, round(top, 2), round(height, 2))
