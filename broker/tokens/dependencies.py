"""What all apps of a daemon share."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from broker.core.credential import Policy
from broker.core.ports import Clock, EventSink, Store, Upstream
from broker.tokens.emergency_budget import EmergencyBudget

URGENT: Final = 4  # calls at once


@dataclass(slots=True)
class Dependencies:
    """What keepers are given.

    `policy` may be replaced while the daemon runs. `slots` bounds the calls to WeChat at once that
    the schedule makes, and `urgent_slots` those that a report or a person waits for, so that
    neither has to queue behind a thousand apps that are due together.
    `jitter` draws from [0, 1). `on_change` is called with an app's name whenever its answers become
    others, before anybody can be given one.
    """

    store: Store
    upstream: Upstream
    clock: Clock
    policy: Policy
    slots: asyncio.Semaphore
    emit: EventSink
    call_timeout_s: float
    urgent_slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(URGENT))
    emergency_budget: EmergencyBudget = field(default_factory=lambda: EmergencyBudget(None))
    jitter: Callable[[], float] = random.random
    on_change: Callable[[str], None] = lambda _: None
