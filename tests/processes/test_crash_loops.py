"""A supervisor that restarts a daemon which dies again and again.

What is persisted keeps the daemon from calling WeChat each time.
"""

import asyncio
import itertools
import json
import random
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from broker.core.quota import DAY
from tests.harness import invariants
from tests.harness.crashpoints import ForkedDaemon, ForkServer
from tests.harness.doubles import APPID, DOWN, LOST, Bench, looked
from tests.harness.processes import until
from tests.harness.small_disk import fill

BETWEEN_STARTS_S = 150


class Cramped(ForkedDaemon):
    """A house whose store is on the small disk."""

    @property
    def store(self) -> Path:
        return self.home / "disk" / "broker.db"


@pytest.fixture
def lifetime_s() -> float:
    """In its last minutes from the start, when a broken disk calls for an emergency."""
    return 20


@pytest.fixture
def house(
    tmp_path: Path, small_disk: Path, forks: ForkServer, lifetime_s: float
) -> Iterator[ForkedDaemon]:
    """A store on the small disk; tokens are due after 0.2 s or a hundredth of their life."""
    assert small_disk.is_mount()
    house = Cramped(tmp_path, fork_server=forks)
    with house.simulating("--expires-in", str(lifetime_s)):
        house.configure(
            policy="min_gap = 0.1\nmax_backoff = 0.1\nmin_serve = 1\n"
            f"refresh_fraction = {max(0.01, 0.2 / lifetime_s)}"
        )
        yield house


def die() -> None:
    raise asyncio.CancelledError


@pytest.mark.soak
async def test_a_day_of_crashes_while_wechat_is_down_follows_the_persisted_backoff(
    bench: Bench,
) -> None:
    chance, called_at = random.Random(7), list[float]()
    morning = bench.clock.now()
    while bench.clock.now() < morning + DAY:
        keeper = await bench.restarted()
        before = bench.wechat.calls
        bench.wechat.answers.append(chance.choice([DOWN, LOST]))
        bench.wechat.before_answer = chance.choice([die, lambda: None])
        await looked(keeper)
        called_at += [bench.clock.now()] * (bench.wechat.calls - before)
        bench.clock.pass_(BETWEEN_STARTS_S)
    gaps = [later - sooner for sooner, later in itertools.pairwise(called_at)]
    assert gaps[:4] == [150, 150, 150, 300]  # 30, 60, 120, 240: as soon as a start comes
    assert set(gaps[4:]) == {300}
    assert len(called_at) < DAY / 300 + 5
    assert len(await bench.rows()) == len(called_at)


@pytest.mark.parametrize("lifetime_s", [310])  # due after 3 s; not in its last minutes before 10
@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_daemon_that_starts_again_and_again_on_an_unwritable_store_serves_and_makes_no_call(
    house: ForkedDaemon, small_disk: Path, how: str
) -> None:
    with house.living() as daemon:
        until(lambda: house.get("/readyz")[0] == 200, "a token")
        first = house.served()
        daemon.kill()
    calls = len(house.calls())
    if how == "full":
        fill(small_disk)
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    starts, state = 0, "fresh"
    while starts < 10 or state == "fresh":
        with house.living(environ={"RUNTIME_DIRECTORY": str(house.home)}) as daemon:
            served = house.served()
            assert served["version"] == first["version"]
            starts, state = starts + 1, served["state"]
            daemon.kill()
    assert len(house.calls()) == calls
    assert "Traceback" not in (house.home / "daemon.log").read_text()


def said_more(house: ForkedDaemon, event: str, than: int) -> bool:
    return len(house.said(event)) > than


def test_daemons_that_die_after_their_disk_broke_share_one_emergency_budget(
    house: ForkedDaemon, small_disk: Path
) -> None:
    runtime = house.home / "run"
    runtime.mkdir()
    for life in range(6):
        before = len(house.said("store-failed")) if life else 0
        with house.living(environ={"RUNTIME_DIRECTORY": str(runtime)}) as daemon:
            until(lambda: house.get("/readyz")[0] == 200, "a token")
            ballast = fill(small_disk)
            more = partial(said_more, house, "store-failed" if life else "emergency-call", before)
            until(
                more,
                "an emergency call, or where there is none to make, a refresh that cannot be"
                " reserved",
            )
            daemon.kill()
        ballast.unlink()
    spent = json.loads((runtime / "emergency.json").read_text())[APPID]["made"]
    assert (len(spent), len(house.said("emergency-call"))) == (
        1,
        1,
    )  # the next one may be made after 300 s
    assert len(house.calls()) <= len(house.ledger()) + len(spent)
    invariants.i6_nothing_leaks(house.home)


def test_an_emergency_call_of_a_dead_process_is_entered_into_the_ledger(
    house: ForkedDaemon, small_disk: Path
) -> None:
    runtime = house.home / "run"
    runtime.mkdir()
    with house.living(environ={"RUNTIME_DIRECTORY": str(runtime)}) as daemon:
        until(lambda: house.get("/readyz")[0] == 200, "a token")
        ballast = fill(small_disk)
        until(partial(said_more, house, "emergency-call", 0), "an emergency call")
        daemon.kill()
    ballast.unlink()
    with house.living(environ={"RUNTIME_DIRECTORY": str(runtime)}) as daemon:
        n = len(house.ledger())
        until(lambda: len(house.ledger()) > n + 1, "looks after it")
        daemon.end()
    invariants.i1_every_call_has_its_row(house.calls(), house.ledger())
