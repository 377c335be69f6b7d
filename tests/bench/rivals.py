"""GET token, compared with other servers that answer with the same bytes.

All run in one go, with the server on core 0 and the load on core 1.
"""

import contextlib
import os
import re
import socket
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.requests import BODY, bare
from tests.bench.table import Row, yes
from tests.harness.processes import House, until
from tests.harness.tools import is_there, path_of

TOOLS = ("wrk", "h2load", "nginx", "go", "redis-server", "redis-benchmark", "taskset")
KEY = "a-bearer-key-of-the-benchmarks-own"
NGINX = """
worker_processes 1; daemon off; pid {home}/nginx.pid; error_log {home}/nginx.log;
events {{ worker_connections 4096; multi_accept on; }}
http {{
  access_log off; keepalive_requests 1000000000; open_file_cache max=10;
  default_type application/json; sendfile on;
  client_body_temp_path {home}/b; proxy_temp_path {home}/p; fastcgi_temp_path {home}/f;
  uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
  server {{
    listen 127.0.0.1:{port} backlog=2048; root {home}/www; add_header Cache-Control no-store;
  }}
}}
"""
GO = """
package main
import ("fmt"; "net"; "net/http"; "os")
func main() {
    body := []byte(os.Args[1])
    http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
        w.Header()["Content-Type"] = []string{"application/json"}
        w.Header()["Cache-Control"] = []string{"no-store"}
        w.Write(body)
    })
    l, _ := net.Listen("tcp", "127.0.0.1:0")
    fmt.Printf("http://%s\\n", l.Addr())
    http.Serve(l, nil)
}
"""


@dataclass(frozen=True)
class Load:
    """What a load generator measured: requests per second, and the latency that 99 of 100 keep."""

    rate: float
    p99_ms: float = 0.0


@dataclass(frozen=True)
class Lap:
    """Something to measure: its name, how, and what it stands beside."""

    name: str
    measure: Callable[[float], Load]


def rows(home: Path, *, brief: bool) -> list[Row]:
    """Alternating rounds; medians. Says which tools are missing, and leaves their rows out."""
    missing = [tool for tool in TOOLS if not is_there(tool)]
    if missing:
        return [
            Row(
                "GET token beside other servers",
                "not measured",
                f"missing: {', '.join(missing)}",
            )
        ]
    rounds, seconds = (1, 0.3) if brief else (5, 2.0)
    with contextlib.ExitStack() as stack:
        laps = _laps(home, stack, brief=brief)
        found: dict[str, list[Load]] = {lap.name: [] for lap in laps}
        for _ in range(rounds):
            for lap in laps:
                found[lap.name].append(lap.measure(seconds))
    medians = {name: _median(loads) for name, loads in found.items()}
    return _table(medians)


def _median(loads: list[Load]) -> Load:
    return Load(
        statistics.median(load.rate for load in loads),
        statistics.median(load.p99_ms for load in loads),
    )


def _table(medians: dict[str, Load]) -> list[Row]:
    rivals = {"nginx, a static file": 1.4, "Go net/http": 2.0, "bare aiohttp": 6.0}
    table = []
    for name, load in medians.items():
        connections = name.rpartition(", ")[2]
        beside = {
            rival: medians[f"{rival}, {connections}"]
            for rival in rivals
            if f"{rival}, {connections}" in medians
        }
        p99 = f"{load.rate:,.0f}/s" + (f", p99 {load.p99_ms:.2f} ms" if load.p99_ms else "")
        against = "; ".join(
            f"{load.rate / other.rate:.2f} × {rival}" for rival, other in beside.items()
        )
        first = name.startswith("token-broker, express lane, uvloop")
        met = all(load.rate >= rivals[rival] * other.rate for rival, other in beside.items())
        met = met and all(
            load.p99_ms <= other.p99_ms
            for rival, other in beside.items()
            if rival.startswith("nginx")
        )
        # One connection measures how fast two processors wake each other: it has no target.
        is_judged = first and beside and connections != "1 connection(s)"
        target = "≥ 1.4 × nginx, p99 no worse; 2 × Go, 6 × aiohttp" if is_judged else ""
        table.append(
            Row(
                name,
                p99,
                against if name.startswith("token") else "",
                target,
                yes(met) if target else "",
                load.rate > 0,
            )
        )
    return table


def _laps(home: Path, stack: contextlib.ExitStack, *, brief: bool) -> list[Lap]:
    ours = {
        "token-broker, express lane, uvloop": _ours(home, stack, "a"),
        "token-broker, express lane, asyncio": _ours(home, stack, "b", loop="asyncio"),
        "token-broker, no express lane, uvloop": _ours(
            home, stack, "c", server="express_lane = false"
        ),
        "token-broker, express lane, uvloop, bearer": _ours(home, stack, "d", keyed=True),
    }
    theirs = {
        "nginx, a static file": stack.enter_context(_nginx(home)),
        "Go net/http": stack.enter_context(_go(home, "rival", GO)),
        "bare aiohttp": stack.enter_context(bare()),
    }
    everywhere = [
        *list(ours.items())[:1],
        *((name, (base, Path())) for name, base in theirs.items()),
    ]
    laps = [
        Lap(f"{name}, {connections} connection(s)", _wrk(base, connections))
        for connections in ((32,) if brief else (1, 32, 1000))
        for name, (base, _) in (
            everywhere if connections != 32 else [*ours.items(), *everywhere[1:]]
        )
    ]
    base, sock = ours["token-broker, express lane, uvloop"]
    redis = stack.enter_context(_redis(home))
    return [
        *laps,
        Lap("token-broker over TCP, by h2load, 32 connections", _h2load(base, base)),
        Lap(
            "token-broker over its Unix socket, by h2load, 32 connections",
            _h2load(base, f"unix:{sock}"),
        ),
        Lap("Redis GET of the same bytes, by redis-benchmark, 32 connections", redis),
    ]


