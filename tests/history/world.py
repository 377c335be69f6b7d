"""Three real brokers on one PostgreSQL with a streaming standby, and one sandbox.

Each broker has a relay of its own to each server.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from broker.store.postgres.store import PostgresStore
from broker.system.clock import SystemClock
from broker.tokens.refresher import LEASE_SLACK_S
from tests.harness.cluster import Cluster
from tests.harness.doubles import APPID
from tests.harness.processes import PATIENCE_S, House, Process
from tests.harness.relay import Relay, relay_to
from tests.history import audit, checker
from tests.history.record import Blow, History, Rules

NODES: Final = ("a", "b", "c")
MAIN, POOR = APPID, "wxpoor"  # one with plenty of calls, and one whose quota is used up in a minute
CALL_TIMEOUT_S: Final = 0.6
POLICY: Final = """
refresh_fraction = 0.5
min_gap = 0.2
max_backoff = 1
verify_gap = 0.3
min_serve = 1
"""
AGREES_WITHIN_S: Final = 8.0  # when a world is given up; what is allowed is the checker's to say


@dataclass
class Scale:
    """How fast a world lives, and how poor the poor app is."""

    lifetime: int = 20
    overlap: int = 5
    poor_quota: int = 30

    @property
    def rules(self) -> Rules:
        quota = {MAIN: 2000, POOR: self.poor_quota}
        return Rules(self.lifetime, self.overlap, CALL_TIMEOUT_S + LEASE_SLACK_S, quota)


@dataclass
class Host:
    """One broker, its relays (one before each server), and the process that is it now, if any."""

    name: str
    house: House
    relays: list[Relay]
    url: str
    wiring: str
    number: int
    life: int = 0
    process: Process | None = None
    log: IO[str] | None = None

    @property
    def address(self) -> str:
        """Where it serves; empty while it does not."""
        return self.house.daemon

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.popen.pid

    @property
    def state(self) -> str:
        """As the kernel says: T is stopped, Z is dead."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, AssertionError):
            return "Z"

    def start(self, fate: Path) -> None:
        """Begin another life; returns when it serves."""
        self.log = (self.house.home / "daemon.log").open("a")
        told = {
            "TOKEN_BROKER_LOG_LEVEL": "debug",
            "TOKEN_BROKER_STORE__URL": self.url,
            "TOKEN_BROKER_STORE__NODE": self.name,
            "HISTORY_FATE": str(fate),
            "HISTORY_CLOCK": str(self.clock),
            "HISTORY_BOOTED": str(-86_400.0 * self.number),
        }
        command = [
            sys.executable,
            "-m",
            "tests.history.node",
            self.wiring,
            "serve",
            "--config",
            str(self.house.config),
        ]
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("TOKEN_BROKER_")
        }
        popen = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.log, text=True, env={**clean, **told}
        )
        self.process = Process(popen, Path(self.log.name))
        self.house.daemon = self.process.first_line().split(" serves on ")[1].split(",")[0].strip()
        self.life += 1

    @property
    def clock(self) -> Path:
        """A file that says by how many seconds its wall is wrong."""
        return self.house.home / "clock"

    def bury(self) -> None:
        """Kill it, if need be, and take note that it is gone."""
        self.house.daemon = ""
        if self.process is not None:
            self.process.popen.kill()
            self.process.popen.wait(PATIENCE_S)
            assert self.process.popen.stdout is not None
            self.process.popen.stdout.close()
            assert self.log is not None
            self.log.close()
            self.process = None


