import asyncio
import itertools
from dataclasses import replace

import pytest

from broker.core.credential import NEVER, Account, Endpoint, Policy
from broker.core.errcodes import Failure, FailureCode, Kind, rule_for
from broker.core.ports import Claim, Grant, Minted, StoreError, Verdict
from broker.core.quota import Lane, Limit, calls_per_day
from broker.core.secret import Secret
from broker.core.serving import (
    Code,
    ReportOutcome,
    Served,
    TokenState,
    Unavailable,
    UnavailableReason,
)
from broker.tokens.keeper import Keeper
from broker.tokens.live import LiveCredential
from broker.web.words.english import unavailable
from tests.harness.doubles import ACCOUNT, CANARY, DOWN, LOST, Bench, looked, stable, value_of


def token(number: int) -> str:
    return f"{CANARY}-main-t{number}"


def code_of(answer: object) -> Code:
    assert isinstance(answer, Unavailable), answer
    return answer.code


async def kept(bench: Bench) -> Keeper:
    """A keeper that holds a fresh token."""
    keeper = await bench.keeper()
    await looked(keeper)
    assert value_of(keeper) == token(1)
    return keeper


# --- cold start and single flight -----------------------------------------------------------------


async def test_fifty_callers_at_a_cold_start_cause_one_call_and_all_get_its_token(
    bench: Bench,
) -> None:
    keeper = await bench.keeper()
    bench.wechat.gate.clear()
    callers = [asyncio.create_task(keeper.get(patience_s=5)) for _ in range(50)]
    await bench.wechat.arrived.wait()
    bench.wechat.gate.set()
    answers = await asyncio.gather(*callers)
    assert bench.wechat.calls == 1
    assert {
        answer.credential.token.value.reveal()
        for answer in answers
        if isinstance(answer, Served) and answer.credential.token
    } == {token(1)}
    assert all(isinstance(answer, Served) for answer in answers)


async def test_a_caller_that_hangs_up_does_not_take_the_call_with_it(bench: Bench) -> None:
    keeper = await bench.keeper()
    bench.wechat.gate.clear()
    first = asyncio.create_task(keeper.get(patience_s=5))
    await bench.wechat.arrived.wait()
    second = asyncio.create_task(keeper.get(patience_s=5))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    bench.wechat.gate.set()
    assert isinstance(await second, Served)
    assert bench.wechat.calls == 1


async def test_each_waiter_has_its_own_deadline_and_the_call_goes_on(bench: Bench) -> None:
    keeper = await bench.keeper()
    bench.wechat.gate.clear()
    assert code_of(await keeper.get(patience_s=0.01)) is Code.STARTING
    bench.wechat.gate.set()
    assert isinstance(await keeper.get(patience_s=5), Served)
    assert bench.wechat.calls == 1


async def test_a_second_keeper_on_the_same_store_takes_the_token_of_the_first_instead_of_calling(
    bench: Bench,
) -> None:
    # The second look: both found it due, one was faster. This is what keeps ten nodes at one call.
    first, second = await bench.keeper(), await bench.keeper()
    await looked(first)
    bench.clock.pass_(60)  # min_gap alone would not stop the second
    await looked(second)
    assert bench.wechat.calls == 1
    assert value_of(second) == token(1)


async def test_while_a_call_is_open_nobody_else_makes_one(bench: Bench) -> None:
    bench.policy = Policy(min_gap=1)  # so that min_gap is not what keeps the second out
    first, second = await bench.keeper(), await bench.keeper()
    bench.wechat.gate.clear()
    first.tick()
    await bench.wechat.arrived.wait()
    bench.clock.pass_(14)
    async with asyncio.timeout(5):
        await looked(second)
    assert bench.wechat.calls == 1
    bench.wechat.gate.set()
    await first.drain()


async def test_a_late_answer_never_overwrites_a_newer_one(bench: Bench) -> None:
    late, quick = await bench.keeper(), await bench.keeper()
    bench.wechat.gate.clear()
    late.tick()
    await bench.wechat.arrived.wait()
    bench.clock.pass_(100)  # far beyond the reservation's lease: it is nobody's any more
    bench.wechat.gate, held = asyncio.Event(), bench.wechat.gate
    bench.wechat.gate.set()
    await looked(quick)
    await looked(quick)  # the first look closes the orphan, which is a failure with its pause
    bench.clock.pass_(60)
    await looked(quick)
    assert value_of(quick) == token(2)
    held.set()
    await late.drain()
    assert value_of(late) == token(2)
    stored = await bench.restarted()
    assert value_of(stored) == token(2)


