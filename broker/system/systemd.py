"""What systemd hands to a daemon, and what it wants to hear from it.

See sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3).
"""

import asyncio
import contextlib
import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

FIRST_FD: Final = 3
# Within the time after which systemd takes us for dead: one may be late, and one may be lost.
PINGS: Final = 3
SLOWEST_NOTICE_S: Final = 1.0

WhyUnhealthy = Callable[[], Awaitable[str]]
OnHealthChanged = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Supervisor:
    """systemd, or nobody, who is told nothing.

    It hears us at `address`. After `watchdog_s` seconds without a ping it restarts us. `sockets`
    are listening sockets that it holds for us; they stay open while we restart.
    """

    address: str = ""
    watchdog_s: float | None = None
    sockets: tuple[socket.socket, ...] = ()

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str] = os.environ) -> "Supervisor":
        """Take what systemd left in the environment out of it, so that no child takes it over.

        Raises OSError if a descriptor was handed down that does not listen.
        """
        usec, watched = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        is_us = watched in {"", str(os.getpid())}
        return cls(
            environ.pop("NOTIFY_SOCKET", ""),
            int(usec) / 1e6 if is_us and usec.isdecimal() and int(usec) else None,
            _inherited(environ),
        )

    def notify(self, *lines: str) -> bool:
        """Send lines such as `READY=1`. Return True if somebody took them.

        Never raises: the daemon works without a supervisor.
        """
        if not self.address.startswith(("/", "@")):
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.settimeout(SLOWEST_NOTICE_S)
                out.connect(
                    "\0" + self.address[1:] if self.address.startswith("@") else self.address
                )
                out.sendall("\n".join(lines).encode())
        except OSError:
            return False
        return True

    def reloading(self) -> None:
        """Say that the configuration is being read again. `READY=1` must follow."""
        self.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    @asynccontextmanager
    async def watched(self, well: WhyUnhealthy, tell: OnHealthChanged) -> AsyncIterator[None]:
        """Send pings while the context is open and `well` returns an empty string.

        Any other string is the reason why not. systemd is told the reason in place of the ping, and
        restarts us when `watchdog_s` is over. `tell` is called with each change.
        """
        if self.watchdog_s is None:
            yield
            return
        pinging = asyncio.create_task(
            self._ping(well, tell, self.watchdog_s / PINGS), name="watchdog"
        )
        try:
            yield
        finally:
            pinging.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pinging

    async def _ping(self, well: WhyUnhealthy, tell: OnHealthChanged, pause_s: float) -> None:
        known = ""
        while True:
            why_not = await _look(well, pause_s)
            self.notify(f"STATUS=not well: {why_not}" if why_not else "WATCHDOG=1")
            if why_not != known:
                tell(why_not)
                known = why_not
            await asyncio.sleep(pause_s)


async def _look(well: WhyUnhealthy, within_s: float) -> str:
    try:
        async with asyncio.timeout(within_s):
            return await well()
    # A bug in the check counts as not well: pings that end without a word would hide why.
    except Exception as error:  # noqa: BLE001
        return f"the look at ourselves failed: {type(error).__name__}"


def _inherited(environ: MutableMapping[str, str]) -> tuple[socket.socket, ...]:
    count, pid = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return ()
    fds = range(FIRST_FD, FIRST_FD + int(count))
    names += [""] * (len(fds) - len(names))
    return tuple(_listening(fd, name) for fd, name in zip(fds, names, strict=False))


def _listening(fd: int, name: str) -> socket.socket:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise OSError(f"the inherited descriptor {fd} ({name}) is not a socket")
    inherited = socket.socket(fileno=fd)
    if inherited.type != socket.SOCK_STREAM or not inherited.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    ):
        raise OSError(
            f"the inherited socket {fd} ({name}) does not listen: the unit needs ListenStream= and"
            " Accept=no"
        )
    inherited.set_inheritable(False)
    inherited.setblocking(False)  # noqa: FBT003 -- the standard library's signature
    return inherited


NOBODY: Final = Supervisor()
