"""Crowds: honest clients beside a thousand bad connections, thousands of watchers at one rotation, and a kill -9."""

import asyncio
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench.table import Row, yes
from tests.crowd import Peer, crowd, open_files, request, resident_kb
from tests.processes import House, Process, until

BAD = 1_000
WATCHERS = 5_000
HONEST = 20
PACE_S = 0.05  # each of the honest asks so often: 400 requests a second in all, far from what the daemon can do
WORST_RATIO = 3.0
GET = request("/v1/tokens/main")


# --- bad connections --------------------------------------------------------------------------------------------------


def slow_clients(home: Path, *, brief: bool) -> list[Row]:
    """Rounds without and with bad connections in turn, in one run; the medians of their p99s.

    Half of the bad are silent, half send a byte a second; whoever is hung up on comes again.
    """
    rounds, seconds, bad = (1, 0.5, 50) if brief else (5, 12.0, BAD)
    house = House(home, log_level="info")
    without, beside = [], []
    with open_files(), house.sandboxed():
        house.configure()
        with house.serving() as daemon:
            os.sched_setaffinity(daemon.popen.pid, {0})
            until(lambda: house.get("/readyz")[0] == 200, "ready")
            for _ in range(rounds):
                without.append(asyncio.run(_p99(house.daemon, seconds)))
                with bad_peers(house.daemon, bad):
                    beside.append(asyncio.run(_p99(house.daemon, seconds)))
    alone, crowded = statistics.median(without), statistics.median(beside)
    figure = f"p99 {crowded * 1000:.2f} ms: ratio {crowded / alone:.2f}"
    what = f"GET token, {HONEST} honest clients beside {bad} silent or dripping connections"
    met = yes(crowded <= WORST_RATIO * alone)
    return [Row(what, figure, f"without them p99 {alone * 1000:.2f} ms", f"ratio ≤ {WORST_RATIO:g}", met, good=crowded > 0)]


@contextmanager
def bad_peers(base: str, count: int) -> Iterator[None]:
    """So many, in a process of their own."""
    command = [sys.executable, "-m", "tests.crowd", base, str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as crowded:
        try:
            assert crowded.stdout is not None
            assert crowded.stdout.readline() == "all here\n"
            yield
        finally:
            crowded.kill()


async def _p99(base: str, seconds: float) -> float:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds

    async def one(peer: Peer, number: int) -> list[float]:
        took, at = [], loop.time() + PACE_S * number / HONEST
        while at < end:
            await asyncio.sleep(at - loop.time())
            asked = loop.time()
            answer = await peer.ask(GET)
            assert answer.status == 200
            took.append(answer.at - asked)
            at = max(at + PACE_S, loop.time())
        return took

    async with crowd(base, HONEST) as peers:
        latencies = await asyncio.gather(*(one(peer, number) for number, peer in enumerate(peers)))
    return percentiles(list(itertools.chain(*latencies)))[98]


def percentiles(values: Sequence[float]) -> list[float]:
    """From the first to the 99th."""
    return statistics.quantiles(values, n=100, method="inclusive")


# --- watchers ---------------------------------------------------------------------------------------------------------


def watchers(home: Path, *, brief: bool) -> list[Row]:
    """Three crowds one after another, each with a rotation of its own; figures of the first, and memory after the last."""
    house = House(home, log_level="info")
    with open_files() as files, house.sandboxed():
        count = min(100 if brief else WATCHERS, files - 1000)
        house.configure(policy="min_gap = 0.1")
        with house.serving() as daemon:
            until(lambda: house.get("/readyz")[0] == 200, "ready")
            before = resident_kb(daemon)
            found = [asyncio.run(_rotation(house, daemon, count)) for _ in range(3)]
            good = len(house.calls()) == 4
    wakes, during, after = found[0]
    p = percentiles(wakes)
    figure = f"p50 {p[49] * 1000:.0f} ms, p99 {p[98] * 1000:.0f} ms, max {max(wakes) * 1000:.0f} ms"
    memory = f"{before / 1024:.0f} → {during / 1024:.0f} → {after / 1024:.0f} MB"
    again = f"after a third crowd {found[-1][2] / 1024:.0f} MB"
    bounded = found[-1][2] <= during * 1.1
    return [
        Row(f"{count} watchers, from asking for a refresh to their answers", figure, "", "each one answer", yes(good), good=good),
        Row(f"resident memory before, during, after {count} watchers", memory, again, "bounded", yes(bounded), good=good),
    ]


async def _rotation(house: House, daemon: Process, count: int) -> tuple[list[float], int, int]:
    """Seconds to each answer, and memory during and after (KB)."""
    loop = asyncio.get_running_loop()
    async with crowd(house.daemon, 1) as (admin,):
        async with crowd(house.daemon, count) as peers:
            held = (await admin.ask(GET)).etag
            heard = [peer.ask(request("/v1/tokens/main?wait=60", If_None_Match=held)) for peer in peers]
            await admin.ask(request("/livez"))
            during = resident_kb(daemon)
            began = loop.time()
            while (await admin.ask(request("/v1/tokens/main/refresh", "POST"))).status != 200:
                began = loop.time()
            answers = await asyncio.gather(*heard)
        assert all(answer.status == 200 and answer.etag != held for answer in answers)
        for _ in range(5):  # until the daemon has seen them go
            await admin.ask(request("/metrics"))
    return [answer.at - began for answer in answers], during, resident_kb(daemon)


# --- kill -9 ----------------------------------------------------------------------------------------------------------


def killed(home: Path, *, brief: bool) -> list[Row]:
    """From SIGKILL to the first token of the next daemon, started at once, with a stored token."""
    house = House(home, log_level="info")
    times, good = list[float](), True
    with house.sandboxed(), ExitStack() as stack:
        house.configure()
        daemon = stack.enter_context(house.serving())
        until(lambda: house.get("/readyz")[0] == 200, "ready")
        for _ in range(2 if brief else 9):
            began = time.perf_counter()
            daemon.kill()
            daemon = stack.enter_context(house.serving())
            good = house.get("/v1/tokens/main")[0] == 200 and good
            times.append(time.perf_counter() - began)
        calls = len(house.calls())
    figure = f"median {statistics.median(times):.2f} s, worst {max(times):.2f} s"
    return [Row("from SIGKILL to serving again, with a stored token", figure, "", "", "", good=good and calls == 1)]