@dataclass
class World:
    """All of it, running.

    `primary` and `standby`: as they are now; `servers`: in the order of the hosts' relays.
    """

    home: Path
    scale: Scale
    database: str
    primary: Cluster
    standby: Cluster | None
    hosts: list[Host]
    house: House
    history: History
    fallen: Cluster | None = None
    last: dict[tuple[str, str], str] = field(
        default_factory=dict
    )  # by node and app: what it served last

    @property
    def fate(self) -> Path:
        """Where the next blow is ordered."""
        return self.home / "fate"

    async def control(self, path: str, body: object = None) -> Any:
        """Tell the sandbox, or ask it."""
        return await asyncio.to_thread(self.house.control, path, body)

    def blow(self, kind: str, on: str = "", step: str = "") -> Blow:
        """Note that something is done from now on."""
        self.history.blows.append(blow := Blow(kind, time.time(), on, step))
        return blow

    async def start(self, host: Host) -> None:
        """Begin another life of a host."""
        began = time.time()
        await asyncio.to_thread(host.start, self.fate)
        self.history.lives[host.name, host.life] = began

    async def agree(self) -> float:
        """Wait until all hosts serve the same of each app; how many seconds that took."""
        began = time.monotonic()
        while True:
            said = await asyncio.gather(
                *(asyncio.to_thread(_versions, host) for host in self.hosts)
            )
            if None not in said and all(one == said[0] for one in said):
                return time.monotonic() - began
            if time.monotonic() > began + AGREES_WITHIN_S:
                return float("inf")

    async def healed(self) -> None:
        """All is well again: see how long it takes until that shows."""
        self.history.converged_s.append(await self.agree())

    async def seen(self) -> History:
        """What was seen, all of it. The brokers are still there: I6 looks at them, too."""
        history = self.history
        history.calls = [
            it for it in await self.control("/calls") if it["appid"] in self.scale.rules.quota
        ]
        history.events = await asyncio.to_thread(audit.events, self.primary, self.database)
        history.ledger = await asyncio.to_thread(audit.ledger, self.primary, self.database)
        if self.fallen is not None:
            history.lost = await asyncio.to_thread(self._lost, self.fallen)
        return history

    def _lost(self, fallen: Cluster) -> list[dict[str, Any]]:
        """Rows that the dead primary had, and its heir has not.

        It is asked in quarantine: nobody else finds it.
        """
        fallen.start()
        try:
            kept = {
                (row["appid"], row["epoch"], row["id"], row["at"]) for row in self.history.ledger
            }
            rows = audit.ledger(fallen, self.database)
            return [
                row
                for row in rows
                if (row["appid"], row["epoch"], row["id"], row["at"]) not in kept
            ]
        finally:
            fallen.stop()

    def leaks(self) -> list[str]:
        """I6."""
        return checker.leaks(
            [host.house.home for host in self.hosts],
            [host.pid for host in self.hosts if host.process],
        )


def _versions(host: Host) -> dict[str, Any] | None:
    """What a host serves of each app; None where it does not answer."""
    try:
        asked = {app: host.house.get(f"/v1/tokens/{app}") for app in ("main", "poor")}
    except (OSError, ValueError):
        return None
    return {app: answer.get("version") or answer.get("code") for app, (_, answer) in asked.items()}


@asynccontextmanager
async def world(
    home: Path,
    primary: Cluster,
    standby: Cluster | None = None,
    *,
    wiring: str = "mortal",
    scale: Scale | None = None,
    prepare: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[World]:
    """A world that lives.

    `prepare` is told the database, once its tables are there and nobody uses them.
    """
    scale = scale or Scale()
    house = House(home)
    async with AsyncExitStack() as stack:
        database = await asyncio.to_thread(primary.database)
        options = ("--expires-in", str(scale.lifetime), "--overlap", str(scale.overlap))
        await asyncio.to_thread(stack.enter_context, house.sandboxed(*options))
        hosts = []
        for number, name in enumerate(NODES):
            servers = [primary, standby] if standby else [primary]
            relays = [await stack.enter_async_context(relay_to(server.port)) for server in servers]
            where = ",".join(f"127.0.0.1:{relay.port}" for relay in relays)
            url = f"postgresql://token_broker@{where}/{database}"
            hosts.append(
                Host(
                    name,
                    _configured(home / name, house.sandbox, scale),
                    relays,
                    url,
                    wiring,
                    number,
                )
            )
        made = World(home, scale, database, primary, standby, hosts, house, History(scale.rules))
        stack.push_async_callback(_end, made)
        await _create_tables(made)
        prepare(database)
        await asyncio.gather(*(made.start(host) for host in hosts))
        yield made


async def _create_tables(made: World) -> None:
    """As the first broker does, which calls nobody yet; then the audit's beside them."""
    store = await PostgresStore.open(made.primary.dsn(made.database), SystemClock(), node="first")
    await store.close()
    await asyncio.to_thread(audit.install, made.primary, made.database)


def _configured(home: Path, sandbox: str, scale: Scale) -> House:
    home.mkdir()
    house = House(home, sandbox)
    poor = (
        f'[apps.poor]\nappid = "{POOR}"\nsecret_file = "{home}/main.secret"\ndaily_quota ='
        f" {scale.poor_quota}\n"
    )
    config = house.configure(policy=f"{POLICY}overlap = {scale.overlap}", more=poor)
    text = (
        config.read_text()
        .replace("timeout = 5\n", f"timeout = {CALL_TIMEOUT_S}\n")
        .replace("tick = 0.2\n", "tick = 0.1\n")
    )
    config.write_text(text)
    return house


async def _end(made: World) -> None:
    for host in made.hosts:
        if host.process is not None:
            with suppress(ProcessLookupError):
                os.kill(host.pid, signal.SIGCONT)
        await asyncio.to_thread(host.bury)
