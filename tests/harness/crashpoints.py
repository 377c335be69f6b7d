"""Daemons that die at a chosen step of the refresh path.

One process forks them all, so that two hundred take seconds.

`python -m tests.harness.crashpoints` imports the daemon once and forks for each order on its
stdin. What is born is the real command, with the store and WeChat's client replaced by subclasses
that count steps and `kill -9` themselves. Steps of a store's method, on its thread: `asked`,
`begin` (in no transaction yet), `commit` (all written, nothing committed), `committed`, `done`;
then, in the event loop, `returned`. Of a call to WeChat: `asked` and `returned`.
"""

import itertools
import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from sqlite_utils import Database

from broker import app, sandbox
from broker.cli import commands as cli
from broker.config import load as config
from broker.config import reload
from broker.core.credential import Account, Credential, Policy
from broker.core.errcodes import Failure
from broker.core.outcome import OutcomeRules
from broker.core.ports import Change, Claim, Decide, Denial, Denied, Grant, Held, Minted, Verdict
from broker.core.quota import Lane
from broker.core.secret import Secret
from broker.store import open as stores
from broker.store.sqlite import file as storefile
from broker.store.sqlite import store as sqlite
from broker.store.sqlite.file import StoreFile
from broker.store.sqlite.schema import MIGRATIONS as RELEASED
from broker.store.sqlite.store import SqliteStore
from broker.system import sockets as listen
from broker.tokens import registry
from broker.tokens.keeper import Keeper
from broker.wechat import WeChat
from tests.harness.processes import PATIENCE_S, House, _url, until

PRELOADED: Final = (config, listen, reload, sandbox)  # what commands import when they run


Environ = Mapping[str, str]
NOTHING: Final[Environ] = {}


# --- the side of the process that dies ------------------------------------------------------------


@dataclass
class Life:
    """How a process is wired, and where it dies.

    It dies at the `nth` passing of `step`, which is a name as "reserve:commit". By default it does
    not die.
    """

    wiring: str = "plain"
    step: str = ""
    nth: int = 1


@dataclass
class Fate:
    """This process's life, and the method in which it is."""

    life: Life = field(default_factory=Life)
    during: str = "open"

    def passes(self, step: str) -> None:
        if f"{self.during}:{step}" != self.life.step:
            return
        self.life.nth -= 1
        if self.life.nth == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def within(self, method: str) -> Iterator[None]:
        """One method of the store, on its thread."""
        self.during = method
        self.passes("asked")
        yield
        self.passes("done")


FATE: Final = Fate()


