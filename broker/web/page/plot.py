"""Draws token calls per hour.

A bar's width says who its calls were for, and its filling what came of them, so that neither needs
colour to be told apart.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from broker.core.quota import Lane

HOURS: Final = 48
HOUR: Final = 3600.0
STEP: Final = 10  # units of the picture per hour
HEIGHT: Final = 80
LEAST_SCALE: Final = 4  # at least so many calls fill the height: one call alone is a small bar
LANES: Final = tuple(lane.value for lane in Lane)
WIDTHS: Final = {Lane.SCHEDULED.value: 8, Lane.REPORT.value: 6, Lane.ADMIN.value: 4}


class Result(StrEnum):
    """What came of a call."""

    MINTED = "minted"
    FAILED = "failed"
    SILENT = "silent"  # no answer: lost, or not here yet


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle: calls of one lane and result within an hour."""

    lane: str
    result: Result
    x: float
    y: float
    width: int
    height: float


@dataclass(frozen=True, slots=True)
class Hour:
    """An hour that had calls.

    `began` is unix time; `counts` is by lane and result; `bars` are from the bottom up.
    """

    began: float
    counts: Mapping[tuple[str, Result], int]
    bars: tuple[Bar, ...]

    def of_lane(self, lane: str) -> int:
        """Return the calls of a lane, whatever came of them."""
        return sum(number for (one, _), number in self.counts.items() if one == lane)

    def of_result(self, result: Result) -> int:
        """Return the calls with that result, whatever their lane."""
        return sum(number for (_, one), number in self.counts.items() if one == result)


@dataclass(frozen=True, slots=True)
class Plot:
    """Two days of one app. `most` is the number of calls at the top of the scale."""

    hours: list[Hour]
    most: int

    def count(self, result: Result) -> int:
        """Return the calls with that result."""
        return sum(hour.of_result(result) for hour in self.hours)

    @property
    def total(self) -> int:
        """Return the number of all calls."""
        return sum(map(self.count, Result))


# By the ledger's outcome, which is None while there is none yet. All others are failures.
RESULTS: Final = {None: Result.SILENT, "lost": Result.SILENT, "minted": Result.MINTED}
ASSUMED: Final = "assumed"  # a call that nobody knows of, counted by a store that lost its ledger


def plot(calls: Iterable[Mapping[str, Any]], wall: float) -> Plot:
    """Draw ledger rows of one app: their `lane`, `outcome` and `wall_at`.

    `wall` is the present as unix time; it is at the right edge.
    """
    first = wall // HOUR * HOUR - (HOURS - 1) * HOUR
    counts: list[Counter[tuple[str, Result]]] = [Counter() for _ in range(HOURS)]
    for call in calls:
        at = int((call["wall_at"] - first) // HOUR)
        if 0 <= at < HOURS and call["outcome"] != ASSUMED:
            counts[at][call["lane"], RESULTS.get(call["outcome"], Result.FAILED)] += 1
    most = max(LEAST_SCALE, *(count.total() for count in counts))
    hours = [
        Hour(first + at * HOUR, count, tuple(_stack(at, count, most)))
        for at, count in enumerate(counts)
        if count
    ]
    return Plot(hours, most)


def _stack(at: int, count: Mapping[tuple[str, Result], int], most: int) -> Iterable[Bar]:
    top = float(HEIGHT)
    for lane in LANES:
        for result in Result:
            if number := count.get((lane, result), 0):
                height, width = number / most * HEIGHT, WIDTHS[lane]
                top -= height
                yield Bar(
                    lane,
                    result,
                    at * STEP + (STEP - width) / 2,
                    round(top, 2),
                    width,
                    round(height, 2),
                )
