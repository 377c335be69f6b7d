"""Crowds: honest clients beside a thousand bad connections, watchers, and a kill -9.

Thousands of watchers wait for one rotation.
"""

import asyncio
import itertools
import os
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.table import Row, yes
from tests.harness.crowd import Peer, crowd, open_files, request, resident_kb
from tests.harness.processes import House, Process, until
from tests.harness.watching import watching

BAD = 1_000
WATCHERS = 5_000
HONEST = 20
# Each of the honest asks so often: 400 requests a second in all, far from what the daemon can do
PACE_S = 0.05
WORST_RATIO = 3.0
GET = request("/v1/tokens/main")


# --- bad connections ------------------------------------------------------------------------------


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
    return [
        Row(
            what,
            figure,
            f"without them p99 {alone * 1000:.2f} ms",
            f"ratio ≤ {WORST_RATIO:g}",
            met,
            good=crowded > 0,
        )
    ]


@contextmanager
def bad_peers(base: str, count: int) -> Iterator[None]:
    """So many, in a process of their own."""
    command = [sys.executable, "-m", "tests.harness.crowd", base, str(count)]
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


# --- watchers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Woken:
    """Measure a crowd of watchers at one rotation.

    Returns the seconds from the commit to each answer, the resident memory (KB), and whether all
    answers were right.
    """

    took: list[float]
    before: int
    during: int
    after: int
    good: bool


def watchers(home: Path, *, brief: bool) -> list[Row]:
    """Compare the express lane switched on and off, in turn, within one run.

    One rotation answers each crowd.
    """
    rounds, kinds = (1 if brief else 5), {"": "true", ", express lane off": "false"}
    found: dict[str, list[Woken]] = {kind: [] for kind in kinds}
    with open_files() as files, ExitStack() as stack:
        count = min(100 if brief else WATCHERS, files - 1000)
        houses = {kind: _watched(home / lane, stack, lane) for kind, lane in kinds.items()}
        for _ in range(rounds):
            for kind, (house, daemon) in houses.items():
                found[kind].append(_rotation(house, daemon, count))
    return [
        row
        for kind in kinds
        for row in _rows(f"{count} watchers{kind}", found[kind], is_ours=not kind)
    ]


def _watched(home: Path, stack: ExitStack, lane: str) -> tuple[House, Process]:
    """A daemon on core 0, with its sandbox."""
    home.mkdir()
    house = House(home, log_level="info")
    stack.enter_context(house.sandboxed())
    house.configure(policy="min_gap = 0.1")
    house.config.write_text(
        house.config.read_text().replace("[server]\n", f"[server]\nexpress_lane = {lane}\n")
    )
    daemon = stack.enter_context(house.serving())
    os.sched_setaffinity(daemon.popen.pid, {0})
    until(lambda: house.get("/readyz")[0] == 200, "ready")
    return house, daemon


def _rows(what: str, found: list[Woken], *, is_ours: bool) -> list[Row]:
    good = all(one.good for one in found)
    p50, p99 = (
        statistics.median(percentiles(one.took)[at] for one in found) * 1000 for at in (49, 98)
    )
    worst = max(percentiles(one.took)[98] for one in found) * 1000
    most = statistics.median(max(one.took) for one in found) * 1000
    count, first, last = len(found[0].took), found[0], found[-1]
    each = (first.during - first.before) / count
    memory = (
        f"{first.before / 1024:.0f} → {first.during / 1024:.0f} → {first.after / 1024:.0f} MB:"
        f" {each:.1f} KB each"
    )
    figure = f"p50 {p50:.0f}, p99 {p99:.0f}, max {most:.0f} ms"
    bounded = last.after <= first.during * 1.1
    target, met = ("p99 < 100 ms", yes(p99 < 100)) if is_ours else ("", "")
    return [
        Row(
            f"{what}, from the commit to their answers",
            figure,
            f"the worst p99 of {len(found)}: {worst:.0f}",
            target,
            met,
            good,
        ),
        Row(
            f"{what}, memory before, with and after the first crowd",
            memory,
            f"after the last {last.after / 1024:.0f} MB",
            "bounded",
            yes(bounded),
            good,
        ),
    ]


def _rotation(house: House, daemon: Process, count: int) -> Woken:
    """One crowd and one rotation."""
    before, held = resident_kb(daemon), house.get("/v1/tokens/main")[1]["version"]
    with watching(house.daemon, count, f'"{held}"', cpu=1) as crowd:
        during = resident_kb(daemon)
        until(lambda: house.post("/v1/tokens/main/refresh")[0] == 200, "refreshed")
        heard = crowd.heard()
    for _ in range(5):  # until the daemon has seen them go
        house.get("/metrics")
    fresh = house.get("/v1/tokens/main")[1]["version"]
    good = (
        heard.said == {f'HTTP/1.1 200 OK "{fresh}"': count} and heard.surplus == 0 and fresh != held
    )
    began = committed_at(house)
    return Woken([at - began for at in heard.stamps], before, during, resident_kb(daemon), good)


def committed_at(house: House) -> float:
    """The unix time at which the token in force was written down.

    It is taken within that transaction, before the disk has it.
    """
    with closing(sqlite3.connect(f"{house.store.as_uri()}?mode=ro", uri=True)) as db:
        return float(db.execute("select wall_at from accounts").fetchone()[0])


# --- kill -9 --------------------------------------------------------------------------------------


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
    return [
        Row(
            "from SIGKILL to serving again, with a stored token",
            figure,
            "",
            "",
            "",
            good=good and calls == 1,
        )
    ]
