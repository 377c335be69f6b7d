"""What all apps of a daemon share."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from broker.core.credential import Policy
from broker.core.ports import Clock, EventSink, Store, Upstream
from broker.tokens.emergency_budget import EmergencyBudget


@dataclass(slots=True)
class Dependencies:
    """What keepers are given.

    `policy` may be replaced while the daemon runs. `slots` bounds the calls to WeChat at once.
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
    emergency_budget: EmergencyBudget = field(default_factory=lambda: EmergencyBudget(None))
    jitter: Callable[[], float] = random.random
    on_change: Callable[[str], None] = lambda _: None
