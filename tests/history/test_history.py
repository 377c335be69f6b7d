"""A whole history of three brokers that share a database, before the checker.

`HISTORY_SEED=n` draws the same blows again.

`HISTORY_ROUNDS=n`: how many rounds of blows a storm has; as many as CI has time for, where nobody
says. `HISTORY_DUMP=file`: what was seen, as a pickle of :class:`tests.history.record.History`.
"""

import asyncio
import os
import pickle
import random
from functools import partial
from pathlib import Path

import pytest

from tests.harness.cluster import Cluster, standby_of
from tests.harness.cluster import cluster as own_cluster
from tests.history.checker import violations
from tests.history.clients import crowd
from tests.history.nemeses import (
    AROUND,
    BEYOND_S,
    fail_over_in_the_dark,
    kill_the_holder,
    let_them_call,
    rounds,
    stop_the_holder,
    storm,
    until,
)
from tests.history.node import WAIT_S
from tests.history.record import History
from tests.history.world import NODES, POOR, Scale, World, world

SEED = int(os.environ.get("HISTORY_SEED") or random.randrange(10**6))
ROUNDS = int(os.environ.get("HISTORY_ROUNDS") or 5)


async def weathered(it: World, blows: list[tuple[object, ...]]) -> tuple[History, list[str]]:
    """A world with clients after a storm; what was seen, and what is wrong with it."""
    print(f"HISTORY_SEED={SEED}")
    async with crowd(it, SEED):
        await it.agree()
        await storm(it, blows, random.Random(SEED))  # type: ignore[arg-type]
    history, leaks = await it.seen(), it.leaks()
    print(history.summary())
    if where := os.environ.get("HISTORY_DUMP"):
        Path(where).write_bytes(pickle.dumps(history))
    wrong = leaks + violations(history)
    print("\n".join(wrong))
    return history, wrong


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
@pytest.mark.needs("initdb")
async def test_a_storm_with_a_failover_breaks_nothing(tmp_path: Path, kind: str) -> None:
    with own_cluster() as primary, standby_of(primary) as standby:
        if kind == "synchronous":
            primary.reload(synchronous_standby_names="standby")
        async with world(tmp_path, primary, standby) as it:
            it.history.synchronous = kind == "synchronous"
            history, wrong = await weathered(
                it, list(rounds(kind, ROUNDS, it.scale.rules.lease, random.Random(SEED)))
            )
    assert wrong == []
    assert bool(history.lost) == (kind == "asynchronous"), (
        "the failover missed what it was meant for"
    )


@pytest.mark.soak
@pytest.mark.needs("initdb")
async def test_who_has_not_heard_of_what_a_failover_lost_is_found_out(tmp_path: Path) -> None:
    with own_cluster() as primary, standby_of(primary) as standby:
        async with world(tmp_path, primary, standby) as it:
            it.history.synchronous = False
            history, wrong = await weathered(
                it,
                [
                    (partial(let_them_call, 3),),
                    (fail_over_in_the_dark,),
                    (partial(let_them_call, 8),),
                ],
            )
    assert history.lost
    assert wrong == []


# --- and it bites: each time one thing is taken away ----------------------------------------------


@pytest.mark.soak
async def test_without_the_rows_lock_two_brokers_call_at_once_and_the_checker_says_so(
    tmp_path: Path, cluster: Cluster
) -> None:
    def drop_the_key(database: str) -> None:
        cluster.sql("alter table token_broker.calls drop constraint calls_pkey", database)

    async with world(tmp_path, cluster, wiring="unlocked", prepare=drop_the_key) as it:
        _, wrong = await weathered(it, [(partial(let_them_call, 10),)])
    assert any(said.startswith("I3: ") for said in wrong), wrong


@pytest.mark.soak
async def test_without_the_fence_a_deposed_holder_publishes_and_the_checker_says_so(
    tmp_path: Path, cluster: Cluster
) -> None:
    async with world(tmp_path, cluster, wiring="unfenced") as it:
        _, wrong = await weathered(
            it, [(partial(stop_the_holder, "answered", it.scale.rules.lease + BEYOND_S),)]
        )
    assert any(said.startswith("fence: ") for said in wrong), wrong


@pytest.mark.soak
@pytest.mark.parametrize("wiring", ["one-snapshot", "mortal"])
async def test_without_the_second_snapshot_the_quota_is_exceeded_and_the_checker_says_so(
    tmp_path: Path, cluster: Cluster, wiring: str
) -> None:
    """One call is left, and three brokers are asked for it, one after the other.

    WeChat refuses, so that no broker is faster than another.
    """
    scale = Scale(poor_quota=30)

    def spend(database: str) -> None:
        cluster.sql(_SPENT.format(appid=POOR, calls=scale.poor_quota - 2), database)

    async with world(tmp_path, cluster, wiring=wiring, scale=scale, prepare=spend) as it:
        await until(
            lambda: all(host.house.get("/readyz")[0] == 200 for host in it.hosts),
            "each app has a token",
        )
        await it.control(
            "/faults", {"kind": "errcode", "errcode": -1, "appid": POOR, "times": None}
        )
        orders = []
        for host in it.hosts:
            await asyncio.sleep(
                WAIT_S / 3
            )  # beyond min_gap, and within the wait that follows a spoilt store's first look
            orders.append(
                asyncio.create_task(asyncio.to_thread(host.house.post, "/v1/tokens/poor/refresh"))
            )
        await asyncio.gather(*orders)
        wrong = violations(await it.seen())
    granted = sum(row["node"] in NODES for row in it.history.ledger if row["appid"] == POOR)
    assert granted == (4 if wiring == "one-snapshot" else 2), (
        "the token of the start, and who was asked"
    )
    assert [said.split(" of ")[0] for said in wrong] == (
        ["I2: 32 rows"] if wiring == "one-snapshot" else []
    )


_SPENT = """
 insert into token_broker.calls
  (appid, endpoint, epoch, id, lane, forced, cost, outcome, at, node)
 select '{appid}', 'token', 'past', n, 'scheduled', 0, 1, 'minted',
  extract(epoch from now()) - 3600, 'past'
 from generate_series(1, {calls}) n"""
