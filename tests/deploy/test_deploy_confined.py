"""The installed daemon under the unit's own restrictions.

They are its namespaces, user, limits and system call filters.

PID 1 need not be systemd for this: bwrap makes the mounts, prlimit the limits, setpriv the user,
libseccomp the filters, all from what the unit says.
"""

import errno
import json
import os
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.harness.doubles import APPID, CANARY
from tests.harness.fake_systemd import HANDOVER, Ear, held
from tests.harness.places import TESTS
from tests.harness.processes import PATIENCE_S, House, until
from tests.harness.units import INSTALL, directives

pytestmark = pytest.mark.needs(
    "namespaces",
    "bwrap",
    "libseccomp",
    "setpriv",
    "prlimit",
    "systemd-analyze",
    "python3",
    "ensurepip",
)

USER, GROUP, CLIENTS = 54321, 54321, 54322  # nobody's
SERVICE = directives("token-broker.service")
SECCOMP = (TESTS / "harness" / "seccomp.py").read_text()
CREDENTIALS, STATE, RUNTIME = (
    "/run/credentials/token-broker.service",
    "/var/lib/token-broker",
    "/run/token-brokerd",
)
CONFIGURATION = (  # not in /etc: there is nothing to mount it on, and the system is read-only
    "/run/configuration"
)
BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
HIDDEN = {
    "/home",
    "/root",
    "/run/user",
    "/tmp",  # noqa: S108
    "/var/tmp",  # noqa: S108
}


def system_calls() -> list[str]:
    """What SystemCallFilter= allows; systemd always adds @default."""
    allowed = _expand("@default")
    for line in SERVICE["SystemCallFilter"]:
        calls = set[str]().union(*(_expand(word) for word in line.removeprefix("~").split()))
        allowed = allowed - calls if line.startswith("~") else allowed | calls
    return sorted(allowed | _expand("@default"))


def _expand(word: str) -> set[str]:
    if not word.startswith("@"):
        return {word}
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True
    ).stdout
    words = [
        line.strip()
        for line in listed.splitlines()[1:]
        if line.strip() and not line.strip().startswith("#")
    ]
    return set[str]().union(*map(_expand, words))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """/opt/token-broker as install.sh makes it, from this checkout."""
    root = tmp_path_factory.mktemp("installed")
    pythons = (os.path.realpath(sys.executable), "/usr/bin/python3")
    python = next(path for path in pythons if _visible(path))
    done = subprocess.run(
        ["sh", INSTALL, "--root", root, "--python", python],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1000:]
    return root / "opt/token-broker"


def _visible(path: str) -> bool:
    hidden = any(Path(path).is_relative_to(place) for place in HIDDEN)
    return (
        not hidden
        and subprocess.run(
            [path, "-c", "import venv, ensurepip"], capture_output=True, check=False
        ).returncode
        == 0
    )


