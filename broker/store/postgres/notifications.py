"""What brokers tell each other through NOTIFY: who changed which account, and how often it was changed by then."""

import re
from dataclasses import dataclass
from typing import Final

CHANNEL: Final = "token_broker"
_COUNTER: Final = re.compile(r"[0-9]{1,19}")  # a bigint


@dataclass(frozen=True, slots=True)
class Notification:
    """One notification's payload. `sender` tells processes apart, so that nobody heeds his own."""

    sender: str
    changes: int
    endpoint: str
    appid: str

    @staticmethod
    def read(payload: str) -> "Notification | None":
        """Return what was said; None where it is not from a broker.

        Whoever may connect to the database may notify, and say anything.
        """
        match payload.split(" ", 3):
            case [sender, changes, endpoint, appid] if _COUNTER.fullmatch(changes):
                return Notification(sender, int(changes), endpoint, appid)
        return None
