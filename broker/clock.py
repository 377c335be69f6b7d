"""The machine's clocks: one that survives suspend and nobody can set, and the wall's for people."""

import time
from pathlib import Path
from typing import Final

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class SystemClock:
    """CLOCK_BOOTTIME and unix time. `boot_id` says which boot the steady clock belongs to."""

    def __init__(self, boot_id: str | None = None) -> None:
        """Take `boot_id` from the caller where /proc does not show it (systemd's ProcSubset=pid hides it; it passes %b)."""
        self.boot_id = (boot_id or _read_boot_id()).replace("-", "")

    def now(self) -> float:
        """Seconds since boot, suspend included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        """Unix time."""
        return time.time()


def _read_boot_id() -> str:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        # Without an identity, no two starts share a boot: ages go by the wall, which is bounded and in doubt suspected.
        return f"unknown-{time.time_ns()}"
