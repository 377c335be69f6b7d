"""How soon the first token is served, and how much memory it takes."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.table import Row, yes
from tests.harness.processes import House, until

FIRST_TOKEN_S = 0.7
ONE_APP_MB = 80
THOUSAND_APPS_MB = 150


def start_up(home: Path, *, brief: bool) -> list[Row]:
    """Measure from exec to the first token served, with a stored token.

    The import of aiohttp alone is shown beside it.
    """
    house = House(home, log_level="info")
    with house.sandboxed():
        house.configure()
        with house.serving() as daemon:
            until(lambda: house.get("/readyz")[0] == 200, "ready")
            daemon.end()
        times = [_first_token(house) for _ in range(1 if brief else 7)]
        calls = len(house.calls())
    took = statistics.median(times)
    scale = statistics.median(_import_aiohttp() for _ in range(1 if brief else 5))
    against = f"`python -c 'import aiohttp'` {scale:.2f} s"
    return [
        Row(
            "exec to first token served, with a stored token",
            f"{took:.2f} s",
            against,
            "< 0.7 s",
            yes(took < FIRST_TOKEN_S),
            good=calls == 1,
        )
    ]


def _first_token(house: House) -> float:
    began = time.perf_counter()
    with house.serving() as daemon:
        status, _ = house.get("/v1/tokens/main")
        took = time.perf_counter() - began
        assert status == 200
        daemon.end()
    return took


def _import_aiohttp() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import aiohttp"], check=True)
    return time.perf_counter() - began


def imports(most: int = 15) -> str:
    """The imports of `serve` that cost most, each by itself."""
    script = "import broker.app"
    said = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", script],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    lines = [
        line.removeprefix("import time:").split("|") for line in said.splitlines() if "|" in line
    ]
    costs = sorted(
        ((int(own), name.strip()) for own, _, name in lines if own.strip().isdecimal()),
        reverse=True,
    )
    return "\n".join(
        [
            "| import | ms, by itself |",
            "|---|---|",
            *(f"| `{name}` | {own / 1000:.1f} |" for own, name in costs[:most]),
        ]
    )


def memory(home: Path, *, brief: bool) -> list[Row]:
    """Resident memory of `serve`, every app with a token, after some requests."""
    return [
        _resident(home, apps, target)
        for apps, target in ((1, ONE_APP_MB), (20 if brief else 1000, THOUSAND_APPS_MB))
    ]


def _resident(home: Path, apps: int, target: int) -> Row:
    house = House(home / str(apps), log_level="info")
    house.home.mkdir()
    with house.sandboxed():
        house.configure()
        secret = house.home / "main.secret"
        more = "".join(
            f'[apps.a{n}]\nappid = "wxapp{n}"\nsecret_file = "{secret}"\n' for n in range(apps - 1)
        )
        house.configure(more=more)
        with house.serving() as daemon:
            until(lambda: house.get("/readyz")[0] == 200, "every app has a token")
            for _ in range(200):
                house.get("/v1/tokens/main")
            status = Path(f"/proc/{daemon.popen.pid}/status").read_text()
            calls = len(house.calls())
    resident = (
        next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        / 1024
    )
    return Row(
        f"resident memory, {apps} app(s)",
        f"{resident:.0f} MB",
        "",
        f"< {target} MB",
        yes(resident < target),
        good=calls == apps,
    )