async def test_what_is_published_never_goes_back_to_an_older_call(bench: Bench) -> None:
    keeper = await kept(bench)
    older = keeper.credential
    bench.clock.pass_(4000)
    await looked(keeper)
    published = LiveCredential(ACCOUNT, bench.clock, bench.policy, lambda _: None)
    assert published.adopt(keeper.credential)
    assert not published.adopt(older)
    assert not published.adopt(replace(older, token=None))
    assert published.credential == keeper.credential
    assert not published.adopt(
        replace(older, epoch="another")
    )  # across epochs the time of the call counts
    assert published.adopt(replace(keeper.credential, epoch="another"))


# --- the plan -------------------------------------------------------------------------------------


async def test_a_token_is_replaced_at_half_life_and_served_until_then(bench: Bench) -> None:
    keeper = await kept(bench)
    bench.clock.pass_(3200)
    await looked(keeper)
    assert (bench.wechat.calls, value_of(keeper)) == (1, token(1))
    bench.clock.pass_(800)
    served = keeper.serve()
    assert served is not None
    assert served.state is TokenState.STALE
    await looked(keeper)
    assert (bench.wechat.calls, value_of(keeper)) == (2, token(2))


async def test_a_stable_token_is_replaced_inside_its_last_300_seconds(bench: Bench) -> None:
    keeper = await bench.keeper(stable())
    await looked(keeper)
    bench.clock.pass_(6900)
    await looked(keeper)
    assert bench.wechat.calls == 1
    bench.clock.pass_(60)
    await looked(keeper)
    assert bench.wechat.calls == 2


async def test_the_same_token_again_keeps_its_version_and_takes_the_new_expiry(
    bench: Bench,
) -> None:
    keeper = await bench.keeper(stable())
    bench.wechat.answers.extend([Minted(Secret("same"), 300), Minted(Secret("same"), 7000)])
    await looked(keeper)
    version = keeper.credential.version
    bench.clock.pass_(200)
    await looked(keeper)
    assert bench.wechat.calls == 2
    served = keeper.serve()
    assert served is not None
    assert (keeper.credential.version, served.token_expires_in) == (version, 7000)


async def test_expiry_counts_from_before_the_request(bench: Bench) -> None:
    keeper = await bench.keeper()
    bench.wechat.before_answer = lambda: bench.clock.pass_(9)
    await looked(keeper)
    served = keeper.serve()
    assert served is not None
    assert served.token_expires_in == 7200 - 9


async def test_an_expired_token_is_never_served(bench: Bench) -> None:
    keeper = await kept(bench)
    bench.wechat.answers.extend([DOWN] * 100)
    bench.clock.pass_(7200 - 16)
    assert value_of(keeper) == token(1)
    bench.clock.pass_(2)  # min_serve
    assert keeper.serve() is None


async def test_min_ttl_waits_for_the_refresh_that_is_due_but_does_not_cause_one_early(
    bench: Bench,
) -> None:
    keeper = await kept(bench)
    bench.clock.pass_(1000)
    assert code_of(await keeper.get(min_ttl=7000, patience_s=1)) is Code.UPSTREAM_UNAVAILABLE
    assert bench.wechat.calls == 1
    bench.clock.pass_(3000)
    answer = await keeper.get(min_ttl=3000, patience_s=1)
    assert isinstance(answer, Served)
    assert (answer.token_expires_in, bench.wechat.calls) == (7200, 2)
    assert 3000 <= answer.expires_in <= 3960 + 240  # what is promised is what is asked for


# --- failures -------------------------------------------------------------------------------------


async def test_a_failed_refresh_leaves_a_valid_token_as_it_was(bench: Bench) -> None:
    keeper = await kept(bench)
    bench.wechat.answers.append(DOWN)
    bench.clock.pass_(4000)
    await looked(keeper)
    served = keeper.serve()
    assert served is not None
    assert (value_of(keeper), served.state) == (token(1), TokenState.STALE)
    assert served.token_expires_in == 3200
    assert served.expires_in == 30 + 240 - 1  # until the next attempt, and what is sure after it


async def test_backoff_doubles_between_min_gap_and_max_backoff_and_survives_restarts(
    bench: Bench,
) -> None:
    keeper = await bench.keeper()
    bench.wechat.answers.extend([DOWN] * 50)
    called_at = []
    for _ in range(1200):
        before = bench.wechat.calls
        await looked(keeper)
        if bench.wechat.calls > before:
            called_at.append(bench.clock.now())
            keeper = await bench.restarted()  # a crash loop
        bench.clock.pass_(1)
    gaps = [later - sooner for sooner, later in itertools.pairwise(called_at)]
    assert gaps == [30, 60, 120, 240, 300, 300]


