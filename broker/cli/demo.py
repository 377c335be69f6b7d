"""`token-broker demo`: sandbox, daemon and companion on loopback, in a temporary directory."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

PORTS: Final = {"sandbox": 8780, "daemon": 8765, "companion": 8766, "consent": 8767}
START_TIMEOUT_S: Final = 30.0

CONFIG: Final = """\
[server]
listen = ["127.0.0.1:{daemon}"]
[store]
url = "sqlite://{home}/broker.db"
[wechat]
api_base = "http://127.0.0.1:{sandbox}"
[apps.main]
appid = "wx0000000000000000"
secret_file = "{home}/main.secret"
[avatars]
listen = "127.0.0.1:{companion}"
broker = "http://127.0.0.1:{daemon}"
app = "main"
[avatars.consent]
operator = "示例公司"
operator_en = "Example Ltd"
purpose = "在关注者墙上显示您的头像"
purpose_en = "to show it on the wall of followers"
keep_days = 30
contact = "privacy@example.com"
public_url = "http://127.0.0.1:{consent}"
listen = "127.0.0.1:{consent}"
authorize_url = "http://127.0.0.1:{sandbox}/connect/oauth2/authorize"
store = "{home}/consent.db"
"""
WELCOME: Final = """\
token-broker demo: a stand-in for WeChat, the daemon and the avatar companion are running.

  status page   http://127.0.0.1:{daemon}/
  gallery       http://127.0.0.1:{companion}/
  consent page  http://127.0.0.1:{consent}/consent
  sandbox       http://127.0.0.1:{sandbox}/sandbox

Paste these:

  curl -sw '\\n' -H 'X-Token-Broker: 1' http://127.0.0.1:{daemon}/v1/tokens/main
  curl -sw '\\n' http://127.0.0.1:{daemon}/v1/status
  curl -sw '\\n' 'http://127.0.0.1:{companion}/avatars?limit=3&size=132'

Ctrl-C ends it and removes {home}.
"""


def run(say: Callable[[str], None]) -> None:
    """Start everything, say what to open, and wait.

    Raises KeyboardInterrupt when the user has seen enough.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the others would outlive us
    ports = {name: _free(port) for name, port in PORTS.items()}
    with (
        tempfile.TemporaryDirectory(prefix="token-broker-demo-") as home,
        contextlib.ExitStack() as stack,
    ):
        config = _configure(Path(home), ports)
        sandbox = stack.enter_context(_process("sandbox", "--port", str(ports["sandbox"])))
        _wait(f"http://127.0.0.1:{ports['sandbox']}/sandbox", sandbox)
        daemon = stack.enter_context(_process("serve", "--config", str(config)))
        _wait(f"http://127.0.0.1:{ports['daemon']}/readyz", daemon)
        companion = stack.enter_context(_process("avatars", "--config", str(config)))
        _wait(f"http://127.0.0.1:{ports['companion']}/readyz", companion)
        say(WELCOME.format(home=home, **ports))
        daemon.wait()


def _configure(home: Path, ports: dict[str, int]) -> Path:
    secret = home / "main.secret"
    secret.touch(mode=0o600)
    secret.write_text(secrets.token_hex(16))
    config = home / "config.toml"
    config.write_text(CONFIG.format(home=home, **ports))
    return config


@contextlib.contextmanager
def _process(*command: str) -> Iterator[subprocess.Popen[str]]:
    # A session of its own: Ctrl-C is for this process, which then ends the others in order.
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith("TOKEN_BROKER_")
    }
    process = subprocess.Popen(  # noqa: S603 -- our own command
        [sys.executable, "-m", "broker", *command],
        env=environ,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _wait(url: str, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(url, timeout=1) as answer,  # noqa: S310
        ):
            answer.read()
            return
        time.sleep(0.05)
    raise SystemExit(f"token-broker: the demo's {process.args!r} did not come up")


def _free(port: int) -> int:
    """The port, or any other where it is taken."""
    for candidate in (port, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", candidate))
                return int(probe.getsockname()[1])
    raise SystemExit("token-broker: no free port on 127.0.0.1")