@dataclass
class Confined:
    """A place like the unit's, and what runs in it."""

    house: House
    program: Path
    places: dict[str, Path]
    sockets: Sequence[socket.socket]
    ear: Ear

    def command(self, *command: str, sockets: bool = True) -> list[str]:
        options = {
            "allow": system_calls(),
            "errno": getattr(errno, SERVICE["SystemCallErrorNumber"][0]),
            "families": [
                getattr(socket, name) for name in SERVICE["RestrictAddressFamilies"][0].split()
            ],
        }
        python = "/opt/token-broker/current/bin/python"
        mounts = [
            "--ro-bind",
            "/",
            "/",
            "--dev",
            "/dev",
            "--unshare-ipc",
            "--unshare-uts",
            "--cap-add",
            "ALL",
        ]
        for hidden in sorted({*HIDDEN, "/run", "/opt", "/var/lib"} - {"/run/user"}):
            mounts += ["--tmpfs", hidden] if Path(hidden).is_dir() else []
        for inside, outside in self.places.items():
            mounts += ["--dir", str(Path(inside).parent)]  # else it is made for root alone
            mounts += [
                "--bind" if inside in {STATE, RUNTIME} else "--ro-bind",
                str(outside),
                inside,
            ]
        proc = 'mount -t proc -o subset=pid,hidepid=invisible proc /proc && exec "$@"'
        limits = [f"--nofile={SERVICE['LimitNOFILE'][0]}", f"--core={SERVICE['LimitCORE'][0]}"]
        user = [
            "--reuid",
            str(USER),
            "--regid",
            str(GROUP),
            "--groups",
            f"{GROUP},{CLIENTS}",
            "--no-new-privs",
        ]
        nothing = ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
        inner = [python, "-c", SECCOMP, json.dumps(options), *command]
        fds = [str(sock.fileno()) for sock in self.sockets] if sockets else []
        handed = [sys.executable, "-c", HANDOVER, str(len(fds)), *fds] if sockets else []
        shell = ["sh", "-c", f"umask {SERVICE['UMask'][0]}; {proc}", "sh"]
        return [
            *handed,
            "bwrap",
            *mounts,
            "--",
            *shell,
            "prlimit",
            *limits,
            "setpriv",
            *user,
            *nothing,
            "--",
            *inner,
        ]

    @property
    def environ(self) -> dict[str, str]:
        own = dict(
            assignment.replace("%b", BOOT_ID).split("=", 1) for assignment in SERVICE["Environment"]
        )
        places = {
            "STATE_DIRECTORY": STATE,
            "RUNTIME_DIRECTORY": RUNTIME,
            "CREDENTIALS_DIRECTORY": CREDENTIALS,
        }
        told = {"NOTIFY_SOCKET": self.ear.address, "WATCHDOG_USEC": "600000"}
        told["TOKEN_BROKER_CONFIG"] = f"{CONFIGURATION}/config.toml"
        return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **own, **places, **told}

    @contextmanager
    def serving(self) -> Iterator[tuple["subprocess.Popen[str]", int]]:
        """What runs there, and the daemon's own process, which bwrap waits for."""
        (start,) = SERVICE["ExecStart"]
        log = (self.house.home / "daemon.log").open("a")
        fds = [sock.fileno() for sock in self.sockets]
        command = self.command(*start.split())
        with (
            log,
            subprocess.Popen(
                command, pass_fds=fds, env=self.environ, stdout=log, stderr=log, text=True
            ) as popen,
        ):
            try:
                self.ear.until("READY")
                (pid,) = _children(popen.pid)
                yield popen, pid
            except TimeoutError:
                pytest.fail((self.house.home / "daemon.log").read_text())
            finally:
                for child in _children(popen.pid):  # which do not die with bwrap
                    os.kill(child, signal.SIGKILL)
                popen.kill()

    def probe(self, code: str) -> str:
        """What a Python program says there."""
        command = self.command(
            "/opt/token-broker/current/bin/python",
            "-c",
            f"print('there', flush=True)\n{code}",
            sockets=False,
        )
        done = subprocess.run(
            command,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        where, _, answer = done.stdout.partition("\n")
        assert where == "there", done.stderr
        return (answer + done.stderr).strip()


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


@pytest.fixture
def confined(program: Path) -> Iterator[Confined]:
    with tempfile.TemporaryDirectory(prefix="tb-") as home:
        house = House(Path(home))
        with house.sandboxed():
            yield from _confined(house, program)


def _confined(house: House, program: Path) -> Iterator[Confined]:
    names = {
        CREDENTIALS: 0o500,
        STATE: 0o700,
        RUNTIME: 0o700,
        CONFIGURATION: 0o755,
        "/run/token-broker": 0o755,
    }
    places = {inside: house.home / inside.strip("/").replace("/", "-") for inside in names}
    for outside in places.values():
        outside.mkdir()
    config = places[CONFIGURATION] / "config.toml"
    by_name = house.sandbox.replace(
        "127.0.0.1", "localhost"
    )  # so that looking names up is tried too
    config.write_text(
        f'[store]\nencryption_key_file = "{CREDENTIALS}/store.key"\n[wechat]\napi_base ='
        f' "{by_name}"\n[policy]\ntick = 0.2\n[apps.main]\nappid = "{APPID}"\n'
    )
    config.chmod(0o640)
    os.chown(config, 0, CLIENTS)
    for name in ("main.secret", "store.key"):
        secret = places[CREDENTIALS] / name
        secret.write_text(
            f"{CANARY}-{secrets.token_hex(16)}" if name == "store.key" else f"{CANARY}-secret"
        )
        secret.chmod(0o400)
        os.chown(secret, USER, GROUP)
    for inside in (CREDENTIALS, STATE, RUNTIME):
        places[inside].chmod(names[inside])
        os.chown(places[inside], USER, GROUP)
    path = places["/run/token-broker"] / "broker.sock"
    unix, tcp = held(path)
    path.chmod(int(directives("token-broker.socket")["SocketMode"][0], 8))
    os.chown(path, 0, CLIENTS)
    house.home.chmod(0o755)
    # The socket has the name it was bound to: the daemon asks itself by that.
    places[str(path.parent)] = path.parent
    ear = Ear(f"@token-broker-{secrets.token_hex(8)}")
    with unix, tcp:
        house.daemon = f"http://127.0.0.1:{tcp.getsockname()[1]}"
        yield Confined(house, program, {**places, "/opt/token-broker": program}, (unix, tcp), ear)
    ear.close()


def test_the_daemon_lives_with_all_that_the_unit_forbids(confined: Confined) -> None:
    house = confined.house
    with confined.serving() as (first, pid):
        token = until(
            lambda: (answer := house.get("/v1/tokens/main"))[0] == 200 and answer[1], "a token"
        )
        confined.ear.until("WATCHDOG")  # it hears itself on its Unix socket, as one of the group
        assert (
            house.post("/v1/tokens/main/report", {"version": token["version"]})[1]["outcome"]
            == "verified"
        )
        assert_confined(pid)
        os.kill(pid, signal.SIGHUP)
        assert confined.ear.until("STATUS")["STATUS"] == "configuration read"
        os.kill(pid, signal.SIGTERM)
        assert first.wait(PATIENCE_S) == 0, (house.home / "daemon.log").read_text()
    with confined.serving():
        again = house.get("/v1/tokens/main")[1]
    assert again["version"] == token["version"]
    assert again["state"] == "fresh"
    assert len(house.calls()) == 1
    log = (house.home / "daemon.log").read_text()
    assert "Error" not in log
    assert CANARY not in log
    house_store = confined.places[STATE] / "broker.db"
    assert house_store.stat().st_mode & 0o777 == 0o600
    assert (house_store.stat().st_uid, house_store.stat().st_gid) == (USER, GROUP)
    with closing(sqlite3.connect(house_store)) as db:  # what %b handed in, since /proc did not say
        assert db.execute("select boot_id from accounts").fetchall() == [(BOOT_ID,)]


def test_a_shared_database_is_reached_from_there_too(confined: Confined, database: str) -> None:
    house, config = confined.house, confined.places[CONFIGURATION] / "config.toml"
    config.write_text(
        config.read_text().replace("[store]\n", f'[store]\nurl = "{database}"\nnode = "confined"\n')
    )
    with confined.serving() as (first, pid):
        until(lambda: house.get("/v1/tokens/main")[0] == 200, "a token")
        until(lambda: house.get("/v1/status")[1]["nodes"], "it is among the nodes")
        os.kill(pid, signal.SIGTERM)
        assert first.wait(PATIENCE_S) == 0, (house.home / "daemon.log").read_text()
    assert not (confined.places[STATE] / "broker.db").exists()
    assert "Error" not in (house.home / "daemon.log").read_text()
    with psycopg.connect(database) as db:
        assert db.execute("select node, outcome from token_broker.calls").fetchall() == [
            ("confined", "minted")
        ]


def assert_confined(pid: int) -> None:
    """The kernel's own word on the process."""
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert status["Uid"].split() == [str(USER)] * 4
    assert set(status["Groups"].split()) == {str(GROUP), str(CLIENTS)}
    assert {
        int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    } == {0}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert int(status["Seccomp_filters"]) >= 5


FORBIDDEN = {
    "write the system": ("open('/etc/x', 'a')", "Read-only file system"),
    "write the program": ("open('/opt/token-broker/x', 'a')", "Read-only file system"),
    "see homes": ("__import__('os').stat('/root/.profile')", "No such file"),
    "read the boot id": ("open('/proc/sys/kernel/random/boot_id')", "No such file"),
    "see other processes": ("open('/proc/1/status')", "No such file"),
    "open a netlink socket": ("__import__('socket').socket(16, 3)", "Address family not supported"),
    "map memory to write and execute": (
        "__import__('mmap').mmap(-1, 4096, prot=7)",
        "Operation not permitted",
    ),
    "make a namespace": ("__import__('ctypes').CDLL(None).unshare(0x10000000) or 1/0", "-1"),
    "give a file the setuid bit": (
        "__import__('os').chmod('/var/lib/token-broker', 0o4700)",
        "Operation not permitted",
    ),
    "change its priority": ("__import__('os').setpriority(0, 0, 1)", "Operation not permitted"),
    "change owners": (
        "__import__('os').chown('/var/lib/token-broker', 0, 0)",
        "Operation not permitted",
    ),
    "read the secret's source": ("open('/etc/token-broker/main.secret')", "No such file"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_place_is_as_narrow_as_the_unit_says(confined: Confined, what: str) -> None:
    code, answer = FORBIDDEN[what]
    assert answer in confined.probe(f"print({code})")


def test_what_it_needs_it_may(confined: Confined) -> None:
    assert confined.probe("print(open('/var/lib/token-broker/x', 'w').write('1'))") == "1"
    assert (
        confined.probe("import socket; print(socket.getaddrinfo('localhost', 80)[0][4][1])") == "80"
    )
