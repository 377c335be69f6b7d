"""Calls through the proxy, compared with direct calls and with other reverse proxies.

They are ten lines of aiohttp, Node's http-proxy and Go's ReverseProxy. The memory is measured while
a gigabyte passes.

WeChat is a stub that costs next to nothing, on the load's core; the proxies have the other core to
themselves, in turn.
"""

import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import aiohttp

from tests.bench.rivals import Load
from tests.bench.table import Row, yes
from tests.harness.processes import House, Process, ask, until
from tests.harness.tools import is_there

MB: Final = 1024 * 1024
CONNECTIONS: Final = 32
PATH: Final = "/cgi-bin/user/info?openid=o6_bmjrPTlm6_2sgVt7hMZOPfL2M&lang=zh_CN"
LOOP: Final = """
try:
    import uvloop as loop
except ImportError:
    loop = asyncio
"""
STUB: Final = f"""
import asyncio, sys
{LOOP}
def answer(body):
    head = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\n"
    head += b"Content-Length: %d\\r\\n\\r\\n"
    return head % len(body) + body
TOKEN = answer(b'{{"access_token":"' + b"9" * 136 + b'","expires_in":7200}}')
DATA = answer(
    b'{{"subscribe":1,"openid":"o6_bmjrPTlm6_2sgVt7hMZOPfL2M",'
    b'"language":"zh_CN","subscribe_time":1382694957}}'
)
class Stub(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        for asked in data.split(b"\\r\\n\\r\\n")[:-1]:
            self.transport.write(TOKEN if asked.startswith(b"GET /cgi-bin/token?") else DATA)
async def main():
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0)
    print("http://127.0.0.1:%d" % server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()
loop.run(main())
"""
BARE: Final = f"""
import asyncio, sys
import aiohttp
from aiohttp import web
{LOOP}
async def handler(request):
    out, url = request.app["out"], sys.argv[1] + request.raw_path
    headers = {{name: value for name, value in request.headers.items() if name != "Host"}}
    data = request.content if request.body_exists else None
    async with out.request(request.method, url, headers=headers, data=data) as answer:
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        await response.prepare(request)
        async for piece in answer.content.iter_any():
            await response.write(piece)
        return response
async def main():
    app = web.Application()
    connector = aiohttp.TCPConnector(limit=256)
    app["out"] = aiohttp.ClientSession(connector=connector, auto_decompress=False)
    app.add_routes([web.route("*", "/{{path:.*}}", handler)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print("http://127.0.0.1:%d" % site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()
loop.run(main())
"""
NODE: Final = """
const {createProxyServer} = require("http-proxy");
const http = require("http");
const agent = new http.Agent({keepAlive: true, maxSockets: 256});
const server = createProxyServer({target: process.argv[2], agent}).listen(0, "127.0.0.1");
setTimeout(() => console.log("http://127.0.0.1:" + server._server.address().port), 200);
"""
GO: Final = """
package main
import ("fmt"; "net"; "net/http"; "net/http/httputil"; "net/url"; "os")
func main() {
    target, _ := url.Parse(os.Args[1])
    proxy := httputil.NewSingleHostReverseProxy(target)
    proxy.Transport = &http.Transport{MaxIdleConnsPerHost: 256}
    l, _ := net.Listen("tcp", "127.0.0.1:0")
    fmt.Printf("http://%s\\n", l.Addr())
    http.Serve(l, proxy)
}
"""
RIVALS: Final = {"node": "Node http-proxy", "go": "Go ReverseProxy"}
HTTP_PROXY: Final = "http-proxy@1.18.1"


def rows(home: Path, *, brief: bool) -> list[Row]:
    """Rates and latencies in alternating rounds, medians; and memory."""
    return [*_rates(home, brief=brief), _memory(home, brief=brief)]


def _rates(home: Path, *, brief: bool) -> list[Row]:
    if not is_there("wrk"):
        return [Row("proxied calls", "not measured", "missing: wrk")]
    rounds, seconds = (1, 1) if brief else (5, 3)
    with ExitStack() as stack:
        stub = stack.enter_context(_program(1, sys.executable, "-c", STUB))
        bare = stack.enter_context(_program(0, sys.executable, "-c", BARE, stub))
        house = House(home, sandbox=stub, log_level="info")
        house.configure(more="[proxy]\nenabled = true\nrate = 1000000\nburst = 1000000\n")
        daemon = stack.enter_context(house.serving())
        os.sched_setaffinity(daemon.popen.pid, {0})
        until(lambda: house.get("/readyz")[0] == 200, "ready")
        assert ask("GET", bare + PATH)[1] == house.get(PATH)[1]
        laps = {"direct": stub, "bare": bare, "ours": house.daemon}
        skipped = []
        for name, command in (("node", _node(home)), ("go", _go(home))):
            if isinstance(command, str):
                skipped.append(Row(RIVALS[name], "not measured", command))
            else:
                laps[name] = stack.enter_context(_program(0, *command, stub))
        found: dict[str, list[Load]] = {name: [] for name in laps}
        for _ in range(rounds):
            for name, base in laps.items():
                found[name].append(_wrk(base, seconds))
    return [*_compared({name: _median(loads) for name, loads in found.items()}), *skipped]


