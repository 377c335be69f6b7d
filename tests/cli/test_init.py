"""`token-broker init`: from nothing to a configuration that `check` accepts."""

import os
import pty
import re
import select
import stat
import subprocess
import sys
import tomllib
from contextlib import closing
from pathlib import Path

import pytest

from tests.harness.doubles import APPID, CANARY
from tests.harness.places import ROOT
from tests.harness.processes import PATIENCE_S, House, process, run, until

SECRET = f"{CANARY}-appsecret"


def said_to(tmp_path: Path, answers: list[str], *options: str) -> tuple[int, str]:
    """Run init on a terminal, answering its questions; the exit code and all that was shown."""
    command = [sys.executable, "-m", "broker", "init", "--config", str(tmp_path / "config.toml")]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(command[0], [*command, *options], environ)  # noqa: S606 -- our own
    shown, waiting = b"", list(answers)
    with closing(os.fdopen(terminal, "r+b", buffering=0)) as screen:
        while select.select([screen], [], [], PATIENCE_S)[0]:
            try:
                part = screen.read(4096)
            except OSError:
                break
            if not part:
                break
            shown += part
            if shown.rstrip(b" ").endswith(b":") and waiting:
                screen.write(f"{waiting.pop(0)}\n".encode())
                shown += b"|"
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


def modes(home: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()}


def test_it_asks_at_a_terminal_and_does_not_show_the_secret(tmp_path: Path) -> None:
    code, shown = said_to(tmp_path, ["shop", "nonsense", APPID, SECRET, "stable_token", "here"])
    assert code == 0, shown
    assert "an AppID looks like" in shown  # and it asks again
    assert SECRET not in shown
    for advice in ("each call makes a new token", "no key is needed", ": good. Apps: shop."):
        assert advice in shown
    assert re.findall(r"token-broker (\w+)", shown.partition("Go on with:")[2]) == [
        "serve",
        "status",
        "get",
    ]
    written = tomllib.loads((tmp_path / "config.toml").read_text())
    assert written["apps"]["shop"] == {
        "appid": APPID,
        "endpoint": "stable_token",
        "secret_file": "./shop.secret",
    }
    assert (tmp_path / "shop.secret").read_text() == f"{SECRET}\n"
    assert modes(tmp_path) == {"config.toml": 0o600, "shop.secret": 0o600}


def without_terminal(
    home: Path, *options: str, secret: str = SECRET
) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "broker", "init", "--config", str(home / "config.toml")]
    return subprocess.run(
        [*command, *options],
        input=secret,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_without_a_terminal_it_takes_options_and_what_it_wrote_serves(tmp_path: Path) -> None:
    options = ("--appid", APPID, "--secret-from", "-", "--services", "elsewhere")
    done = without_terminal(tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr
    key = (tmp_path / "services.key").read_text().strip()
    assert len(key) >= 32
    assert key not in done.stdout + done.stderr + (tmp_path / "config.toml").read_text()
    assert set(modes(tmp_path).values()) == {0o600}
    house = House(tmp_path)
    with house.sandboxed():
        environ = {
            "TOKEN_BROKER_WECHAT__API_BASE": house.sandbox,
            "TOKEN_BROKER_SERVER__LISTEN": f"unix:{tmp_path}/b.sock,127.0.0.1:0",
        }
        with process(tmp_path / "log", "serve", "--config", str(house.config), **environ) as daemon:
            daemon.first_line()
            key_file = str(tmp_path / "services.key")
            get = ("get", "main", "--config", str(house.config), "--key-file", key_file)
            until(lambda: run(*get, **environ).returncode == 0, "a token")
    assert house.store.exists()  # beside the configuration, wherever the daemon was started


def test_it_never_overwrites(tmp_path: Path) -> None:
    options = ("--appid", APPID, "--secret-from", "-")
    for name in ("config.toml", "main.secret"):
        (tmp_path / name).write_text("mine")
        done = without_terminal(tmp_path, *options)
        assert done.returncode == 1
        assert f"{tmp_path / name}: there already" in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    (tmp_path / "config.toml").symlink_to("/etc/passwd")
    assert without_terminal(tmp_path, *options).returncode == 1


@pytest.mark.parametrize(
    ("options", "secret", "why"),
    [
        ((), "", "give --appid and --secret-from"),
        (("--appid", APPID), "", "give --secret-from"),
        (("--appid", "x", "--secret-from", "-"), SECRET, "an AppID looks like"),
        (("--appid", APPID, "--secret-from", "-"), "two words", "one word of visible ASCII"),
        (("--appid", APPID, "--secret-from", "-"), f'"{SECRET}"', "is in quotes"),
        (("--appid", APPID, "--secret-from", "/none"), "", "--secret-from: cannot read it"),
        (("--appid", APPID, "--secret-from", "-", "--name", "a b"), SECRET, "a name is 1 to 64"),
    ],
)
def test_what_will_not_do_is_refused_and_nothing_is_left_behind(
    tmp_path: Path, options: tuple[str, ...], secret: str, why: str
) -> None:
    done = without_terminal(tmp_path, *options, secret=secret)
    assert done.returncode == 1
    assert why in done.stderr
    assert SECRET not in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = without_terminal(tmp_path / "file", "--appid", APPID, "--secret-from", "-")
    assert done.returncode == 1
    assert "choose a place with --config" in done.stderr
    assert "Traceback" not in done.stderr
