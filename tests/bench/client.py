"""The client library from memory: get() per second, one thread."""

import asyncio
import statistics
import time
from functools import partial
from pathlib import Path

from broker.client import AsyncTokenClient, TokenClient
from tests.bench.table import Row, yes
from tests.harness.processes import House, until

SYNC_PER_S = 1_000_000
ASYNC_PER_S = 500_000


def latency(home: Path, *, brief: bool) -> list[Row]:
    """Measure from the moment the broker has a new token until a client holds it.

    The client does not ask: it is told.
    """
    house, times = House(home, log_level="info"), []
    with house.sandboxed():
        house.configure(policy="min_gap = 0.1\n")
        with house.serving(), TokenClient(house.daemon) as client:
            until(lambda: house.get("/readyz")[0] == 200, "ready")
            client.get()
            for _ in range(3 if brief else 40):
                fresh = until(partial(_rotated, house), "min_gap is over")
                began = time.perf_counter()
                while client.get() != fresh:
                    time.sleep(0.0001)
                times.append((time.perf_counter() - began) * 1000)
    figure = f"median {statistics.median(times):.1f} ms, most {max(times):.1f} ms"
    return [
        Row(
            f"client: a rotation reaches memory, {len(times)} times",
            figure,
            "",
            "< 1 s",
            yes(max(times) < 1000),
        )
    ]


def _rotated(house: House) -> str:
    status, answer = house.post("/v1/tokens/main/refresh")
    return str(answer["access_token"]) if status == 200 else ""


def rows(home: Path, *, brief: bool) -> list[Row]:
    """Beside it a method that returns an attribute, the least there is."""
    count = 20_000 if brief else 2_000_000
    house = House(home, log_level="info")
    with house.sandboxed():
        house.configure()
        with house.serving():
            until(lambda: house.get("/readyz")[0] == 200, "ready")
            with TokenClient(house.daemon) as client:
                token = client.get()
                sync = _sync(client, count)
            concurrent = asyncio.run(_async(house.daemon, count // 2))
            good = token == house.get("/v1/tokens/main")[1]["access_token"]
    least = _least(count)
    against = f"a method that returns an attribute {least:,.0f}/s"
    return [
        Row(
            "client: sync get() from memory",
            f"{sync:,.0f}/s",
            against,
            "≥ 1,000,000/s",
            yes(sync >= SYNC_PER_S),
            good=good,
        ),
        Row(
            "client: async get() from memory",
            f"{concurrent:,.0f}/s",
            against,
            "≥ 500,000/s",
            yes(concurrent >= ASYNC_PER_S),
            good=good,
        ),
    ]


def _sync(client: TokenClient, count: int) -> float:
    get, began = client.get, time.perf_counter()
    for _ in range(count):
        get()
    return count / (time.perf_counter() - began)


async def _async(base: str, count: int) -> float:
    async with AsyncTokenClient(base) as client:
        await client.get()
        get, began = client.get, time.perf_counter()
        for _ in range(count):
            await get()
        return count / (time.perf_counter() - began)


class _Least:
    value = "token"

    def get(self) -> str:
        """Return it."""
        return self.value


def _least(count: int) -> float:
    get, began = _Least().get, time.perf_counter()
    for _ in range(count):
        get()
    return count / (time.perf_counter() - began)