def _ours(
    home: Path,
    stack: contextlib.ExitStack,
    name: str,
    *,
    server: str = "",
    loop: str = "uvloop",
    keyed: bool = False,
) -> tuple[str, Path]:
    house = House(home / name, log_level="info")
    house.home.mkdir()
    stack.enter_context(house.sandboxed())
    key = house.home / "key"
    key.write_text(KEY)
    key.chmod(0o600)
    house.configure(more=f'[clients.bench]\nkey_file = "{key}"\n' if keyed else "")
    house.config.write_text(house.config.read_text().replace("[store]", f"{server}\n[store]", 1))
    environ = {}
    if loop == "asyncio":  # as where the extra is not installed
        (house.home / "uvloop.py").write_text("raise ImportError\n")
        environ["PYTHONPATH"] = str(house.home)
    daemon = stack.enter_context(house.serving(**environ))
    os.sched_setaffinity(daemon.popen.pid, {0})
    until(lambda: house.get("/readyz")[0] == 200, "ready")
    return house.daemon, house.home / "broker.sock"


@contextmanager
def _nginx(home: Path) -> Iterator[str]:
    page = home / "www" / "v1" / "tokens" / "main"
    page.parent.mkdir(parents=True)
    page.write_text(BODY)
    port = _free_port()
    conf = home / "nginx.conf"
    conf.write_text(f"user root;{NGINX.format(home=home, port=port)}")
    with _pinned(str(path_of("nginx")), "-p", str(home), "-c", str(conf)):
        base = f"http://127.0.0.1:{port}"
        until(lambda: _listens(port), "nginx listens")
        yield base


@contextmanager
def _go(home: Path, name: str, program: str) -> Iterator[str]:
    source, binary = home / f"{name}.go", home / name
    source.write_text(program)
    environ = {**os.environ, "HOME": str(home), "GOCACHE": str(home / "go"), "GO111MODULE": "off"}
    subprocess.run(["go", "build", "-o", str(binary), str(source)], check=True, env=environ)
    with _pinned(str(binary), BODY, GOMAXPROCS="1") as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()


@contextmanager
def _redis(home: Path) -> Iterator[Callable[[float], Load]]:
    port = _free_port()
    with _pinned(
        "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(home)
    ):
        until(lambda: _listens(port), "Redis listens")
        cli = ["redis-benchmark", "-p", str(port), "-c", "32", "--csv"]
        subprocess.run(
            ["redis-cli", "-p", str(port), "set", "token", BODY], check=True, capture_output=True
        )

        def measure(seconds: float) -> Load:
            count = str(max(1000, round(seconds * 60_000)))
            said = _load(*cli, "-n", count, "get", "token").splitlines()[-1]
            values = [value.strip('"') for value in said.split('","')]
            return Load(float(values[1]), float(values[6]) if len(values) > 6 else 0.0)

        yield measure


@contextmanager
def _pinned(*command: str, **environ: str) -> Iterator["subprocess.Popen[str]"]:
    pinned = ["taskset", "-c", "0", *command]
    with subprocess.Popen(
        pinned, stdout=subprocess.PIPE, text=True, env={**os.environ, **environ}
    ) as server:
        try:
            yield server
        finally:
            server.terminate()


def _wrk(base: str, connections: int) -> Callable[[float], Load]:
    headers = ["-H", "X-Token-Broker: 1", "-H", f"Authorization: Bearer {KEY}"]

    def measure(seconds: float) -> Load:
        options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", *headers]
        said = _load("wrk", *options, f"{base}/v1/tokens/main")
        assert "Non-2xx" not in said, said
        rate, p99 = (
            re.search(r"Requests/sec:\s+([\d.]+)", said),
            re.search(r"99%\s+([\d.]+)(us|ms|s)", said),
        )
        assert rate, said
        assert p99, said
        return Load(float(rate[1]), float(p99[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[p99[2]])

    return measure


def _h2load(base: str, where: str) -> Callable[[float], Load]:
    def measure(seconds: float) -> Load:
        count = str(max(1000, round(seconds * 40_000)))
        target = (
            [f"--base-uri={where}", "http://localhost/v1/tokens/main"]
            if where != base
            else [f"{base}/v1/tokens/main"]
        )
        said = _load(
            "h2load", "--h1", "-t1", "-c32", "-n", count, "-H", "X-Token-Broker: 1", *target
        )
        rate = re.search(r"([\d.]+) req/s", said)
        assert rate, said
        assert " 0 failed" in said, said
        return Load(float(rate[1]))

    return measure


def _load(*command: str) -> str:
    return subprocess.run(
        ["taskset", "-c", "1", *command], capture_output=True, text=True, check=True
    ).stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