class MortalFile(StoreFile):
    """The real file; a transaction has four moments to die at."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        FATE.passes("begin")
        with super().transaction():
            yield
            FATE.passes("commit")
        FATE.passes("committed")


class MortalStore(SqliteStore):
    """The real store."""

    def _load(self, account: Account) -> Held:
        with FATE.within("load"):
            return super()._load(account)

    def _reserve(self, account: Account, decide: Decide) -> Grant | Denied:
        with FATE.within("reserve"):
            return super()._reserve(account, decide)

    def _settle(
        self, account: Account, grant: Grant, outcome: str, change: Change, emergency: int = 0
    ) -> Credential:
        with FATE.within("settle"):
            return super()._settle(account, grant, outcome, change, emergency)

    def _amend(self, account: Account, change: Change) -> tuple[Credential, bool]:
        with FATE.within("amend"):
            return super()._amend(account, change)

    async def reserve(self, account: Account, decide: Decide) -> Grant | Denied:
        answer = await super().reserve(account, decide)
        FATE.passes("returned")
        return answer

    async def settle(
        self,
        account: Account,
        grant: Grant,
        outcome: str,
        change: Change,
        *,
        emergency: bool = False,
    ) -> Credential:
        answer = await super().settle(account, grant, outcome, change, emergency=emergency)
        FATE.passes("returned")
        return answer

    async def amend(self, account: Account, change: Change) -> tuple[Credential, bool]:
        answer = await super().amend(account, change)
        FATE.passes("returned")
        return answer


class MortalWeChat(WeChat):
    """The real client."""

    async def fetch(self, account: Account, *, force: bool) -> Minted | Failure:
        with self._within("call"):
            return await super().fetch(account, force=force)

    async def check(self, account: Account, token: Secret) -> Verdict:
        with self._within("check"):
            return await super().check(account, token)

    @contextmanager
    def _within(self, method: str) -> Iterator[None]:
        FATE.during = method
        FATE.passes("asked")
        yield
        FATE.during = method
        FATE.passes("returned")


class BackwardsStore(SqliteStore):
    """What must not be: a call's row is written after the call.

    The control of the test that kills at random.
    """

    def _reserve(self, account: Account, decide: Decide) -> Grant | Denied:
        held = self._load(account)
        now = self._clock.now()
        decision = decide(held.credential, held.entries, now)
        if isinstance(decision, Denial):
            return Denied(decision, held.credential, held.entries)
        return Grant(0, now, decision, replace(held.credential, called_at=now), held.entries)

    def _settle(
        self, account: Account, grant: Grant, outcome: str, change: Change, emergency: int = 0
    ) -> Credential:
        late = super()._reserve(account, lambda *_: grant.claim)
        if isinstance(late, Denied):
            raise TypeError("a claim was denied that nobody denies")
        return super()._settle(account, late, outcome, change, emergency)


class HammeringStore(SqliteStore):
    """Never gets further than its first load: it writes and checkpoints until it is killed.

    What it has done stands in `NAME.done`: calls that were settled, and whether a checkpoint is
    under way.
    """

    def _load(self, account: Account) -> Held:
        fd = os.open(f"{self._path}.done", os.O_RDWR | os.O_CREAT, 0o600)
        for done in itertools.count(len(super()._load(account).entries) + 1):
            self._write_a_call(account, "x" * 512)
            os.pwrite(fd, b"%09d 1" % done, 0)
            self._file.db.execute("pragma wal_checkpoint(truncate)").fetchone()
            os.pwrite(fd, b"%09d 0" % done, 0)
        raise AssertionError

    def _write_a_call(self, account: Account, token: str) -> None:
        grant = self._reserve(account, lambda *_: Claim(Lane.SCHEDULED))
        if isinstance(grant, Denied):
            raise TypeError("a claim was denied that nobody denies")
        judge = OutcomeRules(account, Policy(), self._clock.now(), self._clock.wall(), 0.0)
        self._settle(account, grant, *judge.answer(grant, Minted(Secret(token), 7200.0)))


class StumblingKeeper(Keeper):
    """A bug in every look."""

    def tick(self) -> float:
        raise RuntimeError("a bug")


def _two_more_versions(db: Database) -> None:
    db.execute("alter table calls add column note text")
    db.execute("update calls set note = 'n'")
    db.execute("create table second (it text) strict")
    db.execute("insert into second values ('x')")


def _third_version(db: Database) -> None:
    db.execute("create table third (it text) strict")
    db.execute("drop table second")


MIGRATIONS: Final = (_two_more_versions, _third_version)


def _traced(*args: Any, **kwargs: Any) -> sqlite3.Connection:
    """A connection before each of whose statements the process may die: `open:statement`."""
    connection = sqlite3.Connection(*args, **kwargs)
    connection.set_trace_callback(lambda _: FATE.passes("statement"))
    return connection


Part = tuple[ModuleType, str, object]
WIRINGS: Final[Mapping[str, Sequence[Part]]] = {
    "plain": [],
    "mortal": [
        (stores, "SqliteStore", MortalStore),
        (app, "WeChat", MortalWeChat),
        (sqlite, "StoreFile", MortalFile),
    ],
    "backwards": [(stores, "SqliteStore", BackwardsStore)],
    "hammering": [(stores, "SqliteStore", HammeringStore)],
    "stumbling": [(registry, "Keeper", StumblingKeeper)],
    "migrating": [
        (storefile, "MIGRATIONS", (*RELEASED, *MIGRATIONS)),
        (sqlite3, "connect", _traced),
    ],
}


def _live(order: dict[str, Any]) -> int:
    """Be the process that was ordered; its exit code."""
    for fd, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, order["out"], WRITE),
        (2, order["log"], WRITE | os.O_APPEND),
    ):
        os.dup2(os.open(path, flags, 0o600), fd)
    os.environ.update(order["environ"])
    time.tzset()
    FATE.life = Life(**order["life"])
    for module, name, part in WIRINGS[FATE.life.wiring]:
        getattr(
            module, name
        )  # a wire that hangs in the air would make a test pass that tests nothing
        setattr(module, name, part)
    try:
        cli.main(order["command"], standalone_mode=False)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def _fork_for_each_order() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = _live(order)
            # A fork never goes back to where its parent goes on
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
            finally:
                os._exit(code)
        print(json.dumps(pid), flush=True)


WRITE: Final = os.O_WRONLY | os.O_CREAT


# --- the side of the test -------------------------------------------------------------------------


@dataclass
class Child:
    """A forked command."""

    fork_server: "ForkServer"
    pid: int
    out: Path
    log: Path
    code: int | None = None

    def first_line(self) -> str:
        """The line it prints once it serves; empty where it died first."""
        return str(
            until(lambda: self.out.read_text() or (not self._lives() and "\n"), "a first line")
        ).strip()

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> int:
        """`kill -9`; its exit code, which is another where it had died before."""
        if self.code is None:
            self.send(signal.SIGKILL)
        return self.ended()

    def end(self) -> int:
        """Ask it to stop; its exit code."""
        self.send(signal.SIGTERM)
        return self.ended()

    def ended(self) -> int:
        """Wait for its end, bounded; its exit code, negative for a signal."""
        if self.code is None:
            until(lambda: not self._lives(), f"the end of {self.pid}")
            self.code = self.fork_server.asked({"wait": self.pid})
        return self.code

    def _lives(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False


@dataclass
class ForkServer:
    """The process that forks."""

    popen: "subprocess.Popen[str]"
    lock: threading.Lock = field(default_factory=threading.Lock)
    born: int = 0

    def asked(self, order: dict[str, Any]) -> int:
        with self.lock:
            assert self.popen.stdin is not None
            assert self.popen.stdout is not None
            print(json.dumps(order), file=self.popen.stdin, flush=True)
            assert select.select([self.popen.stdout], [], [], PATIENCE_S)[0], (
                "the fork_server does not answer"
            )
            return int(json.loads(self.popen.stdout.readline()))

    @contextmanager
    def child(
        self, log: Path, *command: str, life: Life | None = None, environ: Environ = NOTHING
    ) -> Iterator[Child]:
        """A command with a fate; killed at the end if it still runs."""
        self.born += 1
        out, life = log.with_name(f"out-{self.born}"), life or Life()
        out.touch()
        order = {
            "command": command,
            "out": str(out),
            "log": str(log),
            "environ": dict(environ),
            "life": asdict(life),
        }
        child = Child(self, self.asked(order), out, log)
        try:
            yield child
        finally:
            child.kill()


@contextmanager
def fork_server() -> Iterator[ForkServer]:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith("TOKEN_BROKER_")
    }
    command = [sys.executable, "-m", "tests.harness.crashpoints"]
    with subprocess.Popen(
        command, text=True, env=clean, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as popen:
        try:
            yield ForkServer(popen)
        finally:
            popen.kill()


@dataclass
class ForkedDaemon(House):
    """A house whose processes are forked."""

    fork_server: ForkServer = field(kw_only=True)

    @contextmanager
    def simulating(self, *options: str) -> Iterator[Child]:
        """A sandbox of its own."""
        with self.fork_server.child(
            self.home / "sandbox.log", "sandbox", "--port", "0", *options
        ) as child:
            self.sandbox = _url(child.first_line())
            yield child

    @contextmanager
    def living(
        self,
        step: str = "",
        nth: int = 1,
        wiring: str = "",
        *,
        patient: bool = True,
        environ: Environ = NOTHING,
    ) -> Iterator[Child]:
        """A daemon with a fate.

        `daemon` is where it serves, unless it died before that, or `patient` was false.
        """
        life = Life(wiring or ("mortal" if step else "plain"), step, nth)
        command = ("serve", "--config", str(self.config))
        named = {"TOKEN_BROKER_LOG_LEVEL": self.log_level, **environ}
        with self.fork_server.child(
            self.home / "daemon.log", *command, life=life, environ=named
        ) as child:
            self.daemon = self.url_of(child) if patient else ""
            yield child

    def url_of(self, child: Child) -> str:
        """Where it serves; empty where it died before it did."""
        line = child.first_line()
        return _url(line) if line else ""

    def said(self, event: str) -> list[dict[str, Any]]:
        """The daemon's log lines of one event."""
        lines = [
            json.loads(line)
            for line in (self.home / "daemon.log").read_text().splitlines()
            if line.startswith("{")
        ]
        return [line for line in lines if line.get("event") == event]


if __name__ == "__main__":
    _fork_for_each_order()
