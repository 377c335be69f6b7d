"""What brokers tell each other through NOTIFY: who changed which account.

A counter says how often the account was changed by then.
"""

import re
from dataclasses import dataclass
from typing import Final

CHANNEL: Final = "token_broker"
_COUNTER: Final = re.compile(r"[0-9]{1,19}")  # a bigint


@dataclass(frozen=True, slots=True)
class Notification:
    """One notification's payload. By `sender` a process knows its own, which it ignores."""

    sender: str
    changes: int
    endpoint: str
    appid: str

    @staticmethod
    def read(payload: str) -> "Notification | None":
        """Return what a payload says; None where it is not from a broker.

        Whoever may connect to the database may notify, and say anything.
        """
        match payload.split(" ", 3):
            case [sender, changes, endpoint, appid] if _COUNTER.fullmatch(changes):
                return Notification(sender, int(changes), endpoint, appid)
        return None
