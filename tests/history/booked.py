"""What must be true of calls, ledger and reservations, over a whole history.

Each rule yields a sentence per violation.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from broker.core.quota import DAY
from tests.history.audit import Event
from tests.history.record import History

_NO_CALL = ("assumed", "given back", "withheld")  # outcomes of rows for which nobody was asked
_CLOCK_S = 0.001


def every_call_has_its_row_first(history: History) -> Iterator[str]:
    """I1 at each moment: the sandbox has seen no more calls than rows were made by then.

    Rows that a failover lost were made.
    """
    for appid in history.rules.quota:
        rows = [row for row in (*history.ledger, *history.lost) if row["appid"] == appid]
        made = sorted(row["at"] for row in rows if row["outcome"] not in _NO_CALL)
        for number, call in enumerate(history.of_client(appid), start=1):
            if number > bisect_right(made, call["at"] + _CLOCK_S):
                yield (
                    f"I1: call {call['n']} of {appid} is the {number}th, and"
                    f" {bisect_right(made, call['at'])} rows were made"
                )


def no_more_is_spent_than_the_quota(history: History) -> Iterator[str]:
    """I2, over any 24 hours, which no Beijing day is longer than.

    With an asynchronous standby: and the rows it lost.
    """
    for appid, quota in history.rules.quota.items():
        lost = 0 if history.synchronous else sum(row["appid"] == appid for row in history.lost)
        seen = [call["at"] for call in history.of_client(appid)]
        booked = [
            row["at"]
            for row in history.ledger
            if row["appid"] == appid and row["outcome"] != "assumed"
        ]
        for what, times in (("calls", seen), ("rows", booked)):
            spent = max((sum(at - DAY < other <= at for other in times) for at in times), default=0)
            if spent > quota + lost:
                yield (
                    f"I2: {spent} {what} of {appid} in 24 h, the quota is {quota} (and {lost} rows"
                    " were lost)"
                )


def a_synchronous_standby_loses_nothing(history: History) -> Iterator[str]:
    """Not one row that was acknowledged."""
    if history.synchronous and history.lost:
        yield f"lost: {len(history.lost)} rows, though the standby was synchronous"


def one_reservation_at_a_time(history: History) -> Iterator[str]:
    """I3 as the ledger counts it, the fence, and one publisher for each.

    It replays what the database saw.
    """
    for appid in history.rules.quota:
        yield from _replayed(
            [event for event in history.events if event.appid == appid], history.rules.lease
        )


def _replayed(events: list[Event], lease: float) -> Iterator[str]:
    opened: Event | None = None
    settled: dict[str, str] = {}
    reserved: dict[str, str | None] = {}
    for event in events:
        if event.kind == "reserved" and event.outcome is None:
            if (
                opened is not None
                and (event.called_at or 0) < (opened.called_at or 0) + lease - _CLOCK_S
            ):
                yield (
                    f"I3: {event.version} was reserved by {event.node} while {opened.version} of"
                    f" {opened.node} was in flight"
                )
            if event.version in reserved:
                yield (
                    f"I3: {event.version} was reserved twice, by {reserved[event.version]} and"
                    f" {event.node}"
                )
            opened, reserved[event.version] = event, event.node
        elif event.kind == "settled":
            if event.version in settled:
                yield (
                    f"publisher: {event.version} was settled twice: {settled[event.version]},"
                    f" {event.outcome}"
                )
            settled[event.version] = str(event.outcome)
            is_open = opened is not None and opened.version == event.version
            if not is_open and not event.lease_lost:
                yield (
                    f"fence: {event.version} of {event.node} was settled ({event.outcome}), and was"
                    " no longer the reservation"
                )
        elif event.kind == "account" and event.opened is None:
            opened = None


def a_late_answer_casts_doubt(history: History) -> Iterator[str]:
    """A late call that minted has pushed out the token held, which must then be doubted.

    The doubt must be in the same transaction.

    Nothing to doubt where the token held is younger than every mint by then.
    """
    mints = {
        appid: [it for it in history.of_client(appid) if it["minted"]]
        for appid in history.rules.quota
    }
    held: dict[str, Event] = {}
    for _, group in groupby(history.events, key=lambda it: it.xid):
        transaction = list(group)
        held |= {event.appid: event for event in transaction if event.kind == "account"}
        for event in transaction:
            may_have_minted = event.outcome in {"minted", "lost"} and event.lease_lost
            if may_have_minted and _is_unnoticed(held.get(event.appid), event, mints):
                yield (
                    f"late: {event.version} of {event.node} ({event.outcome}) pushed out a token,"
                    " which nobody doubts"
                )


def _is_unnoticed(
    held: Event | None, settled: Event, mints: Mapping[str, list[dict[str, Any]]]
) -> bool:
    """Return True if the token held by then was pushed out.

    The call that is open now does not count: its answer is on its way.
    """
    if held is None or held.doubt is not None:
        return False
    minted = next(
        (it["at"] for it in mints[settled.appid] if it["token_sha256"] == held.sha256), float("inf")
    )
    later = [it["at"] for it in mints[settled.appid] if minted < it["at"] <= settled.at]
    is_on_its_way = bool(later) and held.opened is not None and later[-1] >= (held.called_at or 0)
    return len(later) > is_on_its_way


RULES = (
    every_call_has_its_row_first,
    no_more_is_spent_than_the_quota,
    a_synchronous_standby_loses_nothing,
    one_reservation_at_a_time,
    a_late_answer_casts_doubt,
)
