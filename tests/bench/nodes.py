"""Several brokers on one PostgreSQL: a day's cost, a rotation's speed, a fault's length.

The day is simulated: manual clocks, among them the database's, which a subclass of the store's rows
asks a clock for; the rows, locks and notifications are real. The other figures are of real
processes, fast tokens and real faults (tests/history).
"""

import asyncio
import os
import random
import signal
import statistics
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from broker.core.credential import Policy
from broker.core.ports import Clock
from broker.store.postgres.account_rows import AccountRows
from broker.store.postgres.clock_sample import ClockSample
from broker.store.postgres.pool import Session
from broker.store.postgres.store import PostgresStore
from broker.tokens.dependencies import Dependencies
from broker.tokens.registry import Registry
from tests.bench.requests import rate
from tests.bench.table import Row, yes
from tests.harness.cluster import Cluster, cluster, standby_of
from tests.harness.doubles import ACCOUNT, ManualClock, ScriptedWeChat
from tests.harness.processes import House, until
from tests.history import measures
from tests.history.checker import violations
from tests.history.clients import crowd
from tests.history.nemeses import (
    AROUND,
    BEYOND_S,
    Nemesis,
    fail_over,
    kill_the_holder,
    let_each_be_called,
    let_them_call,
    stop_the_holder,
    storm,
)
from tests.history.record import History
from tests.history.world import MAIN, NODES, Scale, world

MINUTE: Final = 60.0
DAY_MINUTES: Final = 1440
RATIO: Final = 0.95
FELT_S: Final = 5.0
SEED: Final = 6

# --- a simulated day ------------------------------------------------------------------------------


class ToldMoment(ClockSample):
    """A clock sample from a manual clock, whose wall is the database's too."""

    @classmethod
    async def take(cls, session: Session, clock: Clock) -> "ToldMoment":
        """Ask nobody."""
        assert session.pid
        return cls(clock.wall(), clock.now(), clock.now())


class ToldRows(AccountRows):
    """The real rows at told moments."""

    sampler = ToldMoment


class ToldStore(PostgresStore):
    """The real store on them."""

    rows = ToldRows


@dataclass
class Broker:
    """One of those that share a day."""

    clock: ManualClock
    store: PostgresStore
    registry: Registry

    @property
    def version(self) -> str | None:
        return next(iter(self.registry)).credential.version


def day(_home: Path, *, brief: bool) -> list[Row]:
    """Token calls of one app over a day, by how many brokers share it."""
    minutes = DAY_MINUTES // 8 if brief else DAY_MINUTES
    with cluster() as server:
        calls = {
            brokers: asyncio.run(_day(server, brokers, minutes))
            for brokers in ((1, 3) if brief else (1, 3, 10))
        }
    figure = ", ".join(f"{brokers}: {made}" for brokers, made in calls.items())
    good = len(set(calls.values())) == 1
    what = (
        f"token calls per simulated {'day' if not brief else 'hour or two'}, by number of brokers"
    )
    return [Row(what, figure, "", "equal", yes(good), good=good)]


async def _day(server: Cluster, brokers: int, minutes: int) -> int:
    wechat = ScriptedWeChat()
    name = await asyncio.to_thread(server.database)
    async with AsyncExitStack() as stack:
        all_ = [await _broker(stack, server.dsn(name), number, wechat) for number in range(brokers)]
        # The jitter of the schedule is drawn from the epoch: the same for each number of brokers.
        row = (
            f"insert into token_broker.accounts (appid, endpoint, epoch) values ('{ACCOUNT.appid}',"
            " 'token', 'same')"
        )
        await asyncio.to_thread(server.sql, row, name)
        for broker in all_:
            await broker.registry.start()
            broker.store.watch(broker.registry.on_store_changed, broker.registry.versions)
        for _ in range(minutes):
            await _minute(all_)
        return wechat.calls


async def _broker(stack: AsyncExitStack, url: str, number: int, wechat: ScriptedWeChat) -> Broker:
    clock = ManualClock(steady=10_000.0 * (number + 1))
    store = await ToldStore.open(url, clock, node=f"n{number}")
    stack.push_async_callback(store.close)
    slots = asyncio.Semaphore(16)
    tools = Dependencies(
        store,
        wechat,
        clock,
        Policy(),
        slots,
        lambda *_, **__: None,
        call_timeout_s=10,
        jitter=lambda: 0.0,
    )
    registry = Registry([ACCOUNT], tools)
    stack.push_async_callback(registry.drain)
    return Broker(clock, store, registry)


async def _minute(brokers: list[Broker]) -> None:
    """All look at once; it is over when all have heard what came of it."""
    for broker in brokers:
        broker.registry.tick()
    async with asyncio.timeout(10):
        while True:
            await asyncio.gather(*(broker.registry.drain() for broker in brokers))
            if len({broker.version for broker in brokers}) == 1:
                break
            await asyncio.sleep(0.001)
    for broker in brokers:
        broker.clock.pass_(MINUTE)


