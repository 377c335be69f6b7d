"""kill -9 at every step of a refresh, on real processes.

Nothing is lost, and nothing is spent twice.
"""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import invariants
from tests.harness.doubles import APPID
from tests.harness.processes import House, until

pytestmark = pytest.mark.soak

# Fast enough for a test; the refresh itself is the real one.
QUICK = "min_gap = 0.5\nmax_backoff = 1\nverify_gap = 0.2\nmin_serve = 1\noverlap = 5\n"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    with house.sandboxed():
        house.configure(policy=QUICK)
        yield house


def test_killed_before_the_answer_the_call_is_spent_and_the_token_suspect_then_replaced(
    house: House,
) -> None:
    with house.serving() as daemon:
        first = house.served()
        house.control("/hold", {"appid": APPID})
        # An administrator's refresh is the real path, at a moment of the test's choosing.
        threading.Thread(target=order_refreshes, args=[house], daemon=True).start()
        until(house.in_flight, "a call is held at the sandbox")
        daemon.kill()
    assert house.ledger()[-1]["outcome"] is None
    house.control("/release", {"appid": APPID})
    with house.serving() as daemon:
        again = house.served()
        assert again["state"] in {"suspect", "fresh"}
        assert again["expires_in"] <= 300 or again["version"] != first["version"]
        last = until(lambda: (t := house.served())["state"] == "fresh" and t, "replaced")
        assert last["version"] != first["version"]
        daemon.end()
    assert len(house.calls()) <= 3  # the first, the one that was cut off, its replacement
    invariants.check(house, [first, again, last])


def order_refreshes(house: House) -> None:
    """Order refreshes until the daemon is gone: the first that min_gap allows is made."""
    with contextlib.suppress(OSError):
        while True:
            house.post("/v1/tokens/main/refresh")


def test_killed_after_the_call_was_settled_the_restart_serves_the_new_token(house: House) -> None:
    with house.serving() as daemon:
        first = house.served()
        until(lambda: house.post("/v1/tokens/main/refresh")[0] == 200, "min_gap is over")
        daemon.kill()
    with house.serving():
        second = house.served()
    assert second["version"] != first["version"]
    assert second["state"] == "fresh"
    assert len(house.calls()) == 2
    invariants.check(house, [first, second])


def test_twenty_restarts_with_a_valid_token_make_no_call(house: House) -> None:
    answers = []
    for _ in range(5):
        with house.serving() as daemon:
            answers.append(house.served())
            daemon.kill()
    assert len({answer["version"] for answer in answers}) == 1
    assert len(house.calls()) == 1
    invariants.check(house, answers)


def test_a_crash_loop_without_a_token_follows_the_persisted_backoff(house: House) -> None:
    house.configure(policy="min_gap = 30")
    house.control("/faults", {"kind": "status", "status": 503, "times": None})
    for _ in range(6):
        with house.serving() as daemon:
            until(house.ledger, "the first call is reserved")
            daemon.kill()
    assert len(house.calls()) <= 1
    invariants.check(house)
