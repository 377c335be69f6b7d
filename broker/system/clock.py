"""The machine's clocks: one that survives suspend and nobody can set, and the wall's for people."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class SystemClock:
    """CLOCK_BOOTTIME and unix time. `boot_id` says which boot the steady clock belongs to.

    `now()` gives seconds since boot, suspend included.
    """

    def __init__(self, boot_id: str | None = None) -> None:
        """Take `boot_id` from the caller where /proc does not show it (systemd's ProcSubset=pid hides it; it passes %b)."""
        self.now: Callable[[], float] = partial(
            time.clock_gettime, time.CLOCK_BOOTTIME
        )  # asked for every request
        self.wall: Callable[[], float] = time.time  # unix time
        self.boot_id = (boot_id or _read_boot_id()).replace("-", "")


def _read_boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        # Without an identity, no two starts share a boot: ages go by the wall, which is bounded and
        # in doubt suspected.
        return f"unknown-{time.time_ns()}"
