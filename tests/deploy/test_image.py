"""The image, built from our Containerfile and run as engines run it.

No engine is needed: buildah builds it in a chroot, on a Debian in place of the Python image; bwrap
makes the namespaces and mounts of a container with a read-only root, and setpriv its user.
"""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from broker.client.protocol import BrokerAddress
from broker.client.sync import BrokerConnection
from tests.harness.debian import debian
from tests.harness.doubles import APPID, CANARY
from tests.harness.processes import ME, PATIENCE_S, Process, _url, ask, until

pytestmark = [
    pytest.mark.soak,
    pytest.mark.needs("namespaces", "mmdebstrap", "bwrap", "setpriv", "unshare"),
]

UID: Final = 10001
BUILD: Final = """
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=overlay TMPDIR=/shared/tmp
buildah() { command buildah --root /shared/store --runroot /shared/run "$@"; }
mkdir /shared/tmp
tar --one-file-system --exclude=./shared --exclude=./var/cache --exclude=./var/lib/apt -C / \
    -cf /shared/base.tar .
base=$(buildah from scratch)
buildah add --quiet "$base" /shared/base.tar /
buildah commit --quiet --rm "$base" localhost/base > /dev/null
buildah build --quiet --pull-never --format docker --build-arg BASE=localhost/base \
    -f /shared/src/deploy/container/Containerfile -t localhost/token-broker /shared/src > /dev/null
buildah inspect --type image localhost/token-broker > /shared/image.json
container=$(buildah from --pull-never localhost/token-broker)
mkdir /shared/image
tar -C "$(buildah mount "$container")" -cf - . | tar -C /shared/image -xpf -
buildah umount "$container" > /dev/null
"""


@dataclass(frozen=True)
class Image:
    """The files of the image, and its configuration as engines see it."""

    files: Path
    config: dict[str, Any]


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    with debian() as there:
        there.bring_source()
        there.must(BUILD)
        config = json.loads((there.shared / "image.json").read_text())["Docker"]["config"]
        yield Image(there.shared / "image", config)


@dataclass
class Container:
    """What an engine sets up around the image. `run` and `state` are its volumes on the host."""

    image: Image
    home: Path
    secret_mode: int = 0o440
    sandbox: str = ""

    def __post_init__(self) -> None:
        self.state, self.run, self.secrets = (
            self.home / name for name in ("state", "run", "secrets")
        )
        for directory in (self.state, self.run):
            directory.mkdir()
            shutil.chown(directory, UID, UID)
        self.secrets.mkdir()
        secret = self.secrets / "main.secret"
        secret.write_text(CANARY)
        secret.chmod(self.secret_mode)
        shutil.chown(secret, 0, UID)

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Return the command that runs the image, with what an engine would read from it."""
        config = self.image.config
        environ = dict(entry.split("=", 1) for entry in config["Env"])
        environ |= {
            "TOKEN_BROKER_SERVER__LISTEN": "unix:/run/token-broker/broker.sock,127.0.0.1:0",
            "TOKEN_BROKER_WECHAT__API_BASE": self.sandbox or "http://127.0.0.1:9",
            "TOKEN_BROKER_APPS__MAIN__APPID": APPID,
        }
        uid, _, gid = config["User"].partition(":")
        secrets = "/run/secrets"
        (self.image.files / secrets[1:]).mkdir(exist_ok=True)  # as engines do
        return [
            *("bwrap", "--clearenv", "--die-with-parent", "--chdir", "/"),
            *("--unshare-pid", "--as-pid-1", "--unshare-ipc", "--unshare-uts"),
            *("--ro-bind", str(self.image.files), "/", "--proc", "/proc", "--dev", "/dev"),
            *("--tmpfs", "/tmp", "--ro-bind", str(self.secrets), secrets),  # noqa: S108 -- in there
            *("--bind", str(self.state), environ["STATE_DIRECTORY"]),
            *("--bind", str(self.run), environ["RUNTIME_DIRECTORY"]),
            # There might as well be no shell.
            *(
                part
                for shell in ("dash", "bash")
                for part in ("--ro-bind", "/dev/null", f"/usr/bin/{shell}")
            ),
            *(part for name, value in environ.items() for part in ("--setenv", name, value)),
            *("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs"),
            *("--bounding-set=-all", "--", *config["Entrypoint"], *arguments),
        ]

    @contextmanager
    def running(self, *arguments: str) -> Iterator[Process]:
        """The image, running; what it is asked to do by default where nothing is said."""
        log = self.home / "log"
        with (
            log.open("a") as stderr,
            subprocess.Popen(
                self.command(arguments or self.image.config["Cmd"]),
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            ) as popen,
        ):
            try:
                yield Process(popen, log)
            finally:
                popen.kill()

    def health(self) -> int:
        """What the image's own health check says."""
        kind, *command = self.image.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        here = self.command([])
        here[here.index("--") + 1 :] = command
        done = subprocess.run(here, capture_output=True, check=False, timeout=PATIENCE_S)
        return done.returncode

    def token(self) -> dict[str, Any]:
        """The token that it serves, asked by its socket in the volume."""
        connection = BrokerConnection(
            BrokerAddress.of_socket(str(self.run / "broker.sock")), PATIENCE_S
        )
        try:
            connection.request("GET", "/v1/tokens/main", headers=ME)
            found = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        assert isinstance(found, dict)
        return found


