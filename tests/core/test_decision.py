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
            T0 + 30,
            T0 + 30,
            id="in doubt: as soon as min_gap allows",
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


@pytest.mark.parametrize(
    ("state", "now", "left"),
    [
        (HELD, T0 + 0.5, 7199),
        (HELD, T0 + 7185, 15),
        (HELD, T0 + 7185.1, None),
        (replace(HELD, suspicion=LOST), T0 + 100, 300),
        (replace(HELD, suspicion=LOST), T0 + 386, None),
        (replace(HELD, suspicion=REFUSED), T0 + 101, None),
        (Credential(), T0, None),
    ],
)
def test_seconds_left_are_whole_never_more_than_the_truth_and_none_below_min_serve(
    state: Credential, now: float, left: int | None
) -> None:
    assert decision.seconds_left(state, POLICY, now) == left


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


def test_a_token_that_was_given_back_in_a_new_epoch_is_not_older_than_itself_however_it_looks_by_another_clock() -> (
    None
):
    """Else two brokers would give it back to each other for ever, each time at the cost of a row of the ledger."""
    read = replace(HELD, epoch="m4p7", token=HeldToken(Secret("t"), 9, T0 - 0.002, T0 + 7199.998))
    assert not transitions.is_older(read, HELD)
    assert transitions.read_repair(read, HELD, 10) is None
    assert transitions.is_older(
        replace(read, token=HeldToken(Secret("s"), 9, T0 - 100, T0 + 7100)), HELD
    )