def _compared(found: dict[str, Load]) -> list[Row]:
    """Return a row for the broker and one for each rival."""
    ours, bare, direct = found["ours"], found["bare"], found["direct"]
    ratio, slower = ours.rate / bare.rate, ours.p99_ms / bare.p99_ms
    against = f"bare aiohttp reverse proxy {_said(bare)}: ratio {ratio:.2f}, p99 {slower:.2f}; "
    against += f"direct {_said(direct)}: ratio {ours.rate / direct.rate:.3f}"
    table = [
        Row(
            f"proxied GET, {CONNECTIONS} connections",
            _said(ours),
            against,
            "≥ 0.9 × bare, p99 ≤ 1.5 ×",
            yes(ratio >= 0.9 and slower <= 1.5),
            ours.rate > 0,
        )
    ]
    for name, title in RIVALS.items():
        if (load := found.get(name)) is not None:
            beside = f"the broker is {ours.rate / load.rate:.2f} ×"
            table.append(Row(title, _said(load), beside, good=load.rate > 0))
    return table


def _median(loads: list[Load]) -> Load:
    return Load(
        statistics.median(load.rate for load in loads),
        statistics.median(load.p99_ms for load in loads),
    )


def _node(home: Path) -> tuple[str, ...] | str:
    """Return the command of Node's reverse proxy, or why it cannot be had."""
    if not (is_there("node") and is_there("npm")):
        return "missing: node, npm"
    install = ["npm", "install", "--silent", "--prefix", str(home), HTTP_PROXY]
    if subprocess.run(install, capture_output=True, check=False, timeout=120).returncode:
        return f"{HTTP_PROXY} could not be installed"
    script = home / "rival.js"
    script.write_text(NODE)
    return ("node", str(script))


def _go(home: Path) -> tuple[str, ...] | str:
    """Return the command of Go's reverse proxy, or why it cannot be had."""
    if not is_there("go"):
        return "missing: go"
    source, binary = home / "rival.go", home / "rival"
    source.write_text(GO)
    environ = {**os.environ, "HOME": str(home), "GOCACHE": str(home / "go"), "GO111MODULE": "off"}
    subprocess.run(["go", "build", "-o", str(binary), str(source)], check=True, env=environ)
    return ("env", "GOMAXPROCS=1", str(binary))


def _said(load: Load) -> str:
    return f"{load.rate:,.0f}/s, p99 {load.p99_ms:.1f} ms"


def _wrk(base: str, seconds: int) -> Load:
    options = ["-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-H", "X-Token-Broker: 1"]
    command = ["taskset", "-c", "1", "wrk", *options, base + PATH]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in said, said
    rate, p99 = (
        re.search(r"Requests/sec:\s+([\d.]+)", said),
        re.search(r"99%\s+([\d.]+)(us|ms|s)", said),
    )
    assert rate, said
    assert p99, said
    return Load(float(rate[1]), float(p99[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[p99[2]])


@contextmanager
def _program(core: int, *program: str) -> Iterator[str]:
    """A program on a core of its own, as the address it prints."""
    command = ["taskset", "-c", str(core), *program]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def _memory(home: Path, *, brief: bool) -> Row:
    size = (64 if brief else 1024) * MB
    house = House(home / "memory", log_level="info")
    house.home.mkdir()
    with house.sandboxed():
        house.configure(more=f"[proxy]\nenabled = true\nmax_body = {size}\n")
        with house.serving() as daemon:
            until(lambda: house.get("/readyz")[0] == 200, "ready")
            house.get("/cgi-bin/get_api_domain_ip")
            before = _most_resident(daemon)
            got = asyncio.run(_there_and_back(house.daemon, size))
            after = _most_resident(daemon)
    figure = f"at most {after:.0f} MB resident, {after - before:.0f} MB more than before"
    what = f"proxied: {size // MB} MB uploaded, then downloaded"
    return Row(
        what,
        figure,
        "",
        "bounded: < 30 MB more",
        yes(after - before < 30),
        got == size and after - before < 30,
    )


async def _there_and_back(base: str, size: int) -> int:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size // MB):
            yield bytes(MB)

    headers = {"X-Token-Broker": "1", "Content-Type": "application/octet-stream"}
    async with aiohttp.ClientSession(base, headers=headers) as session:
        async with session.post("/cgi-bin/media/upload?type=video", data=pieces()) as answer:
            media = json.loads(await answer.read())["media_id"]
        async with session.get(f"/cgi-bin/media/get?media_id={media}") as answer:
            return sum([len(piece) async for piece in answer.content.iter_any()])


def _most_resident(daemon: Process) -> float:
    status = Path(f"/proc/{daemon.popen.pid}/status").read_text()
    return (
        next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        / 1024
    )
