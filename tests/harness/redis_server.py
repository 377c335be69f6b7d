"""Debian's redis-server on a port of loopback, in a directory of its own, and stopped again."""

import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness.cluster import free_port

PATIENCE_S = 20.0


@dataclass
class RedisServer:
    """A server that can be stopped and started, and then has nothing of before."""

    home: Path
    password: str = ""
    port: int = field(default_factory=free_port)
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        """Where it is, with its password."""
        secret = f":{self.password}@" if self.password else ""
        return f"redis://{secret}127.0.0.1:{self.port}/0"

    def start(self, *more: str) -> None:
        """Run it, and wait until it listens."""
        secret = ["--requirepass", self.password] if self.password else []
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        with (self.home / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--dir", str(self.home), *secret, *more], stdout=log, stderr=log
            )
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise AssertionError((self.home / "redis.log").read_text())

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE_S)
            self._process = None
