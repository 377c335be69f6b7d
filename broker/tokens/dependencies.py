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
    """`slots` bounds the calls to WeChat at once; `jitter` draws from [0, 1); `policy` may be replaced.

    `on_change` is called whenever an app's answer becomes another one, before anybody can ask for
    it.
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
    on_change: Callable[[], None] = lambda: None
