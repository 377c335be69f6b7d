"""A whole history of three brokers that share a database, before the checker. `HISTORY_SEED=n` draws the same blows again.

`HISTORY_ROUNDS=n`: how many rounds of blows a storm has; as many as CI has time for, where nobody says.
"""

import os
import random
from functools import partial
from pathlib import Path

import pytest

from tests.cluster import Cluster, standby_of
from tests.cluster import cluster as own_cluster
from tests.history.checker import violations
from tests.history.clients import crowd
from tests.history.nemeses import AROUND, kill_the_holder, rounds, stop_the_holder, storm
from tests.history.record import History
from tests.history.world import World, world

SEED = int(os.environ.get("HISTORY_SEED") or random.randrange(10**6))
ROUNDS = int(os.environ.get("HISTORY_ROUNDS") or 6)


async def weathered(it: World, blows: list[tuple[object, ...]]) -> tuple[History, list[str]]:
    """A world with clients after a storm; what was seen, and what is wrong with it."""
    print(f"HISTORY_SEED={SEED}")
    async with crowd(it, SEED):
        await it.agree()
        await storm(it, blows, random.Random(SEED))  # type: ignore[arg-type]
        history, leaks = await it.seen(), it.leaks()
    print(history.summary())
    return history, leaks + violations(history)


async def test_a_short_storm_breaks_nothing(tmp_path: Path, cluster: Cluster) -> None:
    async with world(tmp_path, cluster) as it:
        blows = [
            (partial(stop_the_holder, "called", 1.0), AROUND["clock"]),
            (partial(kill_the_holder, "settled"), AROUND["cut"]),
        ]
        _, wrong = await weathered(it, list(blows))
    assert wrong == []


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["synchronous", "asynchronous"])
async def test_a_storm_with_a_failover_breaks_nothing(tmp_path: Path, kind: str) -> None:
    with own_cluster() as primary, standby_of(primary) as standby:
        if kind == "synchronous":
            primary.reload(synchronous_standby_names="standby")
        async with world(tmp_path, primary, standby) as it:
            it.history.synchronous = kind == "synchronous"
            history, wrong = await weathered(it, list(rounds(kind, ROUNDS, it.scale.rules.lease, random.Random(SEED))))
    assert wrong == []
    assert bool(history.lost) == (kind == "asynchronous"), "the failover missed what it was meant for"