def first_process_of(process: Process) -> int:
    """The process that is number 1 in there."""
    pid = process.popen.pid
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def stopped(process: Process) -> int:
    """Stop it as an engine does, with SIGTERM to its process 1; its exit code."""
    subprocess.run(["kill", "-TERM", str(first_process_of(process))], check=True)
    return process.popen.wait(PATIENCE_S)


@pytest.fixture
def sandbox(image: Image, tmp_path: Path) -> Iterator[str]:
    """WeChat's stand-in from the same image."""
    (tmp_path / "sandbox").mkdir()
    there = Container(image, tmp_path / "sandbox")
    with there.running("sandbox", "--host", "127.0.0.1", "--port", "0") as running:
        yield _url(running.first_line())
        assert stopped(running) == 0


@pytest.mark.parametrize("secret_mode", [0o440, 0o444], ids=oct)
def test_the_image_serves_without_rights_and_after_the_volumes_modes_were_widened(
    image: Image, tmp_path: Path, sandbox: str, secret_mode: int
) -> None:
    there = Container(image, tmp_path, secret_mode, sandbox)
    with there.running() as running:
        assert "serves on" in running.first_line()
        status = Path(f"/proc/{first_process_of(running)}/status").read_text()
        until(lambda: "access_token" in there.token(), "a token")
        first = there.token()
        assert there.health() == 0
        began = time.monotonic()
        assert stopped(running) == 0
        assert time.monotonic() - began < PATIENCE_S / 2
    assert there.health() == 1
    # fsGroup of Kubernetes does so to every file of a volume, before each start.
    for file in there.state.rglob("*"):
        file.chmod(file.stat().st_mode | 0o060)
    with there.running() as running:
        assert "serves on" in running.first_line()
        assert there.token()["version"] == first["version"]
        assert stopped(running) == 0
    assert len(ask("GET", f"{sandbox}/sandbox/calls")[1]) == 1
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert lines["NSpid"].split()[-1] == "1"
    assert lines["Uid"].split() == [str(UID)] * 4
    assert int(lines["CapEff"], 16) == int(lines["CapBnd"], 16) == 0
    assert CANARY not in (tmp_path / "log").read_text()


def test_the_image_holds_what_it_needs_and_no_more(image: Image) -> None:
    config = image.config
    assert config["User"] == f"{UID}:{UID}"
    assert (config["Entrypoint"], config["Cmd"]) == (["token-broker"], ["serve"])
    venv = image.files / "opt/token-broker"
    packages = {path.name.partition("-")[0] for path in venv.glob("lib/*/site-packages/*-info")}
    assert {"uvloop", "psycopg", "cryptography", "redis", "apprise"} <= packages
    assert not packages & {"pip", "pytest", "mypy"}
    assert not (image.files / "src").exists()
    state = (image.files / "var/lib/token-broker").stat()
    assert (state.st_uid, state.st_gid, state.st_mode & 0o777) == (UID, UID, 0o700)
    assert signal.Signals[config.get("StopSignal", "SIGTERM")] is signal.SIGTERM
