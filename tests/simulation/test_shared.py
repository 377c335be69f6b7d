"""Days of bad luck of three brokers that share a database. `SOAK_DAYS=n` makes it longer.

`SOAK_SEED=n` draws the same misfortunes, but PostgreSQL answers in real time: it is not exactly the
same run again.
"""

import os
import random
import time

import pytest

from tests.harness.cluster import Cluster, cluster
from tests.simulation.one_host import table
from tests.simulation.shared import SharedSimulation
from tests.simulation.shared_hosts import CarelessLink, Link

pytestmark = pytest.mark.needs("initdb")


@pytest.mark.soak
async def test_days_of_stops_cuts_and_failovers_serve_no_bad_answer_on_any_of_three_hosts() -> None:
    days = float(os.environ.get("SOAK_DAYS") or 2)
    with cluster() as server:
        simulation, began = _country(server, days, Link), time.monotonic()
        checker = await simulation.live()
    print(table(simulation, days, time.monotonic() - began))
    assert checker.bad == []
    assert simulation.leaks == []
    assert not simulation.said["crashed"]
    assert checker.answers > days * 100_000
    assert min(simulation.happened[what] for what in ("stop", "crash", "cut", "lose answer")) > 0


@pytest.mark.soak
async def test_without_the_fence_the_same_days_are_bad() -> None:
    with cluster() as server:
        simulation = _country(server, 6, CarelessLink)
        simulation.rates["stop"] = 100.0
        checker = await simulation.live()
    assert checker.bad != []


def _country(server: Cluster, days: float, link: type[Link]) -> SharedSimulation:
    seed = int(os.environ.get("SOAK_SEED") or random.randrange(10**6))
    print(f"SOAK_SEED={seed} SOAK_DAYS={days:g}")
    return SharedSimulation(server.dsn(server.database()), seed, days, link)
