"""A few token calls for when the disk is broken and the token dies.

They are counted in a directory that needs no disk.

systemd gives every service a RuntimeDirectory on a tmpfs. It is gone with the boot, and so the
steady clock suits it.
"""

import json
import math
import os
from pathlib import Path
from typing import Final

from broker.core.quota import DAY

BUDGET: Final = 12  # calls a day: what tokens that live two hours need, and no more
GAP_S: Final = 300.0
# Earlier in a token's life memory serves, and the disk may yet recover.
LAST_MINUTES_S: Final = 300.0


class EmergencyBudget:
    """At most BUDGET calls per account in any 24 hours, GAP_S apart, across restarts.

    Without a directory, none.
    """

    def __init__(self, directory: Path | None) -> None:
        self._file = directory / "emergency.json" if directory else None

    def spent(self, account: str) -> list[float]:
        """Return when emergency calls of the last day were made, in steady seconds."""
        return self._read(account, "made")

    def unrecorded(self, account: str) -> list[float]:
        """Return when the calls were made that the ledger does not have yet, in steady seconds."""
        recorded = self._read(account, "recorded")
        return [at for at in self.spent(account) if at not in recorded and at != math.inf]

    def spend(self, account: str, now: float) -> bool:
        """Take one call, and note it before it is made.

        Return False if none is left, or if it cannot be noted.
        """
        made = [at for at in self.spent(account) if at > now - DAY]
        if len(made) >= BUDGET or any(at > now - GAP_S for at in made):
            return False
        return self._write(account, made=[*made, now])

    def record(self, account: str, at: float) -> None:
        """Note that the ledger has the call made then."""
        self._write(account, recorded=[*self._read(account, "recorded"), at])

    def _read(self, account: str, what: str) -> list[float]:
        if self._file is None:
            return []
        try:
            return [
                float(at)
                for at in json.loads(self._file.read_text()).get(account, {}).get(what, [])
            ]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, AttributeError):
            return [math.inf]  # unreadable: take it as spent

    def _write(self, account: str, **lists: list[float]) -> bool:
        if self._file is None:
            return False
        try:
            kept = json.loads(self._file.read_text()) if self._file.exists() else {}
            draft = self._file.with_suffix(".new")
            with os.fdopen(
                os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w"
            ) as out:
                json.dump({**kept, account: {**kept.get(account, {}), **lists}}, out)
                out.flush()
                os.fsync(out.fileno())
            draft.replace(self._file)
        except (OSError, ValueError, AttributeError, TypeError):
            return False
        return True
