"""A fortnight of bad luck in a minute. `SOAK_SEED=n` repeats a run, `SOAK_DAYS=n` makes it longer."""

import os
import random
import time
from pathlib import Path

import pytest

from tests.simulation.one_host import Town, table


@pytest.mark.soak
async def test_a_fortnight_of_faults_restarts_and_wrong_clocks_serves_no_bad_answer(tmp_path: Path) -> None:
    seed = int(os.environ.get("SOAK_SEED") or random.randrange(10**6))
    days = float(os.environ.get("SOAK_DAYS") or 14)
    print(f"SOAK_SEED={seed} SOAK_DAYS={days:g}")
    town, began = Town(tmp_path, seed, days), time.monotonic()
    checker = await town.live()
    print(table(town, days, time.monotonic() - began))
    assert checker.bad == []
    assert town.leaks == []
    assert not town.said["crashed"]
    assert checker.answers > days * 10_000
