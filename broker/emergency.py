"""A few token calls for when the disk is broken and the token dies: counted elsewhere, in a directory that needs no disk.

systemd gives every service a RuntimeDirectory on a tmpfs. It is gone with the boot, and so the steady clock suits it.
"""

import json
import os
from pathlib import Path
from typing import Final

from broker.core.quota import DAY

BUDGET: Final = 12  # a day: what a token lifetime of two hours needs, and no more
GAP_S: Final = 300.0
LAST_MINUTES_S: Final = 300.0  # of a token's life: before that, memory serves and the disk may yet recover


class EmergencyBudget:
    """At most BUDGET calls per account in any 24 hours, GAP_S apart, across restarts. Without a directory, none."""

    def __init__(self, directory: Path | None) -> None:
        self._file = directory / "emergency.json" if directory else None

    def spent(self, account: str) -> list[float]:
        """When this account's emergency calls of the last day or so were made, on the steady clock."""
        if self._file is None:
            return []
        try:
            kept = json.loads(self._file.read_text())
            return [float(at) for at in kept.get(account, [])]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, AttributeError):
            return [float("inf")]  # unreadable: take it as spent

    def spend(self, account: str, now: float) -> bool:
        """Take one call, noted before it is made; False where there is none to take, or no way to note it."""
        if self._file is None:
            return False
        made = [at for at in self.spent(account) if at > now - DAY]
        if len(made) >= BUDGET or any(at > now - GAP_S for at in made):
            return False
        try:
            self._write(account, [*made, now])
        except (OSError, ValueError):
            return False
        return True

    def _write(self, account: str, made: list[float]) -> None:
        if self._file is None:
            return
        kept = json.loads(self._file.read_text()) if self._file.exists() else {}
        draft = self._file.with_suffix(".new")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as out:
            json.dump({**kept, account: made}, out)
            out.flush()
            os.fsync(out.fileno())
        draft.replace(self._file)