async def test_alternating_success_and_failure_keeps_min_gap(bench: Bench) -> None:
    keeper = await bench.keeper()
    bench.wechat.lifetime = 20
    called_at = []
    for number in range(300):
        before = bench.wechat.calls
        if number % 2:
            bench.wechat.answers.append(DOWN)
        await looked(keeper)
        if bench.wechat.calls > before:
            called_at.append(bench.clock.now())
        bench.clock.pass_(1)
    gaps = [later - sooner for sooner, later in itertools.pairwise(called_at)]
    assert len(gaps) >= 4
    assert min(gaps) >= 30


async def test_an_outage_of_three_hours_is_served_through_until_expiry_then_503_then_one_call(
    bench: Bench,
) -> None:
    keeper = await kept(bench)
    bench.wechat.answers.extend([DOWN] * 1000)
    seen = set()
    for _ in range(2160):
        bench.clock.pass_(5)
        await looked(keeper)
        left = (
            keeper.credential.token.expires_at - bench.clock.now() if keeper.credential.token else 0
        )
        assert (value_of(keeper) is not None) == (left >= 15)
        seen.add(value_of(keeper))
    assert seen == {token(1), None}
    answer = await keeper.get()
    assert isinstance(answer, Unavailable)
    assert answer.code is Code.UPSTREAM_UNAVAILABLE
    bench.wechat.answers.clear()
    calls = bench.wechat.calls
    bench.clock.pass_(answer.retry_after)  # the Retry-After is true
    await looked(keeper)
    assert value_of(keeper) is not None
    assert bench.wechat.calls == calls + 1


@pytest.mark.parametrize(
    ("errcode", "pause", "code"),
    [
        (-1, 30, Code.UPSTREAM_UNAVAILABLE),
        (45011, 60, Code.UPSTREAM_UNAVAILABLE),
        (40125, 60, Code.UPSTREAM_REFUSED),
        (48001, 600, Code.UPSTREAM_REFUSED),
        (40164, 300, Code.UPSTREAM_REFUSED),
        (89503, 300, Code.UPSTREAM_REFUSED),
        (89507, 3600, Code.UPSTREAM_REFUSED),
        (89506, 86400, Code.UPSTREAM_REFUSED),
    ],
)
async def test_each_class_of_errcode_has_its_pause(
    bench: Bench, errcode: int, pause: int, code: Code
) -> None:
    keeper = await bench.keeper()
    bench.wechat.answers.append(
        Failure(rule_for(errcode).kind, FailureCode.ERRCODE, errcode=errcode)
    )
    await looked(keeper)
    keeper = await bench.restarted()  # the reason is persisted with the pause
    answer = await keeper.get()
    assert isinstance(answer, Unavailable)
    assert (answer.code, answer.retry_after) == (code, pause)
    bench.clock.pass_(pause - 1)
    await looked(keeper)
    assert bench.wechat.calls == 1
    bench.clock.pass_(1)
    await looked(keeper)
    assert bench.wechat.calls == 2


@pytest.mark.parametrize("errcode", [40001, 40013, 40125, 41002])
async def test_the_first_refusal_of_a_secret_is_tried_again_after_a_minute_the_second_after_ten(
    bench: Bench, errcode: int
) -> None:
    keeper = await bench.keeper()
    refused = Failure(Kind.CONFIGURATION, FailureCode.ERRCODE, errcode=errcode)
    bench.wechat.answers.extend([DOWN, refused, refused])
    await looked(keeper)
    for pause, calls in ((30, 2), (60, 3), (599, 3), (1, 4)):
        bench.clock.pass_(pause)
        await looked(keeper)
        assert bench.wechat.calls == calls
    assert value_of(keeper) is not None


async def test_a_changed_secret_is_tried_at_once_after_a_restart(bench: Bench) -> None:
    keeper = await bench.keeper()
    bench.wechat.answers.append(Failure(Kind.CONFIGURATION, FailureCode.ERRCODE, errcode=40125))
    await looked(keeper)
    bench.clock.pass_(31)
    await looked(await bench.restarted())
    assert bench.wechat.calls == 1
    await looked(await bench.restarted(replace(ACCOUNT, secret=Secret("another"))))
    assert bench.wechat.calls == 2


