"""The decision as a table: a state, and when the next call is made."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core import decision, transitions
from broker.core.credential import (
    NEVER,
    Account,
    Credential,
    Doubt,
    Endpoint,
    HeldToken,
    Policy,
    Suspicion,
)
from broker.core.secret import Secret
from broker.core.transitions import lost, reserved

POLICY = Policy()
T0 = 1000.0
HELD = Credential(epoch="k3f9", token=HeldToken(Secret("t"), 7, T0, T0 + 7200), called_at=T0)
LOST = Suspicion(Doubt.LOST_ANSWER, T0 + 100, T0 + 400)
REFUSED = Suspicion(Doubt.REFUSED, T0 + 100, T0 + 100)


@pytest.mark.parametrize(
    ("state", "endpoint", "earliest", "latest"),
    [
        pytest.param(Credential(), Endpoint.TOKEN, NEVER, NEVER, id="nothing held: at once"),
        pytest.param(
            HELD, Endpoint.TOKEN, T0 + 3240, T0 + 3960, id="held, classic: half-life ± 10 %"
        ),
        pytest.param(
            HELD, Endpoint.STABLE, T0 + 6930, T0 + 6960, id="held, stable: inside the last 300 s"
        ),
        pytest.param(
            replace(HELD, suspicion=LOST),
            Endpoint.TOKEN,
            T0 + 340,
            T0 + 340,
            id="an answer was lost: when what was promised is over",
        ),
        pytest.param(
            replace(HELD, suspicion=LOST),
            Endpoint.STABLE,
            T0 + 30,
            T0 + 30,
            id="in doubt, stable: as soon as min_gap allows",
        ),
        pytest.param(
            replace(HELD, suspicion=REFUSED),
            Endpoint.TOKEN,
            T0 + 30,
            T0 + 30,
            id="refused: the same",
        ),
        pytest.param(
            replace(HELD, not_before=T0 + 5000),
            Endpoint.TOKEN,
            T0 + 5000,
            T0 + 5000,
            id="backing off: not before",
        ),
        pytest.param(
            replace(Credential(), called_at=T0),
            Endpoint.TOKEN,
            T0 + 30,
            T0 + 30,
            id="no token, just called: min_gap",
        ),
        pytest.param(
            replace(HELD, token=HeldToken(Secret("t"), 7, T0, T0 + 300)),
            Endpoint.STABLE,
            T0 + 150,
            T0 + 150,
            id="stable, short: half",
        ),
    ],
)
def test_when_the_next_call_is_due(
    state: Credential, endpoint: Endpoint, earliest: float, latest: float
) -> None:
    assert earliest <= decision.refresh_at(state, endpoint, POLICY) <= latest


def test_two_apps_do_not_call_together_and_a_restart_keeps_the_plan() -> None:
    others = [replace(HELD, epoch=f"e{number}") for number in range(50)]
    plans = {decision.refresh_at(state, Endpoint.TOKEN, POLICY) for state in others}
    assert len(plans) == 50
    assert plans == {decision.refresh_at(state, Endpoint.TOKEN, POLICY) for state in others}


PLANNED = replace(HELD, token=HeldToken(Secret("t"), 7, T0, T0 + 7200, T0 + 3700))
FAILED = replace(PLANNED, not_before=T0 + 4000)
IN_FLIGHT = replace(PLANNED, called_at=T0 + 3702, reserved_call=8)


@pytest.mark.parametrize(
    ("state", "endpoint", "now", "until"),
    [
        pytest.param(PLANNED, Endpoint.TOKEN, T0, T0 + 3940, id="the plan and the sure part"),
        pytest.param(PLANNED, Endpoint.TOKEN, T0 + 3703, T0 + 3943, id="due, not begun"),
        pytest.param(IN_FLIGHT, Endpoint.TOKEN, T0 + 3710, T0 + 3942, id="a call under way"),
        pytest.param(FAILED, Endpoint.TOKEN, T0 + 3710, T0 + 4240, id="failed: the next attempt"),
        pytest.param(PLANNED, Endpoint.TOKEN, T0 + 7100, T0 + 7200, id="never past WeChat's end"),
        pytest.param(
            replace(HELD, suspicion=LOST), Endpoint.TOKEN, T0 + 100, T0 + 340, id="lost answer"
        ),
        pytest.param(
            replace(HELD, suspicion=LOST), Endpoint.TOKEN, T0 + 350, T0 + 350, id="lost, retried"
        ),
        pytest.param(
            replace(HELD, suspicion=LOST, not_before=T0 + 390),
            Endpoint.TOKEN,
            T0 + 350,
            T0 + 350,
            id="lost, and the next attempt failed: the overlap has a fuzzy edge",
        ),
        pytest.param(
            replace(HELD, suspicion=REFUSED), Endpoint.TOKEN, T0 + 101, T0 + 100, id="refused"
        ),
        pytest.param(PLANNED, Endpoint.STABLE, T0, T0 + 7200, id="stable: nothing kills it early"),
        pytest.param(PLANNED, Endpoint.WECOM, T0 + 7100, T0 + 7200, id="WeCom: the same"),
        pytest.param(Credential(), Endpoint.TOKEN, T0, NEVER, id="nothing held"),
    ],
)
def test_what_is_promised(state: Credential, endpoint: Endpoint, now: float, until: float) -> None:
    assert decision.promised_until(state, endpoint, POLICY, now) == pytest.approx(until)


def test_a_plan_that_was_told_moves_later_and_never_earlier() -> None:
    hasty, lazy = Policy(refresh_fraction=0.2), Policy(refresh_fraction=0.8)
    assert decision.scheduled_at(PLANNED, Endpoint.TOKEN, hasty) == T0 + 3700
    assert decision.scheduled_at(PLANNED, Endpoint.TOKEN, lazy) > T0 + 5000


def test_a_promise_holds_though_a_later_plan_is_taken_back() -> None:
    hasty, lazy = Policy(refresh_fraction=0.2), Policy(refresh_fraction=0.8)
    told = decision.promised_until(PLANNED, Endpoint.TOKEN, lazy, T0 + 100)
    assert told == T0 + 3940
    assert told <= decision.scheduled_at(PLANNED, Endpoint.TOKEN, hasty) + hasty.overlap


def test_the_plan_is_made_when_the_token_is_minted() -> None:
    after = transitions.minted(Credential("e"), 5, T0, (Secret("n"), 7200.0), policy=POLICY)
    assert after.token is not None
    assert after.token.replace_at == decision.scheduled_at(after, Endpoint.TOKEN, POLICY)
    assert T0 + 3240 <= after.token.replace_at <= T0 + 3960


@given(
    lifetime=st.floats(1, 86400),
    fraction=st.floats(0.1, 0.9),
    overlap=st.floats(0, 900),
    age=st.floats(0, 1),
)
def test_no_promise_outlives_the_schedules_own_call(
    lifetime: float, fraction: float, overlap: float, age: float
) -> None:
    """Whenever it is given, before the call or while it is due: the previous token lives on."""
    policy = Policy(refresh_fraction=fraction, overlap=overlap)
    answer = (Secret("n"), lifetime)
    held = transitions.minted(Credential("e", called_at=T0), 1, T0, answer, policy=policy)
    assert held.token is not None
    now = T0 + age * lifetime
    called_at = max(decision.refresh_at(held, Endpoint.TOKEN, policy), now)
    dies_at = min(called_at + overlap, held.token.expires_at)
    assert decision.promised_until(held, Endpoint.TOKEN, policy, now) <= dies_at + 1e-6


def test_an_older_answer_changes_nothing_but_closes_its_call() -> None:
    state = replace(HELD, reserved_call=5)
    after = transitions.minted(state, 5, T0 + 50, (Secret("older"), 7200.0))
    assert after.token == HELD.token
    assert after.reserved_call is None


def test_repeating_a_refused_token_does_not_make_it_good_and_another_one_is() -> None:
    state = replace(HELD, suspicion=REFUSED)
    assert transitions.minted(state, 9, T0 + 200, (Secret("t"), 5000.0)).refused
    assert not transitions.minted(state, 9, T0 + 200, (Secret("u"), 5000.0)).refused


def test_of_two_lost_answers_the_first_sets_the_safe_end() -> None:
    once = transitions.lost(HELD, T0 + 100, POLICY.overlap)
    twice = transitions.lost(once, T0 + 250, POLICY.overlap)
    assert once.suspicion is not None
    assert twice.suspicion is not None
    assert once.suspicion.safe_until == twice.suspicion.safe_until == T0 + 400


def test_a_secret_cannot_be_printed_or_pickled() -> None:
    secret = Secret("hush")
    assert "hush" not in f"{secret!r} {secret} {[secret]} {Account('a', 'wx1', secret)}"
    with pytest.raises(TypeError):
        secret.__reduce__()


@given(st.text(min_size=1), st.text(min_size=1))
def test_secrets_are_equal_when_their_values_are(one: str, other: str) -> None:
    assert (Secret(one) == Secret(other)) == (one == other)


def test_a_token_given_back_in_a_new_epoch_is_not_older_than_itself_by_another_clock() -> None:
    """Two brokers must not give the token back to each other for ever.

    Each time would cost a row of the ledger.
    """
    read = replace(HELD, epoch="m4p7", token=HeldToken(Secret("t"), 9, T0 - 0.002, T0 + 7199.998))
    assert not transitions.is_older(read, HELD)
    assert transitions.read_repair(read, HELD, 10) is None
    assert transitions.is_older(
        replace(read, token=HeldToken(Secret("s"), 9, T0 - 100, T0 + 7100)), HELD
    )


def test_with_a_second_call_whose_answer_may_be_lost_nothing_is_promised() -> None:
    sure = POLICY.overlap * decision.SURE_PART
    once = lost(HELD, T0 + 3600, POLICY.overlap)
    twice = lost(once, T0 + 3600 + sure, POLICY.overlap)
    now = T0 + 3600 + sure + 10
    under_way = reserved(once, 8, T0 + 3600 + sure)
    for state, until in ((once, T0 + 3600 + sure), (under_way, now), (twice, now)):
        assert decision.promised_until(state, Endpoint.TOKEN, POLICY, min(now, until)) == until
