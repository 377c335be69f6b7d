"""Each rule of the history's checker, on the smallest history that breaks it.

One history breaks none.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.harness.doubles import CANARY
from tests.history.audit import Event
from tests.history.checker import leaks, violations
from tests.history.record import Answer, Blow, History, Rules

T0 = 1_790_000_000.0
APPID = "wxa"
EVENT = Event(0, T0, 0, "account", APPID, "e", 1, *[None] * 8)


def call(number: int, at: float) -> dict[str, Any]:
    return {
        "n": number,
        "at": at,
        "appid": APPID,
        "by": "client",
        "minted": True,
        "token_sha256": f"t{number}",
    }


def row(number: int, at: float, outcome: str | None = "minted") -> dict[str, Any]:
    return {
        "appid": APPID,
        "epoch": "e",
        "id": number,
        "at": at,
        "outcome": outcome,
        "lease_lost": 0,
        "node": "a",
        "cost": 1,
    }


def answer(number: int, at: float, **other: Any) -> Answer:
    bare = Answer(at, at + 0.01, "a", 1, APPID, "GET", 200, f"e-{number}", f"t{number}", 5)
    return replace(bare, **other)


def refresh(number: int, at: float, node: str = "a") -> list[Event]:
    """What the database sees of one."""
    its = replace(EVENT, call=number, at=at, called_at=at, xid=2 * number)
    done = replace(its, at=at + 0.2, xid=2 * number + 1)
    return [
        replace(its, kind="reserved", node=node),
        replace(
            its,
            opened=number,
            token_call=number - 1 or None,
            sha256=f"t{number - 1}" if number > 1 else None,
        ),
        replace(done, kind="settled", node=node, outcome="minted", lease_lost=0),
        replace(done, token_call=number, sha256=f"t{number}"),
    ]


def good() -> History:
    """Two refreshes, ten seconds apart, and who asked between."""
    return History(
        Rules(lifetime=20, overlap=5, lease=6, quota={APPID: 3}),
        answers=[
            answer(1, T0 + 1),
            answer(1, T0 + 9, node="b"),
            answer(2, T0 + 11),
            answer(2, T0 + 12, node="b"),
        ],
        calls=[call(1, T0 + 0.1), call(2, T0 + 10.1)],
        ledger=[row(1, T0), row(2, T0 + 10)],
        events=[*refresh(1, T0), *refresh(2, T0 + 10, "b")],
        lives={("a", 1): T0 - 1, ("b", 1): T0 - 1},
        converged_s=[0.1],
    )


def late(history: History) -> None:
    """The first call's holder was stopped, and calls after the second one did.

    Its token is now the one in force at WeChat.
    """
    history.calls[0]["at"], history.calls = T0 + 10.5, history.calls[::-1]
    settled = replace(history.events[2], at=T0 + 11, xid=9, lease_lost=1)
    history.answers = []
    history.events = [*history.events[:2], *history.events[4:], settled]


def hasty(history: History) -> None:
    """The second holder did not wait for the first one's deadline."""
    second = replace(history.events[4], at=T0 + 5, called_at=T0 + 5)
    history.events = [*history.events[:2], second, *history.events[5:]]


SPOILT: dict[str, tuple[str, Callable[[History], object]]] = {
    "a call before its row": ("I1: call 2", lambda it: it.ledger.__setitem__(1, row(2, T0 + 10.2))),
    "a call without a row": ("I1: call 2", lambda it: it.ledger.pop()),
    "a row of a call that was not made": (
        "I1: call 2",
        lambda it: it.ledger.__setitem__(1, row(2, T0 + 10, "given back")),
    ),
    "more than the quota": (
        "I2: 4 rows",
        lambda it: it.ledger.extend([row(3, T0 + 30), row(4, T0 + 40)]),
    ),
    "a lost row, though synchronous": ("lost: 1", lambda it: it.lost.append(row(3, T0 + 3))),
    "two in flight": ("I3: e-2 was reserved by b", hasty),
    "a number reserved twice": (
        "I3: e-1 was reserved twice",
        lambda it: it.events.extend(refresh(1, T0 + 20)[:1]),
    ),
    "settled by who was deposed": ("fence: e-1", lambda it: it.events.append(it.events.pop(2))),
    "settled twice": ("publisher: e-2", lambda it: it.events.append(it.events[6])),
    "a late answer that nobody doubts": ("late: e-1", late),
    "a version that means two tokens": (
        "I4: e-2 of",
        lambda it: it.answers.append(answer(2, T0 + 13, digest="t1")),
    ),
    "a token out of nowhere": (
        "I4: a served a token",
        lambda it: it.answers.append(answer(3, T0 + 13)),
    ),
    "an older after a newer": (
        "I4: a served e-1",
        lambda it: it.answers.append(answer(1, T0 + 13)),
    ),
    "older than what was stored": (
        "though a newer one was stored",
        lambda it: it.answers.append(answer(1, T0 + 13, life=2)),
    ),
    "expired": (
        "I5: b served e-2",
        lambda it: it.answers.append(answer(2, T0 + 31, node="b", expires_in=0)),
    ),
    "more than the truth": (
        "I5: b said 19 s",
        lambda it: it.answers.append(answer(2, T0 + 13, node="b", expires_in=19)),
    ),
    "dead, and nobody noticed": (
        "dead: c served e-1",
        lambda it: it.answers.append(answer(1, T0 + 19, node="c", expires_in=0)),
    ),
    "no agreement": ("converged: only 5.1", lambda it: it.converged_s.append(5.1)),
}


def test_a_good_history_is_good() -> None:
    assert violations(good()) == []


@pytest.mark.parametrize("name", SPOILT)
def test_what_must_not_be_is_found(name: str) -> None:
    said, spoil = SPOILT[name]
    history = good()
    history.lives["a", 2] = T0 + 12.5
    spoil(history)
    found = violations(history)
    assert any(said in it for it in found), found


def test_what_happens_while_something_is_amiss_is_no_violation() -> None:
    """A node that is cut off serves what it has.

    A holder that is stopped while it answers is late.
    """
    history = good()
    history.answers += [
        answer(1, T0 + 19, node="c", expires_in=0),
        answer(2, T0 + 29, node="b", expires_in=0, received_at=T0 + 33),
    ]
    history.blows = [
        Blow("cut", T0 + 9, "c", healed_at=T0 + 40),
        Blow("stop", T0 + 28, "b", healed_at=T0 + 33),
    ]
    assert violations(history) == []


def test_an_asynchronous_standby_may_cost_the_rows_it_lost_and_no_more() -> None:
    history = good()
    history.synchronous, history.lost = False, [row(3, T0 + 20)]
    history.calls += [call(number, T0 + 10 * number) for number in (3, 4)]
    history.ledger += [row(4, T0 + 39)]
    assert violations(history) == []
    history.calls.append(call(5, T0 + 50))
    history.ledger.append(row(5, T0 + 49))
    assert any(said.startswith("I2: 5 calls") for said in violations(history))


@pytest.mark.parametrize("content", [f"…{CANARY}-secret…", f"…97_{'x' * 132}…"])
def test_a_secret_or_a_token_in_a_log_is_found(tmp_path: Path, content: str) -> None:
    assert leaks([tmp_path]) == []
    (tmp_path / "daemon.log").write_text(content)
    assert leaks([tmp_path]) == [f"I6: {tmp_path}/daemon.log"]
