"""Windows and macOS, simulated: what those systems lack is taken away, and the commands are run."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.places import ROOT
from tests.harness.processes import House, _url, ask, until

TAKE_AWAY = """
import asyncio, os, signal, socket, sys, time
# The standard library goes by the system it was installed on: it is whole before this begins.
import concurrent.futures.thread, email.message, http.client, logging, pathlib, random, ssl
import subprocess, tempfile, threading, unittest.mock, uuid
def without(module, *names):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
def no_proc(event, args):
    if event == "open" and str(args[0]).startswith("/proc"):
        raise FileNotFoundError(2, "no /proc here", str(args[0]))
"""
MACOS = f"""{TAKE_AWAY}
without(time, "CLOCK_BOOTTIME", "CLOCK_MONOTONIC_COARSE")
without(socket, "SOCK_NONBLOCK", "SOCK_CLOEXEC")
without(os, "sched_yield", "sched_getaffinity")
sys.addaudithook(no_proc)
"""
WINDOWS = f"""{TAKE_AWAY}
pair, unix = socket.socketpair, socket.AF_UNIX
socket.socketpair = lambda *_: pair(unix)  # what asyncio wakes itself up by
for module in ("fcntl", "resource", "pwd", "grp", "termios", "uvloop"):
    sys.modules[module] = None
without(time, "clock_gettime", *[name for name in dir(time) if name.startswith("CLOCK_")])
without(socket, "AF_UNIX", "SOCK_NONBLOCK", "SOCK_CLOEXEC")
without(os, "geteuid", "getegid", "getgroups", "getuid", "register_at_fork", "sched_yield",
        "statvfs", "ST_RDONLY", "O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY", "sched_getaffinity")
without(signal, "SIGHUP")
def no_handler(*_):
    raise NotImplementedError
asyncio.SelectorEventLoop.add_signal_handler = no_handler
sys.addaudithook(no_proc)
"""
RUN = "from broker.__main__ import main; main()"


def command(system: str, *arguments: str) -> list[str]:
    """A command of ours as it runs on that system."""
    program = f"{system}\nsys.argv = ['token-broker', *sys.argv[1:]]\n{RUN}"
    return [sys.executable, "-c", program, *arguments]


def run_on(system: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(system, *arguments), capture_output=True, text=True, check=False, cwd=ROOT
    )


@contextmanager
def running(system: str, home: Path, *arguments: str) -> Iterator[str]:
    """A server of ours on that system, as the line it prints."""
    with (
        (home / f"{arguments[0]}.log").open("w") as log,
        subprocess.Popen(
            command(system, *arguments), stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
        ) as popen,
    ):
        assert popen.stdout is not None
        try:
            line = popen.stdout.readline()
            assert line, (home / f"{arguments[0]}.log").read_text()
            yield line
        finally:
            popen.terminate()
            assert popen.wait(20) == 0


@pytest.mark.parametrize("system", [WINDOWS, MACOS], ids=["windows", "macos"])
def test_sandbox_get_status_and_the_client_work(system: str, tmp_path: Path) -> None:
    house = House(tmp_path)
    with running(system, tmp_path, "sandbox", "--port", "0", "--host", "127.0.0.1") as line:
        house.sandbox = _url(line)
        house.configure()
        with house.serving():
            until(lambda: house.get("/readyz")[0] == 200, "ready")
            listen = house.daemon.removeprefix("http://")
            asking = tmp_path / "asking.toml"
            asking.write_text(f'[server]\nlisten = ["unix:{tmp_path}/broker.sock", "{listen}"]\n')
            got = run_on(system, "get", "main", "--config", str(asking))
            assert got.returncode == 0, got.stderr
            token = house.get("/v1/tokens/main")[1]["access_token"]
            assert got.stdout == f"{token}\n"
            shown = run_on(system, "status", "--config", str(asking))
            assert shown.stdout.splitlines()[1].split()[:2] == ["main", "fresh"]
            client = "from broker.client import TokenClient\n"
            client += f"with TokenClient('{house.daemon}', 'main') as client: print(client.get())"
            done = subprocess.run(
                [sys.executable, "-c", f"{system}\n{client}"],
                capture_output=True,
                text=True,
                check=False,
                cwd=ROOT,
            )
            assert done.stdout == f"{token}\n", done.stderr


def test_on_windows_the_daemon_says_where_it_runs(tmp_path: Path) -> None:
    done = run_on(WINDOWS, "serve", "--config", str(House(tmp_path).configure()))
    assert done.returncode == 1
    assert "the daemon runs on Linux and macOS" in done.stderr
    assert "Traceback" not in done.stderr


def test_on_macos_the_daemon_and_the_companion_serve(tmp_path: Path) -> None:
    house = House(tmp_path)
    with house.sandboxed():
        companion = '[avatars]\nlisten = "127.0.0.1:0"\nbroker = "unix:{}/broker.sock"\n'
        # No boot has a name there: the next start knows the token's age only by the wall.
        house.configure(policy="min_gap = 1\n", more=companion.format(tmp_path))
        config = ("--config", str(house.config))
        with running(MACOS, tmp_path, "serve", *config) as line:
            house.daemon = _url(line)
            until(lambda: house.get("/readyz")[0] == 200, "ready")
            with running(MACOS, tmp_path, "avatars", *config) as its_line:
                assert len(ask("GET", f"{_url(its_line)}/avatars?limit=3")[1]) == 3
        with running(MACOS, tmp_path, "serve", *config) as line:
            house.daemon = _url(line)
            until(lambda: house.get("/readyz")[0] == 200, "ready again")
