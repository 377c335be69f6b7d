"""What the README shows exists: commands, keys, routes, codes, files."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from broker.cli.commands import main
from broker.config.load import load
from broker.core.serving import Code
from broker.web.api.openapi import DOCUMENT

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_command_shown_exists_and_every_command_is_shown() -> None:
    shown = set(re.findall(r"`token-broker ([a-z]+)[^`]*`", README))
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        shown |= set(re.findall(r"token-broker ([a-z]+)", block))
    assert shown == main.commands.keys()


def test_every_route_shown_exists_and_every_route_is_shown() -> None:
    shown = set(
        re.findall(
            r"(?<![\w.])(/(?:v1/[\w{}/]+|livez|readyz|health|metrics|openapi\.json))", README
        )
    )
    shown = {path.replace("/main", "/{app}") for path in shown}
    assert shown == set(DOCUMENT["paths"])


def test_every_code_is_explained() -> None:
    for code in Code:
        assert f"`{code.value}`" in README


def test_every_file_named_exists() -> None:
    for name in re.findall(r"`((?:broker|tests|deploy)/[\w./]+)`", README) + re.findall(
        r"\]\(([\w./]+)\)", README
    ):
        assert (ROOT / name).exists(), name


def test_the_configurations_shown_are_accepted(tmp_path: Path) -> None:
    shown = "\n".join(re.findall(r"```toml\n(.*?)```", README, re.DOTALL))
    secret = tmp_path / "main.secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    text = shown.replace("/etc/token-broker/main.secret", str(secret)).replace(
        '"…"', f'"{"a" * 64}"'
    )
    config = tmp_path / "config.toml"
    config.write_text(text)
    settings = load(config, {})
    assert list(settings.apps) == ["main"]
    assert settings.avatars is not None
    assert tomllib.loads(text)["clients"]["orders"]["scopes"] == ["read", "report"]


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


# Runs the script with another `eval`, and shows what it would have run.
SHOW_COMMAND = 'eval() { echo "evaluated: $1"; }; export -f eval; bash "$1"'


def test_ci_runs_the_readmes_own_test_command() -> None:
    (command,) = re.findall(r"<!-- test-command -->\n```sh\n(.*?)\n```", README, re.DOTALL)
    assert "python -m tests.harness.tools &&" in command
    done = subprocess.run(
        ["bash", "-c", SHOW_COMMAND, "run", str(ROOT / ".ci" / "run")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [f"+ {command}", f"evaluated: {command}"]
