"""The tick, and all apps under it."""

import asyncio
import warnings
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from broker.core.credential import Policy
from broker.system.clock import SystemClock
from broker.system.ticker import every
from broker.tokens.registry import Registry
from tests.harness.doubles import ACCOUNT, LOST, Bench


async def looks(count: int, seen: list[int]) -> None:
    """Wait until there were so many looks; bounded."""
    async with asyncio.timeout(10):
        while len(seen) < count:
            await asyncio.sleep(0)


async def test_the_first_look_is_at_once_and_others_follow_until_the_end() -> None:
    seen: list[int] = []
    async with every(0.02, lambda: seen.append(1)):
        assert seen == [1]
        await looks(4, seen)
    done = len(seen)
    await asyncio.wait({asyncio.create_task(asyncio.Event().wait())}, timeout=0.06)
    assert len(seen) == done
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


async def test_a_wall_clock_that_was_set_back_does_not_stop_the_looks() -> None:
    seen: list[int] = []
    async with every(0.02, lambda: seen.append(1)) as job:
        await looks(2, seen)
        job.modify(
            next_run_time=datetime.now(UTC) + timedelta(hours=1)
        )  # what APScheduler believes after it
        done = len(seen)
        await looks(done + 3, seen)


async def test_a_late_look_is_made_all_the_same_and_several_late_ones_once() -> None:
    seen: list[int] = []
    async with every(0.02, lambda: seen.append(1)) as job:
        await looks(1, seen)
        job.modify(
            next_run_time=datetime.now(UTC) - timedelta(hours=3)
        )  # what it finds after a suspend
        await looks(3, seen)
    assert len(seen) < 10


async def test_a_clock_that_wakes_up_in_1970_and_is_then_set_right_costs_one_look() -> None:
    seen: list[int] = []
    async with every(0.02, lambda: seen.append(1)) as job:
        await looks(1, seen)
        then, now = datetime(1970, 1, 1, tzinfo=UTC), datetime.now(UTC)
        assert (
            job.trigger.get_next_fire_time(then, now) > now
        )  # else all the missed ones are listed, in memory
        job.modify(next_run_time=then)
        await looks(3, seen)
    assert len(seen) < 10


async def test_an_exception_in_a_look_does_not_end_the_looks() -> None:
    seen: list[int] = []

    def look() -> None:
        seen.append(1)
        if len(seen) == 2:
            raise RuntimeError("a bug")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        async with every(0.02, look):
            await looks(4, seen)


async def test_calls_to_wechat_at_once_are_bounded_over_all_apps(bench: Bench) -> None:
    tools = await bench.dependencies()
    tools.slots = asyncio.Semaphore(4)
    registry = Registry(
        [replace(ACCOUNT, name=f"app{number}", appid=f"wx{number}") for number in range(60)], tools
    )
    await registry.start()
    bench.wechat.gate.clear()
    registry.tick()
    async with asyncio.timeout(10):
        while bench.wechat.in_flight < 4:
            await asyncio.sleep(0)
    bench.wechat.gate.set()
    await registry.drain()
    assert (bench.wechat.calls, bench.wechat.most_in_flight) == (60, 4)
    assert all(keeper.serve() for keeper in registry)


async def test_who_reports_or_orders_does_not_queue_behind_apps_that_are_due_together(
    bench: Bench,
) -> None:
    accounts = [replace(ACCOUNT, name=f"app{number}", appid=f"wx{number}") for number in range(60)]
    registry = Registry(accounts, await bench.dependencies())
    await registry.start()
    registry.tick()
    await registry.drain()
    bench.clock.pass_(4000)
    bench.wechat.gate.clear()
    reported, ordered, *others = registry
    for keeper in others:  # all are due, and 16 of them fill the schedule's slots
        keeper.tick()
    async with asyncio.timeout(10):
        while bench.wechat.in_flight < 16:
            await asyncio.sleep(0)
    asking = [
        asyncio.create_task(reported.report(60, version=reported.credential.version)),
        asyncio.create_task(ordered.refresh(60)),
    ]
    async with asyncio.timeout(10):
        while bench.wechat.in_flight < 18:
            await asyncio.sleep(0)
    bench.wechat.gate.set()
    await asyncio.gather(*asking)
    await registry.drain()


async def test_what_a_callers_refresh_brought_is_looked_at_by_the_next_tick(bench: Bench) -> None:
    registry = Registry([ACCOUNT], await bench.dependencies())
    await registry.start()
    registry.tick()
    await registry.drain()
    (keeper,) = registry
    bench.clock.pass_(60)
    registry.tick()
    bench.wechat.answers.append(LOST)
    await keeper.refresh(5)
    bench.clock.pass_(bench.policy.tick)
    registry.tick()
    await registry.drain()
    assert bench.wechat.checks == 1  # not only when the schedule would have looked again


async def test_another_policy_governs_at_once_and_calls_nobody(bench: Bench) -> None:
    registry = Registry([ACCOUNT], await bench.dependencies())
    await registry.start()
    registry.tick()
    await registry.drain()
    (keeper,) = registry
    bench.clock.pass_(7000)
    assert keeper.serve() is not None
    registry.apply_policy(Policy(min_serve=240))
    assert keeper.serve() is None
    assert bench.wechat.calls == 1


def test_the_steady_clock_runs_through_suspend_and_knows_its_boot() -> None:
    clock = SystemClock()
    assert clock.boot_id == SystemClock().boot_id
    assert len(clock.boot_id) == 32
    before = clock.now()
    assert 0 <= clock.now() - before < 10
    assert SystemClock("0123-4567").boot_id == "01234567"


async def test_a_bug_in_one_apps_look_is_told_once_and_the_others_go_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = [replace(ACCOUNT, name=f"app{number}", appid=f"wx{number}") for number in range(3)]
    registry = Registry(accounts, await bench.dependencies())
    await registry.start()
    broken = next(iter(registry))
    monkeypatch.setattr(broken, "tick", lambda: 1 / 0)
    for _ in range(20):
        registry.tick()
        await registry.drain()
        bench.clock.pass_(5)
    assert [facts["app"] for facts in bench.told("crashed")] == ["app0"]
    assert [keeper.serve() is not None for keeper in registry] == [False, True, True]
    assert registry.ticking
    bench.clock.pass_(300)
    registry.tick()
    assert len(bench.told("crashed")) == 2
