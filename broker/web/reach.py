"""What the daemon does outside of HTTP: who is told of what, and where tokens are written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NOBODY_TOLD: Mapping[str, Any] = {"receivers": [], "told": [], "held_back": False}


@dataclass(frozen=True, slots=True)
class Reach:
    """Asked at each look; neither answer holds a token, a URL or a password.

    `notifications` is as :meth:`broker.notify.notifier.Notifier.status` gives it, `sinks_of` an
    app's sinks as :meth:`broker.sinks.sinks.Sinks.status` gives them.
    """

    notifications: Callable[[], Mapping[str, Any]] = field(default=lambda: NOBODY_TOLD)
    sinks_of: Callable[[str], Sequence[Mapping[str, Any]]] = field(default=lambda _: ())
