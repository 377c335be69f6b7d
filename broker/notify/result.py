"""What came of sending an event: nothing wrong, or a code with a number beside it.

Pages and commands put the code into words.
"""

from enum import StrEnum
from typing import NamedTuple, Protocol

from broker.notify.events import Event


class Trouble(StrEnum):
    """Why a receiver did not take an event."""

    UNREACHABLE = "unreachable"
    TLS = "tls"
    TIMEOUT = "timeout"
    HTTP_STATUS = "http-status"  # with the status
    REFUSED = "refused"  # by a robot, with its errcode
    NO_ANSWER_OF_ITS_KIND = "garbled"
    EXIT = "exit"  # of the hook, with its exit code
    NOT_STARTED = "not-started"  # the hook
    NOT_DELIVERED = "not-delivered"  # by Apprise, which does not say more


class SendResult(NamedTuple):
    """`trouble` is None where the event was taken.

    `number` is an HTTP status, an errcode or an exit code.
    """

    trouble: Trouble | None = None
    number: int | None = None


TAKEN = SendResult()


class Receiver(Protocol):
    """Somebody events are sent to. `label` names it without its secret."""

    label: str

    async def send(self, event: Event) -> SendResult:
        """Send an event; ends within a minute and raises nothing."""
