"""The English of README, guides and changelog is spelt as dictionaries have it."""

import subprocess
import sys
from pathlib import Path

from tests.harness.guides import ENGLISH
from tests.harness.places import DEPLOY, ROOT

MORE = [
    ROOT / "CHANGELOG.md",
    DEPLOY / "README.md",
    DEPLOY / "config.example.toml",
    ROOT / "broker" / "ARCHITECTURE.md",
    ROOT / "broker" / "core" / "WECHAT.md",
    ROOT / "tests" / "SCENARIOS.md",
    *(ROOT / ".github").glob("*.md"),
]


def misspelt(*files: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib", *files],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert not done.stderr, done.stderr
    return done.stdout


def test_no_word_is_misspelt() -> None:
    assert not misspelt(*map(str, [*ENGLISH, *MORE]))


def test_a_misspelt_word_is_found(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("The tokne is recieved.\n")
    assert "recieved ==> received" in misspelt(str(tmp_path / "page.md"))
