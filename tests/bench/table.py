"""A row of the table, and the table."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One figure.

    `good` is a condition of correctness, never of time; `met` says how it stands against the
    target.
    """

    what: str
    figure: str
    against: str = ""
    target: str = ""
    met: str = ""
    good: bool = True


def markdown(rows: Iterable[Row]) -> str:
    """The table."""
    head = ["| what | figure | compared with | target | met |", "|---|---|---|---|---|"]
    return "\n".join(
        [
            *head,
            *(
                f"| {row.what} | {row.figure} | {row.against} | {row.target} | {row.met} |"
                for row in rows
            ),
        ]
    )


def yes(condition: object) -> str:
    """In a word."""
    return "yes" if condition else "no"
