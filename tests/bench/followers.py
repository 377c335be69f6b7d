"""The companion with many followers: what a whole list costs WeChat, the reader and the memory."""

import time
from pathlib import Path
from typing import Any

from tests.bench.table import Row, yes
from tests.harness.doubles import APPID
from tests.harness.processes import House, Process, ask, process, until

PAGE = 1000


def rows(home: Path, *, brief: bool) -> list[Row]:
    """All avatars of an account, page by page, then once more from memory."""
    count = 1200 if brief else 10_000
    house = House(home, log_level="info")
    with house.sandboxed("--followers", str(count)):
        house.configure()
        told = f'[avatars]\nlisten = "127.0.0.1:0"\nbroker = "unix:{home}/broker.sock"\n'
        house.config.write_text(house.config.read_text() + told)
        with (
            house.serving(),
            process(home / "avatars.log", "avatars", "--config", str(house.config)) as companion,
        ):
            base = companion.first_line().split()[-1]
            until(lambda: ask("GET", f"{base}/readyz")[0] == 200, "ready")
            before = _resident(companion)
            first, found = _read_all(base)
            again, _ = _read_all(base)
            after = _resident(companion)
            lists = house.control("")["accounts"][APPID]["quota_used"]["user/get"]
    figure = (
        f"{lists} user/get; {first:.1f} s, again {again:.1f} s; {before:.0f} MB before, {after:.0f}"
        " MB after"
    )
    good = found == count and lists == 1
    return [
        Row(
            f"avatars of {count:,} followers, {PAGE} a page, twice",
            figure,
            "",
            "1 user/get",
            yes(good),
            good=good,
        )
    ]


def _read_all(base: str) -> tuple[float, int]:
    began, found, cursor = time.perf_counter(), 0, ""
    while True:
        _, page = ask("GET", f"{base}/v1/avatars?limit={PAGE}&cursor={cursor}")
        found += len(page["avatars"])
        cursor = page["next_cursor"]
        if not cursor:
            return time.perf_counter() - began, found


def _resident(companion: Process) -> float:
    status: Any = Path(f"/proc/{companion.popen.pid}/status").read_text()
    return (
        next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        / 1024
    )