async def test_a_spent_quota_at_wechat_is_believed_until_the_next_beijing_day(bench: Bench) -> None:
    keeper = await bench.keeper()
    bench.wechat.answers.append(Failure(Kind.QUOTA, FailureCode.ERRCODE, errcode=45009))
    await looked(keeper)
    answer = await keeper.get()
    assert isinstance(answer, Unavailable)
    assert answer.code is Code.QUOTA_EXHAUSTED
    assert (bench.clock.wall() + answer.retry_after + 8 * 3600) % 86400 <= 1
    assert (
        code_of(await keeper.refresh(1)) is Code.REFRESH_THROTTLED
    )  # WeChat's own word binds people too
    assert bench.wechat.calls == 1


# --- the lost answer ------------------------------------------------------------------------------


async def test_a_lost_answer_makes_the_token_suspect_and_a_new_one_comes_within_the_overlap(
    bench: Bench,
) -> None:
    keeper = await kept(bench)
    bench.clock.pass_(4000)
    bench.wechat.answers.append(LOST)
    await looked(keeper)
    served = keeper.serve()
    assert served is not None
    assert (served.state, served.token_expires_in) == (TokenState.SUSPECT, 300)
    promised = bench.clock.now() + served.expires_in
    for _ in range(60):
        bench.clock.pass_(5)
        await looked(keeper)
        assert bench.wechat.calls == 2 or bench.clock.now() >= promised  # it may die with the next
    assert value_of(keeper) == token(3)
    served = keeper.serve()
    assert served is not None
    assert served.state is TokenState.FRESH
    assert bench.wechat.calls == 3


async def test_a_suspect_token_is_not_served_beyond_its_safe_end(bench: Bench) -> None:
    keeper = await kept(bench)
    bench.clock.pass_(4000)
    bench.wechat.answers.extend([LOST, DOWN, DOWN, DOWN, DOWN])
    bench.wechat.verdicts.extend([Verdict.UNKNOWN] * 100)
    await looked(keeper)
    for _ in range(57):
        assert value_of(keeper) == token(1)
        bench.clock.pass_(5)
        await looked(keeper)
    bench.clock.pass_(5)
    assert keeper.serve() is None


async def test_a_suspect_token_that_lives_after_the_overlap_was_never_pushed_out(
    bench: Bench,
) -> None:
    keeper = await kept(bench)
    bench.clock.pass_(4000)
    bench.wechat.answers.extend([LOST, *[DOWN] * 10])
    await looked(keeper)
    bench.clock.pass_(330)
    await looked(keeper)
    assert keeper.serve() is None
    bench.clock.pass_(31)  # the edge is fuzzy; then WeChat's word counts
    await looked(keeper)
    assert value_of(keeper) == token(1)
    assert keeper.credential.suspicion is None


async def test_a_forced_call_without_an_answer_may_have_killed_the_token_at_once(
    bench: Bench,
) -> None:
    keeper = await bench.keeper(stable())
    await looked(keeper)
    bench.clock.pass_(60)
    bench.wechat.answers.append(LOST)
    bench.wechat.verdicts.append(Verdict.ALIVE)
    await keeper.refresh(5, force=True)
    assert keeper.serve() is None
    bench.clock.pass_(40)
    await looked(keeper)
    assert keeper.serve() is not None
    assert bench.wechat.forced == [False, True, False]


async def test_a_crash_during_a_forced_call_may_have_killed_the_token_at_once(bench: Bench) -> None:
    keeper = await bench.keeper(stable())
    await looked(keeper)
    bench.clock.pass_(60)
    await (await bench.open()).reserve(stable(), lambda *_: Claim(Lane.ADMIN, force=True))
    keeper = await bench.restarted(stable())
    assert keeper.serve() is None
    assert keeper.credential.suspicion is not None


async def test_a_lost_answer_of_the_stable_endpoint_means_nothing(bench: Bench) -> None:
    keeper = await bench.keeper(stable())
    await looked(keeper)
    bench.clock.pass_(7000)
    bench.wechat.answers.append(LOST)
    await looked(keeper)
    assert keeper.credential.suspicion is None


# --- crashes --------------------------------------------------------------------------------------


async def test_a_crash_during_a_call_counts_as_spent_and_suspect_and_is_not_repeated_at_once(
    bench: Bench,
) -> None:
    keeper = await kept(bench)
    bench.clock.pass_(4000)
    store = await bench.open()
    grant = await store.reserve(ACCOUNT, lambda *_: Claim(Lane.SCHEDULED))
    keeper = await bench.restarted()
    served = keeper.serve()
    assert served is not None
    assert (value_of(keeper), served.state) == (token(1), TokenState.SUSPECT)
    assert (served.token_expires_in, served.expires_in) == (300, 239)
    await looked(keeper)
    assert (bench.wechat.calls, bench.wechat.checks) == (
        1,
        1,
    )  # verified, not refreshed: what was promised holds
    bench.clock.pass_(240)
    await looked(keeper)
    assert value_of(keeper) == token(2)
    assert keeper.credential.token is not None
    assert isinstance(grant, Grant)
    assert keeper.credential.token.call > grant.call
    assert keeper.usage().last_24h == 3


