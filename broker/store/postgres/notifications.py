"""What brokers tell each other through NOTIFY: who changed which account, and how often it was changed by then."""

from dataclasses import dataclass
from typing import Final

CHANNEL: Final = "token_broker"


@dataclass(frozen=True, slots=True)
class Notification:
    """One notification's payload. `sender` tells processes apart, so that nobody heeds his own."""

    sender: str
    changes: int
    endpoint: str
    appid: str

    @staticmethod
    def read(payload: str) -> "Notification | None":
        """Return what was said; None where it is not from a broker."""
        match payload.split(" ", 3):
            case [sender, changes, endpoint, appid] if changes.isdecimal():
                return Notification(sender, int(changes), endpoint, appid)
        return None
