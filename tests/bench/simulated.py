"""A simulated day of many apps, and a simulated year of one.

The clock is manual, SQLite is real, WeChat is scripted.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from broker.core.credential import Account
from broker.core.errcodes import Failure
from broker.core.ports import Minted
from broker.tokens.registry import Registry
from tests.bench.table import Row, yes
from tests.harness.doubles import ACCOUNT, Bench, ScriptedWeChat, looked

MOST_CALLS_A_DAY = 26
AT_ONCE = 16
DAY = 86400


@dataclass
class Counting(ScriptedWeChat):
    """Counts the calls of each app."""

    by_app: Counter[str] = field(default_factory=Counter)

    async def fetch(self, account: Account, *, force: bool) -> Minted | Failure:
        """Count, then mint."""
        self.by_app[account.appid] += 1
        return await super().fetch(account, force=force)


def day(home: Path, *, brief: bool) -> list[Row]:
    """Token calls of each app over a day, looked at once a minute."""
    apps = 20 if brief else 1000
    most, mean, at_once = asyncio.run(_day(home, apps))
    figure = f"at most {most}, {mean:.1f} on average; {at_once} at once"
    good = most <= MOST_CALLS_A_DAY and at_once <= AT_ONCE
    return [
        Row(
            f"token calls per app, {apps} apps, a simulated day",
            figure,
            "",
            "≤ 26 each, ≤ 16 at once",
            yes(good),
            good=good,
        )
    ]


async def _day(home: Path, apps: int) -> tuple[int, float, int]:
    wechat = Counting()
    bench = Bench(home / "day.db", wechat=wechat)
    registry = Registry(
        [replace(ACCOUNT, name=f"a{n}", appid=f"wx{n}") for n in range(apps)],
        await bench.dependencies(),
    )
    await registry.start()
    for _ in range(DAY // 60):
        registry.tick()
        await registry.drain()
        bench.clock.pass_(60)
    await bench.close()
    calls = wechat.by_app.values()
    return max(calls), sum(calls) / apps, wechat.most_in_flight


def year(home: Path, *, brief: bool) -> list[Row]:
    """Rows and bytes of the store after a year of refreshes."""
    days = 20 if brief else 365
    found = asyncio.run(_year(home, days))
    rows = [count for _, count, _ in found]
    figure = "; ".join(
        f"day {at}: {count} rows, {size / 1024:.0f} KiB" for at, count, size in found
    )
    good = max(rows) <= 9 * 28
    return [
        Row(
            f"SQLite after {days} simulated days, one app",
            figure,
            "",
            "bounded",
            yes(good),
            good=good,
        )
    ]


async def _year(home: Path, days: int) -> list[tuple[int, int, int]]:
    bench = Bench(home / "year.db")
    keeper = await bench.keeper()
    found = []
    for at in range(1, days + 1):
        end = bench.clock.now() + DAY
        while bench.clock.now() < end:
            await looked(keeper)
            bench.clock.pass_(max(60.0, keeper.next_call_in()))
        if at in {days // 4, days // 2, days}:
            size = sum(path.stat().st_size for path in home.glob("year.db*"))
            found.append((at, len(await bench.rows()), size))
    await bench.close()
    return found