async def test_a_thousand_restarts_with_a_valid_token_make_no_call(bench: Bench) -> None:
    keeper = await kept(bench)
    version = keeper.credential.version
    for _ in range(50):
        keeper = await bench.restarted()
        await looked(keeper)
        assert (value_of(keeper), keeper.credential.version) == (token(1), version)
    assert bench.wechat.calls == 1


async def test_a_bug_in_a_flight_is_told_once_and_backs_off(bench: Bench) -> None:
    keeper = await bench.keeper()

    def bug() -> None:
        raise RuntimeError("bug")

    bench.wechat.before_answer = bug
    for _ in range(100):
        await looked(keeper)
        bench.clock.pass_(1)
    assert bench.wechat.calls <= 2
    assert len(bench.told("crashed")) == bench.wechat.calls


# --- reports --------------------------------------------------------------------------------------


async def test_ten_thousand_reports_of_an_old_token_cost_nothing(bench: Bench) -> None:
    keeper = await kept(bench)
    old = keeper.credential.version
    bench.clock.pass_(4000)
    await looked(keeper)
    for number in range(10_000):
        named = {"version": old} if number % 2 else {"token": token(1)}
        answer = await keeper.report(1, **named)
        assert not isinstance(answer, Unavailable)
        assert answer[0] is ReportOutcome.SUPERSEDED
    assert (bench.wechat.calls, bench.wechat.checks) == (2, 0)


async def test_ten_thousand_reports_of_a_dead_token_cause_one_verification_and_one_refresh(
    bench: Bench,
) -> None:
    keeper = await kept(bench)
    bench.clock.pass_(60)
    bench.wechat.verdicts.append(Verdict.DEAD)
    bench.wechat.gate.clear()
    version = keeper.credential.version
    reports = [asyncio.create_task(keeper.report(60, version=version)) for _ in range(10_000)]
    await bench.wechat.arrived.wait()
    bench.wechat.gate.set()
    answers = await asyncio.gather(*reports)
    assert {answer[0] for answer in answers if not isinstance(answer, Unavailable)} == {
        ReportOutcome.REFRESHED
    }
    assert not any(isinstance(answer, Unavailable) for answer in answers)
    assert (bench.wechat.calls, bench.wechat.checks) == (2, 1)
    assert [row["lane"] for row in await bench.rows()] == ["scheduled", "report"]


async def test_a_false_report_costs_no_quota_and_is_throttled_when_repeated(bench: Bench) -> None:
    keeper = await kept(bench)
    answer = await keeper.report(1, token=token(1))
    assert not isinstance(answer, Unavailable)
    assert answer[0] is ReportOutcome.VERIFIED
    bench.clock.pass_(4)
    again = await keeper.report(1, token=token(1))
    assert isinstance(again, Unavailable)
    assert (again.code, again.retry_after) == (Code.REPORT_THROTTLED, 6)
    bench.clock.pass_(6)
    assert not isinstance(await keeper.report(1, token=token(1)), Unavailable)
    assert (bench.wechat.calls, bench.wechat.checks) == (1, 2)


async def test_a_report_that_wechat_does_not_answer_changes_nothing(bench: Bench) -> None:
    keeper = await kept(bench)
    bench.wechat.verdicts.append(Verdict.UNKNOWN)
    assert code_of(await keeper.report(1, token=token(1))) is Code.UPSTREAM_UNAVAILABLE
    assert value_of(keeper) == token(1)


@pytest.mark.parametrize("account", [ACCOUNT, stable()], ids=["classic", "stable"])
async def test_without_a_verdict_a_second_report_replaces_the_token_at_the_expense_of_reports(
    bench: Bench, account: Account
) -> None:
    keeper = await bench.keeper(account)
    await looked(keeper)
    bench.wechat.verdicts.extend([Verdict.UNDECIDED] * 3)
    bench.clock.pass_(40)
    for left, wait in ((10, 9), (1, 1)):
        answer = await keeper.report(1, token=token(1))
        assert isinstance(answer, Unavailable)
        assert (answer.reason, answer.retry_after) == (UnavailableReason.NO_VERDICT, left)
        bench.clock.pass_(wait)
        assert keeper.serve() is not None
    answer = await keeper.report(1, token=token(1))
    assert not isinstance(answer, Unavailable)
    assert answer[0] is ReportOutcome.REFRESHED
    lanes = [facts["lane"] for facts in bench.told("refreshed")]
    assert lanes == [Lane.SCHEDULED, Lane.REPORT]
    assert bench.wechat.forced == [False, account.endpoint is Endpoint.STABLE]


