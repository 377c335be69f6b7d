"""Real processes for tests: a sandbox and daemons.

Their output is kept. Every wait is bounded, and is for a real event.
"""

import json
import os
import re
import select
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.harness.doubles import APPID, CANARY

PATIENCE_S = 20.0
ME = {"X-Token-Broker": "1"}


@dataclass
class Process:
    """A command of ours, running. `lines` is what it has said on stdout."""

    popen: "subprocess.Popen[str]"
    log: Path
    lines: list[str] = field(default_factory=list)

    def first_line(self) -> str:
        """The line it prints once it serves."""
        stdout = self.popen.stdout
        assert stdout is not None
        if not self.lines:
            ready, _, _ = select.select([stdout], [], [], PATIENCE_S)
            assert ready, f"nothing said within {PATIENCE_S} s; {self.log.read_text()}"
            self.lines.append(stdout.readline())
        assert self.lines[0], f"ended with {self.popen.wait(PATIENCE_S)}: {self.log.read_text()}"
        return self.lines[0]

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.popen.send_signal(number)

    def kill(self) -> None:
        """Kill it as `kill -9` does."""
        self.popen.kill()
        self.popen.wait(PATIENCE_S)

    def end(self) -> int:
        """Ask it to stop; its exit code."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(PATIENCE_S)


@contextmanager
def process(log: Path, *command: str, **environ: str) -> Iterator[Process]:
    """A `token-broker` command, killed at the end if it still runs."""
    with log.open("a") as stderr, _popen(command, stderr, environ) as popen:
        try:
            yield Process(popen, log)
        finally:
            popen.kill()


def _popen(
    command: tuple[str, ...], stderr: IO[str], environ: dict[str, str]
) -> "subprocess.Popen[str]":
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith("TOKEN_BROKER_")
    }
    return subprocess.Popen(
        [sys.executable, "-m", "broker", *command],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**clean, **environ},
    )


def run(*command: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """A `token-broker` command, to its end."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith("TOKEN_BROKER_")
    }
    return subprocess.run(
        [sys.executable, "-m", "broker", *command],
        capture_output=True,
        text=True,
        env={**clean, **environ},
        check=False,
        timeout=PATIENCE_S * 2,
    )


@dataclass
class House:
    """A directory with a configuration, and what runs on it."""

    home: Path
    sandbox: str = ""
    daemon: str = ""
    log_level: str = "debug"

    @property
    def config(self) -> Path:
        return self.home / "config.toml"

    @property
    def store(self) -> Path:
        return self.home / "broker.db"

    def configure(self, *, policy: str = "", app: str = "", more: str = "") -> Path:
        secret = self.home / "main.secret"
        secret.write_text(f"{CANARY}-secret\n")
        secret.chmod(0o600)
        self.config.write_text(
            f'[server]\nlisten = ["127.0.0.1:0", "unix:{self.home}/broker.sock"]\n'
            f'[store]\nurl = "sqlite://{self.store}"\n'
            f'[wechat]\napi_base = "{self.sandbox or "http://127.0.0.1:9"}"\ntimeout = 5\n'
            f"[policy]\ntick = 0.2\n{policy}\n"
            f'[apps.main]\nappid = "{APPID}"\nsecret_file = "{secret}"\n{app}\n{more}\n'
        )
        return self.config

    @contextmanager
    def sandboxed(self, *options: str) -> Iterator[Process]:
        """A sandbox of its own."""
        with process(self.home / "sandbox.log", "sandbox", "--port", "0", *options) as sandbox:
            self.sandbox = _url(sandbox.first_line())
            yield sandbox

    @contextmanager
    def serving(self, **environ: str) -> Iterator[Process]:
        """A daemon that serves."""
        loud = {
            "TOKEN_BROKER_LOG_LEVEL": self.log_level,
            **environ,
        }  # at DEBUG, so that I6 is checked where most is said
        with process(
            self.home / "daemon.log", "serve", "--config", str(self.config), **loud
        ) as daemon:
            self.daemon = _url(daemon.first_line())
            yield daemon

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        """Ask the daemon; status and JSON."""
        return ask("GET", self.daemon + path, headers={**ME, **headers})

    def served(self) -> dict[str, Any]:
        """The token that the daemon serves, with the times just before and after (unix seconds)."""
        asked_at = time.time()
        status, token = self.get("/v1/tokens/main")
        assert status == 200, token
        return {**token, "asked_at": asked_at, "received_at": time.time()}

    def post(self, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """Tell the daemon; status and JSON."""
        return ask("POST", self.daemon + path, body, {**ME, **headers})

    def control(self, path: str, body: object = None) -> Any:
        """Tell the sandbox (or ask it, without a body)."""
        status, answer = ask(
            "GET" if body is None else "POST", f"{self.sandbox}/sandbox{path}", body
        )
        assert status in {200, 201, 204}, answer
        return answer

    def calls(self) -> list[dict[str, Any]]:
        """The token calls that the sandbox has seen of us."""
        return [call for call in self.control("/calls") if call["by"] == "client"]

    def in_flight(self) -> bool:
        """Return True if the sandbox holds a token call of ours."""
        return bool(self.control("")["accounts"][APPID]["in_flight"])

    def outcomes(self) -> list[str | None]:
        """The outcome of each call in the ledger, oldest first; None while it is not known."""
        return [row["outcome"] for row in self.ledger()]

    def ledger(self) -> list[dict[str, Any]]:
        """The ledger's rows."""
        with closing(sqlite3.connect(f"{self.store.as_uri()}?mode=ro", uri=True)) as db:
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute("select * from calls order by id")]


def ask(
    method: str, url: str, body: object = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    kinds = {"Content-Type": "application/json"} if data is not None else {}
    request = urllib.request.Request(url, data, {**kinds, **(headers or {})}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.status, _read(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _read(error.read())


def _read(body: bytes) -> Any:
    try:
        return json.loads(body or b"null")
    except ValueError:
        return body.decode()


def _url(line: str) -> str:
    found = re.search(r"http://[^\s,]+", line)
    assert found, line
    return found[0]


def until(true: Callable[[], Any], what: str) -> Any:
    """Poll a condition, bounded; its value."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if value := true():
            return value
        select.select([], [], [], 0.02)
    raise AssertionError(f"not within {PATIENCE_S} s: {what}")
