"""GET token over keep-alive connections, compared with a bare aiohttp handler.

The bare handler returns the same bytes.
"""

import asyncio
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.table import Row, yes
from tests.harness.doubles import APPID
from tests.harness.processes import House, process, until

BARE = """
import asyncio, sys
from aiohttp import web
body, port = sys.argv[1].encode(), int(sys.argv[2])
async def handler(request):
    headers = {"Cache-Control": "no-store", "ETag": '"k3f9-42"', "Content-Type": "application/json"}
    return web.Response(body=body, headers=headers)
app = web.Application()
app.add_routes([web.get("/v1/tokens/{app}", handler)])
async def main():
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    print("http://127.0.0.1:%d" % site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
BODY = (
    '{"app": "main", "appid": "wx0123456789abcdef", "access_token": "'
    + "9" * 136
    + '", "expires_in": 7198, '
    '"expires_at": "2026-11-23T11:42:39Z", "version": "k3f9-42", "state": "fresh"}'
)
CONNECTIONS = 32
TOKEN = "/v1/tokens/main"
DROP_IN = f"/cgi-bin/token?grant_type=client_credential&appid={APPID}&secret=any"
DROP_IN_SHARE = 0.8


@contextmanager
def bare() -> Iterator[str]:
    """A bare aiohttp server in a process of its own; its address."""
    with subprocess.Popen(
        [sys.executable, "-c", BARE, BODY, "0"], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            os.sched_setaffinity(server.pid, {0})
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def rate(base: str, seconds: float, path: str = TOKEN) -> float:
    """Requests per second, sent from the other core.

    wrk sends them where it is installed, else a generator of ours.
    """
    url = f"{base}{path}"
    if wrk := shutil.which("wrk"):
        command = [
            "taskset",
            "-c",
            "1",
            wrk,
            "-t1",
            f"-c{CONNECTIONS}",
            f"-d{max(1, round(seconds))}s",
            "-H",
            "X-Token-Broker: 1",
            url,
        ]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = re.search(r"Requests/sec:\s+([\d.]+)", said)
        assert found, said
        assert "Non-2xx" not in said, said
        return float(found[1])
    return asyncio.run(_rate(base, seconds, path))


async def _rate(base: str, seconds: float, path: str) -> float:
    host, port = base.removeprefix("http://").split(":")
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nX-Token-Broker: 1\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds

    async def one() -> int:
        reader, writer = await asyncio.open_connection(host, int(port))
        done = 0
        while loop.time() < end:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            length = re.search(rb"content-length: (\d+)", head.lower())
            assert length
            await reader.readexactly(int(length[1]))
            done += 1
        writer.close()
        return done

    return sum(await asyncio.gather(*(one() for _ in range(CONNECTIONS)))) / seconds


def rows(home: Path, *, brief: bool) -> list[Row]:
    """Alternating rounds; medians."""
    rounds, seconds = (1, 0.5) if brief else (5, 3)
    house = House(home, log_level="info")
    with house.sandboxed():
        house.configure()
        with house.serving() as daemon, bare() as beside:
            os.sched_setaffinity(daemon.popen.pid, {0})
            until(lambda: house.get("/readyz")[0] == 200, "ready")
            measured = [(rate(house.daemon, seconds), rate(beside, seconds)) for _ in range(rounds)]
    ours, theirs = (statistics.median(column) for column in zip(*measured, strict=True))
    by = "wrk" if shutil.which("wrk") else "our own generator"
    what = f"GET token, {CONNECTIONS} keep-alive connections, one core, by {by}"
    against = f"bare aiohttp {theirs:,.0f}/s: ratio {ours / theirs:.2f}"
    return [Row(what, f"{ours:,.0f}/s", against, "≥ 0.8", yes(ours >= 0.8 * theirs), good=ours > 0)]


def drop_in(home: Path, *, brief: bool) -> list[Row]:
    """GET on WeChat's own path beside /v1/tokens, of one daemon, in alternating rounds."""
    rounds, seconds = (1, 0.5) if brief else (5, 3)
    house = House(home, log_level="info")
    with house.sandboxed():
        house.configure(more="[compat]\nenabled = true\n")
        with house.serving() as daemon:
            os.sched_setaffinity(daemon.popen.pid, {0})
            until(lambda: house.get("/readyz")[0] == 200, "ready")
            good = "access_token" in house.get(DROP_IN)[1]
            measured = [
                (rate(house.daemon, seconds, DROP_IN), rate(house.daemon, seconds))
                for _ in range(rounds)
            ]
    sdks, ours = (statistics.median(column) for column in zip(*measured, strict=True))
    return [
        Row(
            f"GET /cgi-bin/token, {CONNECTIONS} keep-alive connections, one core",
            f"{sdks:,.0f}/s",
            f"/v1/tokens {ours:,.0f}/s: ratio {sdks / ours:.2f}",
            f"≥ {DROP_IN_SHARE}",
            yes(sdks >= DROP_IN_SHARE * ours),
            good=good,
        )
    ]


def cold_start(home: Path) -> list[Row]:
    """Fifty clients at once, nothing stored."""
    house = House(home, log_level="info")
    with house.sandboxed():
        house.configure()
        with house.serving():
            asyncio.run(_fifty(house.daemon))
            calls = len(house.calls())
    return [
        Row(
            "token calls for 50 clients at a cold start",
            str(calls),
            "",
            "1",
            yes(calls == 1),
            good=calls == 1,
        )
    ]


async def _fifty(base: str) -> None:
    import aiohttp  # noqa: PLC0415 -- only here

    async with aiohttp.ClientSession(base, headers={"X-Token-Broker": "1"}) as session:

        async def one() -> None:
            async with session.get("/v1/tokens/main") as answer:
                assert answer.status == 200, await answer.text()

        await asyncio.gather(*(one() for _ in range(50)))


__all__ = ["bare", "cold_start", "drop_in", "process", "rate", "rows"]