async def test_without_a_verdict_what_the_broker_has_read_itself_is_enough(bench: Bench) -> None:
    keeper = await kept(bench)
    bench.clock.pass_(40)
    bench.wechat.verdicts.append(Verdict.UNDECIDED)
    answer = await keeper.report(1, token=token(1), seen=True)
    assert not isinstance(answer, Unavailable)
    assert answer[0] is ReportOutcome.REFRESHED
    # A verdict is asked for all the same, and counts for more.
    bench.clock.pass_(40)
    answer = await keeper.report(1, token=token(2), seen=True)
    assert not isinstance(answer, Unavailable)
    assert answer[0] is ReportOutcome.VERIFIED
    assert isinstance(await keeper.report(1, token=token(2), seen=True), Unavailable)
    assert bench.wechat.calls == 2


async def test_without_a_verdict_no_number_of_doubts_ends_a_token(bench: Bench) -> None:
    # A client that only asks again has not said that anything was refused: a fleet behind one key
    # does so all the time, and some accounts never get a verdict.
    bench.policy = Policy(verify_quota=20)
    keeper = await kept(bench)
    bench.wechat.verdicts.extend([Verdict.UNDECIDED] * 20)
    for _ in range(40):
        bench.clock.pass_(40)
        await keeper.doubt(0.1)
    assert (bench.wechat.calls, bench.wechat.checks) == (1, 20)
    answer = await keeper.report(1, token=token(1))  # one report is one
    assert isinstance(answer, Unavailable)


async def test_when_the_days_verifications_are_spent_two_reports_are_enough(bench: Bench) -> None:
    bench.policy = Policy(verify_quota=1)
    keeper = await kept(bench)
    bench.clock.pass_(40)
    assert not isinstance(await keeper.report(1, token=token(1)), Unavailable)
    for _ in range(2):
        bench.clock.pass_(10)
        answer = await keeper.report(1, token=token(1))
    assert not isinstance(answer, Unavailable)
    assert answer[0] is ReportOutcome.REFRESHED
    assert (bench.wechat.calls, bench.wechat.checks) == (2, 1)


async def test_reports_without_a_verdict_wait_for_min_gap_and_their_own_quota(
    bench: Bench,
) -> None:
    bench.policy = Policy(report_quota=2)
    keeper = await kept(bench)
    bench.wechat.verdicts.extend([Verdict.UNDECIDED] * 100)
    for _ in range(60):
        bench.clock.pass_(11)
        await keeper.report(1, version=keeper.credential.version)
        assert keeper.serve() is not None
    assert [row["lane"] for row in await bench.rows()] == ["scheduled", "report", "report"]


async def test_a_refused_token_is_not_served_while_min_gap_forbids_its_replacement(
    bench: Bench,
) -> None:
    keeper = await kept(bench)
    bench.wechat.verdicts.append(Verdict.DEAD)
    bench.clock.pass_(12)
    answer = await keeper.report(1, token=token(1))
    assert isinstance(answer, Unavailable)
    assert (answer.code, answer.retry_after) == (Code.REPORT_THROTTLED, 18)
    assert keeper.serve() is None
    bench.clock.pass_(18)
    await looked(keeper)
    assert value_of(keeper) == token(2)


async def test_reports_spend_their_own_lane_and_the_schedule_goes_on(bench: Bench) -> None:
    bench.policy = Policy(report_quota=3)
    keeper = await kept(bench)
    bench.wechat.verdicts.extend([Verdict.DEAD] * 10)
    refreshed = 0
    for _ in range(10):
        bench.clock.pass_(31)
        answer = await keeper.report(1, version=keeper.credential.version)
        refreshed += not isinstance(answer, Unavailable)
    assert refreshed == 3
    bench.clock.pass_(4000)
    await looked(keeper)
    assert value_of(keeper) is not None
    assert [row["lane"] for row in await bench.rows()] == [
        "scheduled",
        "report",
        "report",
        "report",
        "scheduled",
    ]


