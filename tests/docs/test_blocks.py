"""Code on the pages runs as it stands there: requests, Python, configurations."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.cli.commands import main
from broker.config.load import load
from broker.config.sources import DEFAULT_PATH
from tests.harness.doubles import APPID
from tests.harness.guides import Block, Page, pages
from tests.harness.pictures import LANGUAGES, PICTURES, drawing
from tests.harness.places import ROOT
from tests.harness.processes import House, process

PAGES = [page for page in pages() if page.path.name != "sdks.md" and "sdk" not in str(page)]
KEY = "a" * 64
MORE = """
[proxy]
enabled = true
[compat]
enabled = true
[avatars]
listen = "127.0.0.1:0"
broker = "http://127.0.0.1:8765"
"""
WHO_ASKS = """
operator = "Example Ltd"
purpose = "to show it"
keep_days = 180
contact = "privacy@example.com"
public_url = "https://consent.example.com"
listen = "127.0.0.1:8767"
"""
CLIENT = """
[clients.services]
key_file = "./services.key"
scopes = ["read", "report", "login", "proxy", "admin"]
"""


@dataclass
class Running:
    """Everything the pages speak of, running: addresses on the pages, and what they are here."""

    home: Path
    places: dict[str, str]
    config: Path
    sandbox: House

    def here(self, text: str) -> str:
        """Return code with the addresses of what runs here."""
        for page, here in self.places.items():
            text = text.replace(page, here)
        if "init" not in text:
            text = text.replace("$PWD/broker.toml", str(self.config))
        if "0a1b2c" in text:
            order = {"appid": APPID, "kind": "miniprogram"}
            text = text.replace("0a1b2c", self.sandbox.control("/code", order)["code"])
        return text

    def run(self, text: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
        """Run lines of a shell; the first that fails ends it."""
        tools = self.home / "tools"
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.here(text)],
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd,
            timeout=60,
            env={
                **os.environ,
                "PATH": f"{tools}:{os.environ['PATH']}",
                "KEY": KEY,
                "PYTHONPATH": str(ROOT),
            },
        )


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("pages")
    tools = home / "tools"
    tools.mkdir()
    wrap(tools / "curl", f"{shutil.which('curl')} --fail-with-body -sS --max-time 30")
    wrap(tools / "token-broker", f"{sys.executable} -m broker")
    with ExitStack() as stack:
        houses = []
        for name in ("plain", "keyed"):
            (home / name).mkdir()
            house = House(home / name)
            houses.append(house)
            if name == "plain":
                stack.enter_context(house.sandboxed())
            house.sandbox = houses[0].sandbox
            key = house.home / "services.key"
            key.write_text(KEY)
            key.chmod(0o600)
            # Neither ends the other's token, nor does the second issuer that a page lets loose.
            kind = 'endpoint = "stable_token"'
            house.configure(app=kind, more=MORE + (CLIENT if name == "keyed" else ""))
            stack.enter_context(house.serving())
        plain, keyed = houses
        text = plain.config.read_text().replace("http://127.0.0.1:8765", plain.daemon)
        plain.config.write_text(text)
        # What `status` and `get` ask, as the port is known only now.
        asking = plain.home / "asking.toml"
        asking.write_text(text.replace("127.0.0.1:0", plain.daemon.removeprefix("http://"), 1))
        companion = stack.enter_context(
            process(home / "companion.log", "avatars", "--config", str(plain.config))
        )
        said = re.search(r"127\.0\.0\.1:\d+", companion.first_line())
        assert said
        places = {
            "http://127.0.0.1:8765": plain.daemon,
            "http://10.0.0.5:8765": keyed.daemon,
            "http://127.0.0.1:8766": f"http://{said[0]}",
            "http://127.0.0.1:8780": plain.sandbox,
            "/run/token-broker/broker.sock": str(plain.home / "broker.sock"),
        }
        yield Running(home, places, asking, plain)


def wrap(path: Path, command: str) -> None:
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    path.chmod(0o755)


def test_what_only_asks_is_marked_to_be_run() -> None:
    for page in PAGES:
        for block in page.of("sh"):
            lines = [line for line in block.without_comments().splitlines() if line]
            only_asks = all(line.startswith("curl ") for line in lines)
            assert not only_asks or block.mark == "run", f"{page}: {lines[0]}"


@pytest.mark.needs("curl")
@pytest.mark.parametrize("page", [page for page in PAGES if page.of("sh")], ids=str)
def test_requests_are_answered(page: Page, running: Running, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    for block in page.of("sh"):
        if block.mark == "run":
            done = running.run(block.text, tmp_path)
            assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
            assert "errcode" not in re.sub(r'"(last_)?errcode": ?(0\b|null)', "", done.stdout) or (
                "/sandbox" in block.text
            ), done.stdout


@pytest.mark.needs("curl")
@pytest.mark.parametrize("page", [page for page in PAGES if page.of("python")], ids=str)
def test_python_runs(page: Page, running: Running, tmp_path: Path) -> None:
    for block in page.of("python"):
        compile(block.text, str(page), "exec")
        for module, names in re.findall(r"^from (broker[\w.]*) import ([\w, ]+)", block.text):
            found = __import__(module, fromlist=["*"])
            assert all(hasattr(found, name.strip()) for name in names.split(","))
        if block.mark == "run":
            prelude = "def call_wechat(token):\n    return {}\n"
            done = subprocess.run(
                [sys.executable, "-c", prelude + running.here(block.text)],
                capture_output=True,
                text=True,
                check=False,
                cwd=tmp_path,
                timeout=60,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            assert done.returncode == 0, done.stderr


CONFIGURATIONS = [
    pytest.param(block, id=f"{page}-{number}")
    for page in pages()
    for number, block in enumerate(page.of("toml"))
]


@pytest.mark.parametrize("block", CONFIGURATIONS)
def test_configurations_are_accepted(block: Block, tmp_path: Path) -> None:
    # A page shows a table now, and a key of it later.
    text = block.text.replace('"…"', f'"{KEY}"').replace("/etc/token-broker", str(tmp_path))
    text = text.replace("/run/token-brokerd", str(tmp_path)).replace('group = "www-data"\n', "")
    text = re.sub(r"/run/credentials/[\w.-]+", str(tmp_path), text)
    shown = tomllib.loads(text)
    if not any("appid" in app for app in shown.get("apps", {}).values()):
        text += f'\n[apps.main]\nappid = "{APPID}"\nsecret_file = "{tmp_path}/main.secret"\n'
    for name in re.findall(rf'"(?:{re.escape(str(tmp_path))}|\.)/([\w.-]+)"', text):
        make(tmp_path / name)
    make(tmp_path / "main.secret")
    config = tmp_path / "config.toml"
    if "operator" not in shown.get("avatars", {}).get("consent", {"operator": ""}):
        text = text.replace("[avatars.consent]", f"[avatars.consent]\n{WHO_ASKS}")
    config.write_text(tidy(text, shown))
    load(config, {})


def tidy(text: str, shown: dict[str, object]) -> str:
    """Complete what a page leaves out because another block on it has it."""
    for name, client in dict(shown.get("clients", {})).items():  # type: ignore[call-overload]
        if "key_file" not in client and "key_sha256" not in client:
            text = text.replace(f"[clients.{name}]", f'[clients.{name}]\nkey_sha256 = "{KEY}"')
    return text


def make(path: Path) -> None:
    """Make a file that the configuration names, such as it must be."""
    texts = {
        "notify": "#!/bin/sh\n",
        "notify.urls": "https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=k\n",
        "redis.url": "redis://:password@127.0.0.1:6379/0\n",
    }
    if path.suffix in {".db", ".sock", ".json"}:
        return
    path.write_text(texts.get(path.name, f"{KEY}\n"))
    path.chmod(0o700 if path.name == "notify" else 0o600)


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_explains_itself(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "broker", command, "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "--help" in done.stdout


def test_the_default_place_of_the_configuration_is_the_one_told() -> None:
    assert str(DEFAULT_PATH) == "/etc/token-broker/config.toml"


@pytest.mark.parametrize(("language", "ending"), LANGUAGES.items())
def test_the_pictures_are_those_that_the_script_makes(language: str, ending: str) -> None:
    assert (PICTURES / f"overview{ending}.svg").read_text() == drawing(language)
    for theme in ("light", "dark"):
        picture = (PICTURES / f"status-{theme}{ending}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")


# Runs the script with another `eval`, and shows what it would have run.
SHOW_COMMAND = 'eval() { echo "evaluated: $1"; }; export -f eval; bash "$1"'


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_ci_runs_the_readmes_own_test_command(name: str) -> None:
    text = (ROOT / name).read_text()
    (command,) = re.findall(r"<!-- test-command -->\n```sh\n(.*?)\n```", text, re.DOTALL)
    assert "python -m tests.harness.tools &&" in command
    done = subprocess.run(
        ["bash", "-c", SHOW_COMMAND, "run", str(ROOT / ".ci" / "run")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [f"+ {command}", f"evaluated: {command}"]


def test_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 140
