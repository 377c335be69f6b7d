"""A fortnight of bad luck in a minute.

`SOAK_SEED=n` repeats a run, `SOAK_DAYS=n` makes it longer.
"""

import os
import random
import time
from pathlib import Path

import pytest

from tests.simulation.one_host import Simulation, table


@pytest.mark.soak
async def test_a_fortnight_of_faults_restarts_and_wrong_clocks_serves_no_bad_answer(
    tmp_path: Path,
) -> None:
    seed = int(os.environ.get("SOAK_SEED") or random.randrange(10**6))
    days = float(os.environ.get("SOAK_DAYS") or 14)
    print(f"SOAK_SEED={seed} SOAK_DAYS={days:g}")
    simulation, began = Simulation(tmp_path, seed, days), time.monotonic()
    checker = await simulation.live()
    print(table(simulation, days, time.monotonic() - began))
    assert checker.bad == []
    assert simulation.leaks == []
    assert not simulation.said["crashed"]
    assert checker.answers > days * 10_000
