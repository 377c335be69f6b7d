"""A thousand apps: what a look at all of them costs, and the pages that list them."""

import asyncio
import statistics
import time
from dataclasses import replace
from pathlib import Path

from broker.tokens.registry import Registry
from tests.bench.table import Row, yes
from tests.harness.doubles import ACCOUNT, Bench
from tests.harness.processes import House, until

METRICS_MS = 50.0
FLAT = 3.0


def rows(home: Path, *, brief: bool) -> list[Row]:
    """Measure a tick with nothing due, with many apps and with ten.

    Then measure the answers of a daemon that has all of them.
    """
    apps = 50 if brief else 1000
    few, many = (asyncio.run(_tick_us(home / f"{count}.db", count)) for count in (10, apps))
    tick = Row(
        f"a tick with nothing due, {apps} apps",
        f"{many:.1f} µs",
        f"10 apps {few:.1f} µs",
        "flat",
        yes(many < FLAT * few),
    )
    return [tick, *_pages(home, apps, 1 if brief else 9)]


async def _tick_us(path: Path, apps: int) -> float:
    bench = Bench(path)
    registry = Registry(
        [replace(ACCOUNT, name=f"a{n}", appid=f"wx{n}") for n in range(apps)],
        await bench.dependencies(),
    )
    await registry.start()
    for _ in range(3):
        registry.tick()
        await registry.drain()
        bench.clock.pass_(1)
    times = []
    for _ in range(200):
        began = time.perf_counter()
        registry.tick()
        times.append(time.perf_counter() - began)
        bench.clock.pass_(1)
    await bench.close()
    return statistics.median(times) * 1e6


def _pages(home: Path, apps: int, rounds: int) -> list[Row]:
    house = House(home, log_level="info")
    with house.sandboxed():
        house.configure()
        more = "".join(
            f'[apps.a{n}]\nappid = "wxapp{n}"\nsecret_file = "{home}/main.secret"\n'
            for n in range(apps - 1)
        )
        house.configure(more=more)
        with house.serving():
            until(lambda: house.get("/readyz")[0] == 200, "every app has a token")
            return [
                _page(house, path, apps, rounds)
                for path in ("/metrics", "/v1/status", "/health", "/")
            ]


def _page(house: House, path: str, apps: int, rounds: int) -> Row:
    times, size, status = [], 0, 0
    for _ in range(rounds):
        began = time.perf_counter()
        status, body = house.get(path)
        times.append((time.perf_counter() - began) * 1000)
        size = len(str(body))
    took = statistics.median(times)
    target = f"< {METRICS_MS:.0f} ms" if path == "/metrics" else ""
    met = yes(took < METRICS_MS) if target else ""
    return Row(
        f"GET {path}, {apps} apps",
        f"{took:.0f} ms, {size / 1024:.0f} KB",
        "",
        target,
        met,
        good=status == 200,
    )
