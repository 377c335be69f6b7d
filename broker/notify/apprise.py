"""Whatever Apprise reaches (mail, Bark, Server酱, PushPlus, Slack …): the extra [notify]."""

import asyncio
import logging
import warnings
from typing import Any, Final, Protocol, cast

from broker.core.secret import Secret
from broker.notify.events import Event, StateChange
from broker.notify.result import TAKEN, SendResult, Trouble

DEADLINE_S: Final = 30.0
KINDS: Final = {"critical": "failure", "warning": "warning", "info": "info"}
# They log URLs, which hold keys, from debug up to the error of a request that failed.
TALKATIVE: Final = ("apprise", "urllib3", "requests", "smtplib")


class _Target(Protocol):
    """What Apprise makes of a URL."""

    def notify(self, *, body: str, title: str, notify_type: str) -> bool:
        """Send, on a thread of ours. Return True if it was delivered."""


class AppriseReceiver:
    """A URL that Apprise understands."""

    def __init__(self, target: _Target, label: str) -> None:
        self.label = label
        self._target = target

    async def send(self, event: Event) -> SendResult:
        """See :class:`broker.notify.result.Receiver`."""
        kind = "success" if event.change is StateChange.LEFT else KINDS[event.severity]
        sending = asyncio.to_thread(
            self._target.notify, body=event.text, title=event.title, notify_type=kind
        )
        try:
            # Its own calls have deadlines too; a thread that is left behind ends with them.
            is_delivered = await asyncio.wait_for(sending, DEADLINE_S)
        except TimeoutError:
            return SendResult(Trouble.TIMEOUT)
        # Plug-ins of a hundred services, whose errors may hold the URL
        except Exception:  # noqa: BLE001
            is_delivered = False
        return TAKEN if is_delivered else SendResult(Trouble.NOT_DELIVERED)


def is_installed() -> bool:
    """Return True if the extra is installed."""
    try:
        _library()
    except ImportError:
        return False
    return True


def receiver(url: Secret) -> AppriseReceiver | None:
    """Return the receiver for a URL, or None where Apprise knows no such URL."""
    with warnings.catch_warnings():  # of plug-ins that it loads now, about Python
        warnings.simplefilter("ignore", DeprecationWarning)
        target = _library().Apprise.instantiate(url.reveal(), suppress_exceptions=True)
    if target is None:
        return None
    scheme = url.reveal().partition(":")[0].lower()
    return AppriseReceiver(cast("_Target", target), f"apprise {scheme}")


def _library() -> Any:
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    # An extra; it takes a quarter of a second to load
    import apprise  # noqa: PLC0415

    return apprise
