"""What clients notice: a storm of logins beside token GETs, and a rotation under full load.

Both are one run: the same clients first without and then with what is measured. The daemon has
one core, and everybody else the other.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from http import HTTPStatus
from pathlib import Path

from tests.bench.crowds import WATCHERS, percentiles
from tests.bench.table import Row, yes
from tests.harness.crowd import crowd, open_files, request
from tests.harness.doubles import APPID
from tests.harness.processes import House, ask, until
from tests.harness.watching import watching

LOGINS_A_SECOND = 500
CONNECTIONS = 32
AROUND_S = 1.0
NOTICED = 3.0  # times the p99 without it
GET = request("/v1/tokens/main")

# Logins with the codes on standard input, at a steady rate; prints how many WeChat answered and in
# how many seconds.
LOG_IN = """
import asyncio, json, sys, time
host, port, rate, width = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
codes = sys.stdin.read().split()
async def one(mine, began):
    reader, writer = await asyncio.open_connection(host, port)
    good = 0
    for number, code in mine:
        await asyncio.sleep(max(0, began + number / rate - time.monotonic()))
        body = json.dumps({"kind": "miniprogram", "code": code})
        head = (f"POST /v1/logins/main HTTP/1.1\\r\\nHost: {host}\\r\\nX-Token-Broker: 1\\r\\n"
                f"Content-Type: application/json\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n")
        writer.write((head + body).encode())
        said = (await reader.readuntil(b"\\r\\n\\r\\n")).lower().split(b"\\r\\n")
        length = next(line for line in said if line.startswith(b"content-length:"))
        good += b"session_key" in await reader.readexactly(int(length[15:]))
    writer.close()
    return good
async def main():
    numbered, began = list(enumerate(codes)), time.monotonic()
    good = sum(await asyncio.gather(*(one(numbered[n::width], began) for n in range(width))))
    print(good, time.monotonic() - began)
asyncio.run(main())
"""


def logins(home: Path, *, brief: bool) -> list[Row]:
    """Token GETs, one after another, alone and beside the logins."""
    seconds = 0.5 if brief else 10.0
    house = House(home, log_level="info")
    with house.sandboxed():
        house.configure(more="[logins]\nrate = 10000\nburst = 10000\nmax_concurrency = 200\n")
        with house.serving() as daemon:
            os.sched_setaffinity(daemon.popen.pid, {0})
            until(lambda: house.get("/readyz")[0] == HTTPStatus.OK, "ready")
            codes = [_code(house, number) for number in range(round(LOGINS_A_SECOND * seconds))]
            alone = percentiles(asyncio.run(_tokens(house.daemon, seconds)))
            host, port = house.daemon.removeprefix("http://").split(":")
            command = [sys.executable, "-c", LOG_IN, host, port, str(LOGINS_A_SECOND)]
            with subprocess.Popen(
                [*command, str(CONNECTIONS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as storm:
                assert storm.stdin is not None
                storm.stdin.write("\n".join(codes))
                storm.stdin.close()
                beside = percentiles(asyncio.run(_tokens(house.daemon, seconds)))
                assert storm.stdout is not None
                good, took = storm.stdout.read().split()
    a_second = int(good) / float(took)
    return [
        Row(
            f"GET token beside {LOGINS_A_SECOND} logins a second by /v1/logins ({a_second:.0f}/s)",
            f"p50 {beside[49] * 1e3:.2f} ms, p99 {beside[98] * 1e3:.1f} ms",
            f"without them p50 {alone[49] * 1e3:.2f} ms, p99 {alone[98] * 1e3:.1f} ms",
            f"{LOGINS_A_SECOND}/s, p99 ≤ {NOTICED:g} ×",
            yes(a_second >= 0.95 * LOGINS_A_SECOND and beside[98] <= NOTICED * alone[98]),
            good=int(good) == len(codes),
        )
    ]


def _code(house: House, number: int) -> str:
    """Return a code of a user of its own: WeChat bounds how often one user logs in."""
    order = {"appid": APPID, "kind": "miniprogram", "openid": f"o-{number}"}
    status, answer = ask("POST", f"{house.sandbox}/sandbox/code", order)
    assert status == HTTPStatus.CREATED, answer
    return str(answer["code"])


async def _tokens(base: str, seconds: float) -> list[float]:
    """Seconds that each of many GETs took, one after another."""
    end, took = time.monotonic() + seconds, []
    async with crowd(base, 1) as (peer,):
        while (asked := time.monotonic()) < end:
            answer = await peer.ask(GET)
            assert answer.status == HTTPStatus.OK
            took.append(time.monotonic() - asked)
            await asyncio.sleep(0.002)
    return took


def rotation(home: Path, *, brief: bool) -> list[Row]:
    """Connections that ask without a pause, in the second after a rotation and before it."""
    count, rounds = (100, 1) if brief else (WATCHERS, 5)
    house = House(home, log_level="info")
    calm, during, good = list[float](), list[float](), True
    with open_files(), house.sandboxed():
        house.configure(policy="min_gap = 0.1")
        with house.serving() as daemon:
            os.sched_setaffinity(daemon.popen.pid, {0})
            until(lambda: house.get("/readyz")[0] == HTTPStatus.OK, "ready")
            for _ in range(rounds):
                held = house.get("/v1/tokens/main")[1]["version"]
                with watching(house.daemon, count, f'"{held}"', cpu=1) as crowded:
                    before, after = asyncio.run(_hammered(house))
                    heard = crowded.heard()
                calm.append(percentiles(before)[98])
                during.append(percentiles(after)[98])
                good = good and sum(heard.said.values()) == count
    without, within = statistics.median(calm), statistics.median(during)
    return [
        Row(
            f"p99 of {CONNECTIONS} hammering connections in the second of a rotation,"
            f" {count} watchers",
            f"{within * 1e3:.1f} ms: ratio {within / without:.2f}",
            f"the second before it {without * 1e3:.1f} ms",
            good=good,
        )
    ]


async def _hammered(house: House) -> tuple[list[float], list[float]]:
    """Seconds that each answer took, in the second before a refresh was ordered and after it."""
    loop = asyncio.get_running_loop()
    answers: list[tuple[float, float]] = []
    ordered_at = loop.time() + AROUND_S
    async with crowd(house.daemon, CONNECTIONS) as peers:

        async def hammer(number: int) -> None:
            while (asked := loop.time()) < ordered_at + AROUND_S:
                answer = await peers[number].ask(GET)
                assert answer.status == HTTPStatus.OK
                answers.append((asked, answer.at - asked))

        async def order() -> None:
            await asyncio.sleep(AROUND_S)
            status, said = await asyncio.to_thread(house.post, "/v1/tokens/main/refresh")
            assert status == HTTPStatus.OK, json.dumps(said)

        await asyncio.gather(order(), *(hammer(number) for number in range(CONNECTIONS)))
    before = [took for asked, took in answers if asked < ordered_at]
    return before, [took for asked, took in answers if asked >= ordered_at]