async def test_a_refused_stable_token_is_forced_out_at_most_twenty_times_a_day(
    bench: Bench,
) -> None:
    keeper = await bench.keeper(stable())
    await looked(keeper)
    bench.wechat.verdicts.extend([Verdict.DEAD] * 60)
    for _ in range(60):
        bench.clock.pass_(31)
        await keeper.report(1, version=keeper.credential.version)
        keeper = await bench.restarted(stable())  # the count is durable
    assert sum(bench.wechat.forced) == 20


async def test_the_third_token_that_dies_before_its_time_means_a_second_issuer(
    bench: Bench,
) -> None:
    keeper = await kept(bench)
    bench.wechat.verdicts.extend([Verdict.DEAD] * 3)
    for number in range(1, 4):
        bench.clock.pass_(600)
        await keeper.report(1, version=keeper.credential.version)
        keeper = await bench.restarted()
        assert keeper.credential.second_issuer.count == number
        assert keeper.credential.second_issuer.suspected == (number == 3)
    assert [facts["count"] for facts in bench.told("second-issuer")] == [1, 2, 3]


# --- a machine that was paused --------------------------------------------------------------------


@pytest.mark.parametrize(
    "verdict", [Verdict.ALIVE, Verdict.DEAD, Verdict.UNDECIDED, Verdict.UNKNOWN]
)
async def test_after_a_pause_a_token_is_verified_before_it_is_called_fresh(
    bench: Bench, verdict: Verdict
) -> None:
    # SCENARIOS.md 70
    keeper = await kept(bench)
    bench.clock.pass_(60)
    bench.wechat.verdicts.append(verdict)
    bench.clock.unix += 3 * 3600  # the steady clock stood still with the machine
    served = keeper.serve()
    assert served is not None
    assert served.state is TokenState.SUSPECT
    await looked(keeper)
    assert bench.wechat.checks == 1
    served = keeper.serve()
    assert served is not None
    still = verdict is Verdict.UNKNOWN
    assert served.state is (TokenState.SUSPECT if still else TokenState.FRESH)
    assert value_of(keeper) == token(2 if verdict is Verdict.DEAD else 1)
    for _ in range(3):
        bench.clock.pass_(10)
        await looked(keeper)
    assert bench.wechat.checks == (2 if still else 1)
    assert (again := keeper.serve()) is not None
    assert again.state is TokenState.FRESH


@pytest.mark.parametrize("set_by", [-3 * 3600, -60, 5, 59])
async def test_a_wall_clock_that_is_set_back_or_a_little_forward_costs_no_verification(
    bench: Bench, set_by: float
) -> None:
    keeper = await kept(bench)
    bench.clock.pass_(60)
    bench.clock.unix += set_by
    await looked(keeper)
    assert (served := keeper.serve()) is not None
    assert (served.state, bench.wechat.checks) == (TokenState.FRESH, 0)


# --- people ---------------------------------------------------------------------------------------


async def test_an_administrator_spends_a_call_within_min_gap_and_quota(bench: Bench) -> None:
    keeper = await kept(bench)
    assert code_of(await keeper.refresh(1)) is Code.REFRESH_THROTTLED
    bench.clock.pass_(30)
    assert isinstance(await keeper.refresh(1), Served)
    assert [row["lane"] for row in await bench.rows()] == ["scheduled", "admin"]
    assert value_of(keeper) == token(2)


async def test_an_administrator_need_not_sit_out_a_backoff(bench: Bench) -> None:
    keeper = await bench.keeper()
    bench.wechat.answers.append(
        Failure(Kind.ADMISSION, FailureCode.ERRCODE, errcode=40164, ip="203.0.113.7")
    )
    await looked(keeper)
    bench.clock.pass_(31)
    assert isinstance(await keeper.refresh(1), Served)


async def test_the_daily_quota_holds_whatever_asks(bench: Bench) -> None:
    account = replace(ACCOUNT, daily_quota=40)
    spare = 40 - calls_per_day(Endpoint.TOKEN, Policy())
    keeper = await bench.keeper(account)
    for _ in range(120):
        bench.clock.pass_(31)
        bench.wechat.verdicts.append(Verdict.DEAD)
        await keeper.refresh(0.1)
        await keeper.report(0.1, version=keeper.credential.version)
        keeper = await bench.restarted(account)
    made = [row["lane"] for row in await bench.rows()]
    assert len(made) == bench.wechat.calls <= 40
    assert len(made) - made.count("scheduled") == spare
    bench.clock.pass_(31)
    answer = await keeper.refresh(0.1)
    assert isinstance(answer, Unavailable)
    assert answer.code is Code.QUOTA_EXHAUSTED
    bench.clock.pass_(answer.retry_after)
    assert isinstance(await keeper.refresh(0.1), Served)


