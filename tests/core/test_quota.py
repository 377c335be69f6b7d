"""The ledger's arithmetic, as properties: no sequence of wishes breaks a limit."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.credential import Endpoint, Policy
from broker.core.quota import (
    DAY,
    Entry,
    Full,
    Lane,
    Limit,
    QuotaLimits,
    calls_per_day,
    day_began,
    full,
    until_next_day,
    usage,
)

NOON = 1_790_000_000.0
WISHES = st.lists(
    st.tuples(st.integers(0, 30_000), st.sampled_from(Lane), st.booleans()), max_size=120
)


@given(
    WISHES,
    st.integers(1, 30),
    st.integers(0, 10),
    st.integers(0, 35),
    st.integers(int(NOON), int(NOON + DAY)),
)
@settings(max_examples=300)
def test_no_sequence_of_calls_breaks_a_window_and_a_freed_slot_is_free(
    wishes: list[tuple[int, Lane, bool]], total: int, report: int, share: int, wall: int
) -> None:
    limits, offset, now = QuotaLimits(total, report, share=share), wall - 5000.0, 5000.0
    made: list[Entry] = []
    for wait, lane, force in wishes:
        now += wait
        reached = full(made, limits, lane, now, force=force)
        if reached is None:
            made.append(Entry(now, now + offset, lane, forced=force))
        elif lane is Lane.SCHEDULED or (share < total and (lane is Lane.ADMIN or report > 0)):
            assert reached.until > now
            assert full(made, limits, lane, reached.until, force=force) is None
    for entry in made:
        window = [e for e in made if entry.at - DAY < e.at <= entry.at]
        assert len(window) <= total
        assert sum(e.lane is Lane.REPORT for e in window) <= report
        assert sum(e.lane is not Lane.SCHEDULED for e in window) <= max(0, total - share)
        assert sum(e.forced for e in window) <= 20
        assert sum(day_began(e.wall) == day_began(entry.wall) for e in made) <= total


def test_the_beijing_day_begins_at_16_utc_and_knows_no_summer_time() -> None:
    # 2026-03-29 is a change to summer time in much of the world.
    for midnight in (1_774_713_600.0, 1_774_800_000.0):
        assert day_began(midnight - 1) == midnight - DAY
        assert day_began(midnight) == midnight
        assert until_next_day(midnight) == DAY
        assert until_next_day(midnight - 1) == 1


def test_what_people_see_as_today_follows_neither_a_clock_set_forward_nor_one_set_back() -> None:
    made = [
        Entry(1000.0 - number * 3600, NOON - number * 3600, Lane.SCHEDULED) for number in range(40)
    ]
    today = usage(made, 100, 1000.0, NOON).today
    assert 0 < today < usage(made, 100, 1000.0, NOON).last_24h == 24
    assert (
        usage(made, 100, 1000.0, NOON + DAY).last_24h == 24
    )  # set forward by a day: nothing is reopened
    assert (
        usage(made, 100, 1000.0, NOON - DAY).today == 24
    )  # set back by a day: yesterday is not today


def test_reports_may_never_take_what_the_schedule_needs() -> None:
    policy = Policy(report_quota=200)
    assert QuotaLimits.of(2000, Endpoint.TOKEN, policy).report == 200
    assert QuotaLimits.of(200, Endpoint.TOKEN, policy).report == 200 - calls_per_day(
        Endpoint.TOKEN, policy
    )
    assert QuotaLimits.of(20, Endpoint.TOKEN, policy).report == 0


@pytest.mark.parametrize(
    ("endpoint", "fraction", "calls"),
    [("token", 0.5, 27), ("token", 0.9, 15), ("stable_token", 0.5, 13)],
)
def test_what_a_normal_day_needs(endpoint: str, fraction: float, calls: int) -> None:
    assert calls_per_day(Endpoint(endpoint), Policy(refresh_fraction=fraction)) == calls


def test_usage_counts_both_windows_and_what_remains_by_the_fuller() -> None:
    midnight = day_began(NOON)
    made = [
        Entry(-7200.0, midnight - 3600, Lane.SCHEDULED),
        Entry(0.0, midnight + 3600, Lane.ADMIN),
    ]
    spent = usage(made, 10, 100.0, midnight + 3700)
    assert (spent.today, spent.last_24h, spent.remaining) == (1, 2, 8)


def test_people_and_reports_together_leave_the_schedule_its_share() -> None:
    policy = Policy()
    limits = QuotaLimits.of(40, Endpoint.TOKEN, policy)
    spare = 40 - calls_per_day(Endpoint.TOKEN, policy)
    assert limits.report == spare
    made = [Entry(float(i), NOON + i, Lane.ADMIN) for i in range(spare - 1)]
    assert full(made, limits, Lane.ADMIN, 1000.0) is None
    made.append(Entry(500.0, NOON + 500, Lane.REPORT))
    for lane in (Lane.ADMIN, Lane.REPORT):
        assert full(made, limits, lane, 1000.0) == Full(Limit.SCHEDULE_SHARE, DAY)
    assert full(made, limits, Lane.SCHEDULED, 1000.0) is None