# --- faults ---------------------------------------------------------------------------------------


def faults(home: Path, *, brief: bool) -> list[Row]:
    """A calm time, kills, other faults and a failover, all in one history."""
    with cluster() as primary, standby_of(primary) as standby:
        primary.reload(synchronous_standby_names="standby")
        history = asyncio.run(_faults(home, primary, standby, brief=brief))
    wrong = violations(history)
    return [
        *_of_rotations(history),
        *_of_kills(history),
        *_of_failover(history),
        _of_all(history, wrong),
    ]


async def _faults(home: Path, primary: Cluster, standby: Cluster, *, brief: bool) -> History:
    chance, lease = random.Random(SEED), 5.6 + BEYOND_S
    kills: list[tuple[Nemesis, ...]] = [
        blow
        for step in ("called", "reserved", "answered")
        for blow in ((partial(kill_the_holder, step),), (let_each_be_called,))
    ]
    others: list[tuple[Nemesis, ...]] = [
        (partial(stop_the_holder, "calling", lease), AROUND["clock"]),
        (AROUND["cut"],),
        (AROUND["restart"],),
        (partial(stop_the_holder, "settled", 1.0), AROUND["lost commit"]),
    ]
    calm: list[tuple[Nemesis, ...]] = [(partial(let_them_call, 5 if brief else 50),)]
    rounds = (
        [*calm, *kills[:2], (fail_over,), (let_each_be_called,)]
        if brief
        else [*calm, *kills, *others, (fail_over,), *kills[:2]]
    )
    async with world(home, primary, standby, scale=Scale(poor_quota=2000)) as it:
        async with crowd(it, SEED):
            await it.agree()
            await storm(it, rounds, chance)
        return await it.seen()


def _of_rotations(history: History) -> list[Row]:
    times = measures.rotations(history, len(NODES), MAIN)
    if not times:
        return []
    figure = f"median {statistics.median(times) * 1000:.0f} ms, most {max(times) * 1000:.0f} ms"
    what = f"a rotation reaches watchers of all {len(NODES)} brokers, {len(times)} times"
    return [Row(what, figure, "", "< 1 s", yes(max(times) < 1))]


def _of_kills(history: History) -> list[Row]:
    found = measures.recoveries(history)
    after, late = [it[0] for it in found], [it[1] for it in found]
    figure = (
        f"median {statistics.median(after):.1f} s, most {max(after):.1f} s; {max(late):+.1f} s from"
        " the deadline"
    )
    what = (
        f"from killing the holder to the next token, {len(found)} times, lease"
        f" {history.rules.lease} s"
    )
    good = max(late) <= FELT_S
    return [Row(what, figure, "", "≤ 5 s beyond the deadline", yes(good), good=good)]


def _of_failover(history: History) -> list[Row]:
    seconds = measures.first_reservation(history)
    assert seconds is not None
    return [Row("from promoting the standby to the first reservation", f"{seconds:.1f} s")]


def _of_all(history: History, wrong: list[str]) -> Row:
    figure = (
        f"{len(history.blows)} faults, {len(wrong)} violations in {len(history.answers)} answers"
        f" and {len(history.calls)} calls"
    )
    return Row(
        "three brokers, faults injected, violations",
        figure,
        "; ".join(wrong),
        "0",
        yes(not wrong),
        good=not wrong,
    )


# --- the database away ----------------------------------------------------------------------------


def away(home: Path, *, brief: bool) -> list[Row]:
    """GET with the database up and down, in turn."""
    rounds, seconds = (1, 0.5) if brief else (7, 2)
    house = House(home, log_level="info")
    up, down = [], []
    with cluster() as server, house.sandboxed():
        house.configure(policy="")
        with house.serving(TOKEN_BROKER_STORE__URL=server.dsn(server.database())) as daemon:
            os.sched_setaffinity(daemon.popen.pid, {0})
            until(lambda: house.get("/readyz")[0] == 200, "ready")
            rate(house.daemon, seconds)
            for _ in range(rounds):
                up.append(rate(house.daemon, seconds))
                server.stop(signal.SIGQUIT)
                until(lambda: "PostgreSQL" in str(house.get("/health")[1]), "the trouble is told")
                down.append(rate(house.daemon, seconds))
                server.start()
                until(lambda: "PostgreSQL" not in str(house.get("/health")[1]), "all is well again")
    ratio = statistics.median(
        one / other for one, other in zip(down, up, strict=True)
    )  # of neighbours: the machine has moods
    figure = f"{statistics.median(down):,.0f}/s, ratio {ratio:.2f}"
    against = f"with it {statistics.median(up):,.0f}/s"
    return [
        Row(
            "GET token while the database is away",
            figure,
            against,
            f"≥ {RATIO}",
            yes(ratio >= RATIO),
        )
    ]
