"""A thousand apps: a look at all, the pages that list them, token GETs beside their readers."""

import asyncio
import http.client
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from broker.tokens.registry import Registry
from tests.bench.table import Row, yes
from tests.harness.doubles import ACCOUNT, Bench
from tests.harness.processes import House, until

METRICS_MS = 50.0
FLAT = 3.0
READERS = 8
P50_MS, P99_MS = 2.0, 15.0
MADE_ANEW_S = 1.05  # pages are shared for a second; the figure is that of making one
PAGES = ("/metrics", "/v1/status", "/health", "/")

# Each reader asks again as soon as it has read its page: no browser and no Prometheus does that.
READ = """
import asyncio, sys
host, port, path, readers = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
ask = f"GET {path} HTTP/1.1\\r\\nHost: {host}\\r\\nAccept-Encoding: gzip\\r\\n\\r\\n".encode()
async def read(first):
    reader, writer = await asyncio.open_connection(host, port)
    while True:
        writer.write(ask)
        head = await reader.readuntil(b"\\r\\n\\r\\n")
        lines = head.lower().split(b"\\r\\n")
        length = next(line for line in lines if line.startswith(b"content-length:"))
        await reader.readexactly(int(length[15:]))
        first.set()
async def main():
    firsts = [asyncio.Event() for _ in range(readers)]
    reading = [asyncio.create_task(read(first)) for first in firsts]
    await asyncio.gather(*(first.wait() for first in firsts))
    print("all have read", flush=True)
    await asyncio.gather(*reading)
asyncio.run(main())
"""


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
            pages = [_page(house, path, apps, min(rounds, 3)) for path in PAGES]
            return [*pages, *_beside_readers(house, apps, rounds)]


def _beside_readers(house: House, apps: int, rounds: int) -> list[Row]:
    """Token GETs one after another on one connection, alone and beside readers of each page."""
    alone = _token_ms(house, rounds)
    found = []
    for path in ("/", "/v1/status", "/metrics"):
        with _readers(house.daemon, path):
            p50, p99 = _token_ms(house, rounds)
        found.append(
            Row(
                f"GET token beside {READERS} readers of {path}, {apps} apps",
                f"p50 {p50:.2f} ms, p99 {p99:.1f} ms",
                f"without them p50 {alone[0]:.2f} ms, p99 {alone[1]:.1f} ms",
                f"p50 ≤ {P50_MS:.0f} ms, p99 ≤ {P99_MS:.0f} ms",
                yes(p50 <= P50_MS and p99 <= P99_MS),
            )
        )
    return found


@contextmanager
def _readers(base: str, path: str) -> Iterator[None]:
    host, port = base.removeprefix("http://").split(":")
    command = [sys.executable, "-c", READ, host, port, path, str(READERS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as readers:
        try:
            assert readers.stdout is not None
            assert readers.stdout.readline().strip() == "all have read"
            yield
        finally:
            readers.kill()


def _token_ms(house: House, rounds: int) -> tuple[float, float]:
    """Median and 99th percentile, in milliseconds."""
    connection = http.client.HTTPConnection(house.daemon.removeprefix("http://"), timeout=30)
    times = []
    end = time.monotonic() + rounds
    while time.monotonic() < end:
        began = time.perf_counter()
        connection.request("GET", "/v1/tokens/main", headers={"X-Token-Broker": "1"})
        answer = connection.getresponse()
        answer.read()
        times.append((time.perf_counter() - began) * 1000)
        assert answer.status == http.client.OK
        time.sleep(0.002)
    connection.close()
    times.sort()
    return statistics.median(times), times[int(0.99 * len(times))]


def _page(house: House, path: str, apps: int, rounds: int) -> Row:
    times, size, status = [], 0, 0
    for _ in range(rounds):
        if rounds > 1:
            time.sleep(MADE_ANEW_S)
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
