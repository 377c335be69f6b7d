"""What it costs to note who was handed which version: on the fast path, and on the disk."""

import asyncio
import os
import statistics
from functools import partial
from pathlib import Path

from broker.core.handouts import KEPT_DAYS, MOST_KEPT, Handout
from broker.core.quota import DAY
from broker.store.sqlite.store import SqliteStore
from tests.bench.requests import CONNECTIONS, rate
from tests.bench.table import Row, yes
from tests.harness.doubles import ACCOUNT, NOON, ManualClock
from tests.harness.processes import House, until

CLIENTS = 50
VERSIONS_A_DAY = 24
NO_SLOWER = 0.97  # two rounds of the same daemon differ by as much
MOST_BYTES = 16 * 2**20
# What the interpreter runs before the daemon, so that it notes no hand-outs.
NOTES_NOTHING = """
from broker.web.handouts import Handouts
Handouts.record = lambda *_: None
"""


def rows(home: Path, *, brief: bool) -> list[Row]:
    """The fast path with hand-outs and without, in alternating rounds; then a year of them."""
    return [_beside_none(home, brief=brief), asyncio.run(_year(home, 20 if brief else 365))]


def _beside_none(home: Path, *, brief: bool) -> Row:
    rounds, seconds = (1, 0.5) if brief else (6, 3)
    patch = home / "patch"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(NOTES_NOTHING)
    path = f"{patch}:{os.environ.get('PYTHONPATH') or Path.cwd()}"
    with_notes, without = (
        House(home / "with", log_level="info"),
        House(home / "without", log_level="info"),
    )
    for house in (with_notes, without):
        house.home.mkdir()
    with with_notes.sandboxed(), without.sandboxed():
        with_notes.configure()
        without.configure()
        with with_notes.serving() as one, without.serving(PYTHONPATH=path) as other:
            for house, daemon in ((with_notes, one), (without, other)):
                os.sched_setaffinity(daemon.popen.pid, {0})
                until(partial(_is_ready, house), "ready")
            measured = [_both(with_notes, without, seconds, turn) for turn in range(rounds)]
            noted = [_noted(house) for house in (with_notes, without)]
    ours, bare = (statistics.median(column) for column in zip(*measured, strict=True))
    return Row(
        f"GET token with hand-outs noted, {CONNECTIONS} connections, one core",
        f"{ours:,.0f}/s",
        f"nothing noted {bare:,.0f}/s: ratio {ours / bare:.2f}",
        f"≥ {NO_SLOWER}",
        yes(ours >= NO_SLOWER * bare),
        good=noted[0] > 0 == noted[1],
    )


def _is_ready(house: House) -> bool:
    return house.get("/readyz")[0] == 200


def _both(one: House, other: House, seconds: float, turn: int) -> tuple[float, float]:
    """Measure both, one first in one turn and the other in the next."""
    if turn % 2:
        second, first = rate(other.daemon, seconds), rate(one.daemon, seconds)
        return first, second
    return rate(one.daemon, seconds), rate(other.daemon, seconds)


def _noted(house: House) -> int:
    """Return how often anybody was handed a token, as the daemon says."""
    rows = house.get("/v1/handouts/main")[1]["handouts"]
    return sum(row["count"] for row in rows)


async def _year(home: Path, days: int) -> Row:
    """Fifty clients that each are handed each version, written as the daemon does."""
    path, clock = home / "year.db", ManualClock()
    store = await SqliteStore.open(path, clock)
    before = path.stat().st_size
    for day in range(days):
        wall = NOON + day * DAY
        await store.add_handouts(
            [
                Handout(
                    f"client-{n}", ACCOUNT.id, f"k3f9-{day * VERSIONS_A_DAY + v}", 100, wall, wall
                )
                for n in range(CLIENTS)
                for v in range(VERSIONS_A_DAY)
            ]
        )
        await store.drop_handouts(wall - KEPT_DAYS * DAY, MOST_KEPT)
    kept = len(await store.handouts(ACCOUNT.id, 2 * MOST_KEPT))
    await store.close()
    size = path.stat().st_size - before
    return Row(
        f"{days} days of hand-outs, {CLIENTS} clients, {VERSIONS_A_DAY} versions a day",
        f"{size / 2**20:.1f} MiB on disk, {kept:,} rows",
        f"{size / kept:.0f} bytes a row, kept for {KEPT_DAYS} days",
        f"≤ {MOST_BYTES // 2**20} MiB",
        yes(size <= MOST_BYTES),
        good=kept == CLIENTS * VERSIONS_A_DAY * min(days, KEPT_DAYS + 1),
    )
