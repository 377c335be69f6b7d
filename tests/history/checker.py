"""The whole history before all rules: I1 to I5 of SCENARIOS.md, and those of several brokers.

I6 is checked beside it.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from tests.harness.doubles import CANARY
from tests.history import booked, served
from tests.history.record import History

_TOKEN = re.compile(rb"97_[A-Za-z0-9_-]{60,}")  # as the sandbox makes them


def violations(history: History) -> list[str]:
    """Each as a sentence; empty where all is well."""
    return [said for rule in (*booked.RULES, *served.RULES) for said in rule(history)]


def leaks(homes: Iterable[Path], pids: Iterable[int] = ()) -> list[str]:
    """I6: where a secret or a token stands in a log or in what the machine tells of a process."""
    files = [log for home in homes for log in home.glob("*.log")]
    files += [Path(f"/proc/{pid}/{name}") for pid in pids for name in ("cmdline", "environ")]
    return [f"I6: {file}" for file in files if file.exists() and _holds(file.read_bytes())]


def _holds(content: bytes) -> bool:
    return CANARY.encode() in content or _TOKEN.search(content) is not None
