"""The machine's clocks: a steady one that runs through suspend, and the wall clock for people."""

import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
BOOT_ID_ON_MACOS: Final = ("/usr/sbin/sysctl", "-n", "kern.bootsessionuuid")
# Linux's monotonic clock stands still while the machine sleeps, macOS's does not.
RUN_THROUGH_SUSPEND: Final = ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC")


def steady_clock() -> Callable[[], float]:
    """Return a function that tells seconds since some moment, suspend included.

    Nobody can set that clock.
    """
    for name in RUN_THROUGH_SUSPEND:
        if hasattr(time, name):
            return partial(time.clock_gettime, getattr(time, name))
    return time.monotonic  # Windows: it counts the time asleep, too


class SystemClock:
    """The steady clock and the wall clock.

    `now()` returns steady seconds, suspend included. `boot_id` tells which boot they count from.
    """

    def __init__(self, boot_id: str | None = None) -> None:
        """Take `boot_id` from the caller if there is one, since /proc may not show it.

        systemd's ProcSubset=pid hides it; the unit passes %b instead.
        """
        self.now: Callable[[], float] = steady_clock()
        self.wall: Callable[[], float] = time.time  # Unix time
        self.boot_id = (boot_id or _read_boot_id()).replace("-", "")


def _read_boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        pass
    try:
        said = subprocess.run(  # noqa: S603 -- the system's own program
            BOOT_ID_ON_MACOS, capture_output=True, text=True, timeout=5, check=True
        )
        return said.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        # Without an identity no two starts share a boot. Ages then go by the wall clock, within
        # bounds, and a token whose age is in doubt is verified.
        return f"unknown-{time.time_ns()}"