async def test_refreshes_in_a_loop_leave_the_schedule_its_share(bench: Bench) -> None:
    # SCENARIOS.md 58
    account = replace(ACCOUNT, daily_quota=60)
    keeper = await bench.keeper(account)
    refused: Unavailable | None = None
    for _ in range(2 * 86400 // 300):
        await looked(keeper)
        assert keeper.serve() is not None
        bench.clock.pass_(300)
        answer = await keeper.refresh(1)
        refused = answer if isinstance(answer, Unavailable) else refused
    assert refused is not None
    assert refused.code is Code.QUOTA_EXHAUSTED
    assert refused.limit is Limit.SCHEDULE_SHARE
    assert unavailable(refused).startswith("All of daily_quota that the schedule does not need is ")
    assert {facts["lane"] for facts in bench.told("quota-spent")} == {"admin"}


# --- watching -------------------------------------------------------------------------------------


async def test_watchers_wake_on_the_next_version_only(bench: Bench) -> None:
    keeper = await kept(bench)
    version = keeper.credential.version
    assert version is not None
    watchers = [asyncio.create_task(keeper.watch(version, 5)) for _ in range(100)]
    assert await keeper.watch(version, 0.01) is None
    bench.clock.pass_(4000)
    await looked(keeper)
    answers = await asyncio.gather(*watchers)
    assert {answer.credential.version for answer in answers if isinstance(answer, Served)} == {
        keeper.credential.version
    }
    assert keeper.credential.version != version


async def test_stopping_wakes_watchers_and_stores_the_call_under_way(bench: Bench) -> None:
    keeper = await kept(bench)
    assert keeper.credential.version is not None
    watcher = asyncio.create_task(keeper.watch(keeper.credential.version, 60))
    bench.clock.pass_(4000)
    bench.wechat.gate.clear()
    bench.wechat.arrived.clear()
    keeper.tick()
    await bench.wechat.arrived.wait()
    keeper.stop()
    assert await watcher is None
    assert value_of(keeper) == token(1)
    bench.wechat.gate.set()
    await keeper.drain()
    assert value_of(await bench.restarted()) == token(2)


# --- a disk that fails ----------------------------------------------------------------------------


async def test_without_a_reservation_there_is_no_call_and_memory_goes_on_serving(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = await kept(bench)
    store = await bench.open()

    async def full(*_: object) -> None:
        raise StoreError("database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(store, "reserve", full)
        bench.clock.pass_(4000)
        await looked(keeper)
        assert bench.wechat.calls == 1
        assert value_of(keeper) == token(1)
        assert keeper.store_error is not None
    bench.clock.pass_(5)
    await looked(keeper)
    assert value_of(keeper) == token(2)
    assert keeper.store_error is None


async def test_an_outcome_the_disk_does_not_take_is_served_and_stored_later_without_a_second_call(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = await kept(bench)
    store = await bench.open()

    async def full(*_: object) -> None:
        raise StoreError("database or disk is full")

    bench.clock.pass_(4000)
    with monkeypatch.context() as broken:
        broken.setattr(store, "settle", full)
        await looked(keeper)
        assert value_of(keeper) == token(2)
    bench.clock.pass_(6)
    await looked(keeper)
    assert bench.wechat.calls == 2
    restarted = await bench.restarted()
    assert (value_of(restarted), restarted.credential.suspicion) == (token(2), None)
    assert restarted.credential.called_at != NEVER


# --- another secret -------------------------------------------------------------------------------


async def test_another_secret_ends_the_pause_of_the_one_before_and_is_used_at_once(
    bench: Bench,
) -> None:
    keeper = await bench.keeper()
    bench.wechat.answers.append(Failure(Kind.CONFIGURATION, FailureCode.ERRCODE, 40125))
    await looked(keeper)
    bench.clock.pass_(59)
    await looked(keeper)
    assert bench.wechat.calls == 1  # the pause is a minute
    keeper.change_secret(Secret("another"))
    assert keeper.account.secret == Secret("another")
    await looked(keeper)
    assert value_of(keeper) == f"{CANARY}-main-t2"
    assert bench.wechat.secrets == [ACCOUNT.secret, Secret("another")]


async def test_another_secret_leaves_a_good_token_and_another_pause_alone(bench: Bench) -> None:
    keeper = await bench.keeper()
    await looked(keeper)
    held = value_of(keeper)
    keeper.change_secret(Secret("another"))
    await looked(keeper)
    assert (value_of(keeper), bench.wechat.calls) == (held, 1)
