"""A daemon that is told to stop, stopped by SIGSTOP, hung up on, or has a bug.

It ends well, or goes on as before.
"""

import select
import signal
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.harness import invariants
from tests.harness.crashpoints import ForkedDaemon, ForkServer
from tests.harness.doubles import APPID
from tests.harness.processes import ME, PATIENCE_S, until

QUICK = "min_gap = 0.3\nmax_backoff = 1\nverify_gap = 0.1\nmin_serve = 2\noverlap = 5\n"
BRIEF = {"TOKEN_BROKER_WECHAT__TIMEOUT": "0.5"}
EAGER = {
    "TOKEN_BROKER_POLICY__REFRESH_FRACTION": "0.05",
    "TOKEN_BROKER_POLICY__TICK": "0.05",
}  # due after 0.3 s
LIFETIME = 5


@pytest.fixture
def house(tmp_path: Path, forks: ForkServer) -> Iterator[ForkedDaemon]:
    house = ForkedDaemon(tmp_path, fork_server=forks)
    with house.simulating("--expires-in", str(LIFETIME), "--overlap", "5"):
        house.configure(policy=QUICK)
        yield house


def test_an_answer_that_never_comes_is_awaited_no_longer_than_a_call_may_take(
    house: ForkedDaemon,
) -> None:
    with house.living(environ=BRIEF | EAGER) as daemon:
        first = house.served()
        house.control("/hold", {"appid": APPID})
        until(house.in_flight, "a call is held")
        asked_to_end = time.monotonic()
        assert daemon.end() == 0
        assert time.monotonic() - asked_to_end < 0.5 + 2
    assert house.outcomes() == ["minted", "lost"]
    house.control("/release", {"appid": APPID})
    with house.living():
        again = house.served()
        assert (again["version"], again["state"]) == (first["version"], "suspect")
    invariants.check(house, [first, again])


def test_after_a_stop_that_outlasted_the_token_one_refresh_follows_and_the_dead_token_is_not_served(
    house: ForkedDaemon,
) -> None:
    answers: list[dict[str, Any]] = []
    with house.living() as daemon:
        answers.append(house.served())
        dead_at = answers[0]["received_at"] + LIFETIME - 2  # min_serve
        daemon.send(signal.SIGSTOP)
        asking = threading.Thread(target=lambda: answers.append(house.served()))
        asking.start()
        until(lambda: time.time() > dead_at, "the token has died")
        daemon.send(signal.SIGCONT)
        asking.join(PATIENCE_S)
    assert answers[1]["version"] != answers[0]["version"]
    assert answers[1]["state"] == "fresh"
    assert len(house.calls()) == 2
    invariants.check(house, answers)


def test_a_call_under_way_while_the_process_was_stopped_is_judged_by_its_own_deadline(
    house: ForkedDaemon,
) -> None:
    with house.living(environ=BRIEF | EAGER) as daemon:
        first = house.served()
        house.control("/hold", {"appid": APPID})
        until(house.in_flight, "a call is held")
        called_at = time.monotonic()
        daemon.send(signal.SIGSTOP)
        house.control(
            "/release", {"appid": APPID}
        )  # its answer waits in the socket, and is too late
        until(lambda: time.monotonic() > called_at + 0.6, "the deadline is over")
        daemon.send(signal.SIGCONT)
        last = until(
            lambda: (it := house.served())["version"] != first["version"] and it, "another token"
        )
        assert daemon.end() == 0
    assert house.outcomes()[:3] == ["minted", "lost", "minted"]
    invariants.check(house, [first, last])


def test_the_caller_that_started_a_call_hangs_up_and_the_others_get_its_token(
    house: ForkedDaemon,
) -> None:
    house.control("/faults", {"kind": "status", "status": 503})
    with house.living(
        environ={"TOKEN_BROKER_POLICY__TICK": "300"}
    ) as daemon:  # so that it is a caller who starts the next
        until(
            lambda: house.ledger() and house.outcomes() == ["transient"],
            "the first call has failed",
        )
        house.control("/hold", {"appid": APPID})
        hasty = HTTPConnection(house.daemon.removeprefix("http://"), timeout=PATIENCE_S)
        until(lambda: asks(hasty, house), "a call that a caller started")
        answers: list[dict[str, Any]] = []
        patient = [
            threading.Thread(target=lambda: answers.append(house.served())) for _ in range(5)
        ]
        for thread in patient:
            thread.start()
        hasty.close()
        house.control("/release", {"appid": APPID})
        for thread in patient:
            thread.join(PATIENCE_S)
        assert daemon.end() == 0
    assert len({answer["version"] for answer in answers}) == 1
    assert (len(answers), len(house.calls())) == (5, 2)
    invariants.check(house, answers)


def asks(caller: HTTPConnection, house: ForkedDaemon) -> bool:
    """Whether this request has started a call; until one is due, it is answered at once."""
    caller.request("GET", "/v1/tokens/main", headers=ME)
    assert caller.sock is not None
    if select.select([caller.sock], [], [], 0.1)[0]:
        caller.getresponse().read()
        return False
    return house.in_flight()


def test_a_bug_in_every_look_is_told_once_and_http_goes_on_answering(house: ForkedDaemon) -> None:
    with house.living(wiring="stumbling", environ=EAGER) as daemon:
        until(
            lambda: (house.home / "daemon.log").read_text().count("executed successfully") > 5,
            "several looks",
        )
        assert [house.get(path)[0] for path in ("/livez", "/readyz", "/v1/status")] == [
            200,
            503,
            200,
        ]
        assert daemon.end() == 0
    (line,) = house.said("crashed")
    assert (line["app"], line["level"]) == ("main", "error")
    assert "RuntimeError: a bug" in line["exception"]
