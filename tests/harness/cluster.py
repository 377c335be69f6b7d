"""Debian's PostgreSQL as a cluster of our own, on loopback.

It is made in a temporary directory, and removed again.

PostgreSQL refuses to run as root, so root runs it as the user `postgres`, which the package brings.
`fsync=off` where durability is not the matter. Databases are made as they are needed, each with the
roles that the README tells to make.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import psycopg

from tests.harness.tools import path_of

PATIENCE_S: Final = 30.0
PASSWORD: Final = "c4n4ry-postgres-password"
OWNER: Final = "postgres"  # the cluster's superuser
BROKER: Final = (
    "token_broker"  # the least that a broker needs; may do nothing before the schema grants it
)
GUARDED: Final = "guarded"  # a role that needs PASSWORD; the others are trusted
_HBA: Final = f"""\
local   all         all                     trust
host    all         {GUARDED} 127.0.0.1/32  scram-sha-256
host    all         all       127.0.0.1/32  trust
host    replication all       127.0.0.1/32  trust
"""
_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "shared_buffers": "16MB",
    "max_connections": "120",
    "fsync": "off",
    "wal_level": "replica",
    "hot_standby": "on",
    "max_wal_senders": "10",
    "wal_keep_size": "64MB",
    "autovacuum": "off",
    "log_min_messages": "warning",
}
_numbers: Final = count(1)


def binaries() -> Path:
    """Where the newest PostgreSQL's programs are."""
    return path_of("initdb").parent


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _user() -> dict[str, Any]:
    """As whom PostgreSQL runs, as `subprocess` wants it."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam("postgres")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _run(*command: str | Path) -> None:
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, cwd="/", **_user()
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


@dataclass
class Cluster:
    """A server with its files under `home` (which the user of :func:`_user` owns)."""

    home: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()

    def create(self) -> None:
        """A new, empty cluster."""
        _run(
            binaries() / "initdb",
            f"--pgdata={self.data}",
            f"--username={OWNER}",
            "--auth=trust",
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C",
        )
        (self.data / "pg_hba.conf").write_text(_HBA)

    def start(self) -> None:
        """Run it; returns when it answers."""
        settings = {
            **_SETTINGS,
            **self.settings,
            "port": str(self.port),
            "unix_socket_directories": str(self.home),
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(binaries() / "postgres"), "-D", str(self.data), *options],
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                **_user(),
            )
        self.answers()

    def answers(self) -> None:
        """Return when it takes connections."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert self._process is None or self._process.poll() is None, self.log
            try:
                psycopg.connect(self.dsn(OWNER, OWNER), connect_timeout=5).close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, self.log
                time.sleep(0.02)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server.

        SIGINT stops it at once, in order. SIGQUIT is a crash of PostgreSQL. SIGKILL is a crash of
        the machine: it goes to all processes of the server.
        """
        process, self._process = self._process, None
        if process is None:
            return
        if how is signal.SIGKILL:
            for pid in (process.pid, *_children(process.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        else:
            process.send_signal(how)
        process.wait(PATIENCE_S)

    def restart(self, how: signal.Signals = signal.SIGINT) -> None:
        self.stop(how)
        self.start()

    def reload(self, **settings: str) -> None:
        """Change settings of the running server."""
        for name, value in settings.items():
            self.sql(f"alter system set {name} = '{value}'")
        self.sql("select pg_reload_conf()")

    @property
    def pid(self) -> int:
        """The server's main process."""
        assert self._process is not None
        return self._process.pid

    def pids(self) -> list[int]:
        """All processes of the server (each calls setsid, so they are known by their parent)."""
        return [self.pid, *_children(self.pid)]

    def promote(self) -> None:
        """Make a standby a primary; returns when it takes writes."""
        self.sql("select pg_promote(true, 30)")

    def standby(self, home: Path, name: str = "standby", **settings: str) -> "Cluster":
        """A streaming copy of this one, not started yet.

        `name` is for synchronous_standby_names.
        """
        copy = Cluster(home, {**self.settings, **settings})
        source = f"host=127.0.0.1 port={self.port} user={OWNER} application_name={name}"
        _run(
            binaries() / "pg_basebackup",
            f"--pgdata={copy.data}",
            f"--dbname={source}",
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
        )
        return copy

    # --- what is in it ----------------------------------------------------------------------------

    def database(self, *, owner: str = BROKER) -> str:
        """The name of a new, empty database, owned by a role that may do nothing else."""
        name = f"broker_{os.getpid()}_{next(_numbers)}"
        for role in (BROKER, GUARDED):
            self.sql(
                f"do $$ begin create role {role} login password '{PASSWORD}'; exception when"
                " duplicate_object then end $$"
            )
        self.sql(f"create database {name} owner {owner}")
        return name

    def dsn(self, database: str, user: str = BROKER) -> str:
        """How libpq is told where a database is; a URL."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def sql(
        self, statement: str, database: str = OWNER, user: str = OWNER
    ) -> list[tuple[Any, ...]]:
        """Run a statement by itself; its rows."""
        with psycopg.connect(self.dsn(database, user), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            if int(entry.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.parent.name))
    return found


@contextmanager
def home_of_cluster() -> Iterator[Path]:
    """A directory for a cluster, outside of pytest's temporary directory.

    That one is closed to the user that PostgreSQL runs as.
    """
    home = Path(tempfile.mkdtemp(prefix="tb-pg-"))
    if user := _user():
        os.chown(home, user["user"], user["group"])
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def cluster(**settings: str) -> Iterator[Cluster]:
    """A running cluster of one's own, gone afterwards."""
    with home_of_cluster() as home:
        made = Cluster(home, settings)
        made.create()
        made.start()
        try:
            yield made
        finally:
            made.stop()


@contextmanager
def standby_of(primary: Cluster, name: str = "standby", **settings: str) -> Iterator[Cluster]:
    """A running streaming standby, gone afterwards."""
    with home_of_cluster() as home:
        copy = primary.standby(home, name, **settings)
        copy.start()
        try:
            yield copy
        finally:
            copy.stop()
