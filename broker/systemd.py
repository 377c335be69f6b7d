"""What systemd says to a daemon, and what it wants to hear."""

import os
import socket
from collections.abc import Mapping
from typing import Final

FIRST_FD: Final = 3


def notify(state: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send a state such as `READY=1`; False where nobody listens. Never raises: a supervisor that is gone is not our end."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.connect("\0" + address[1:] if address.startswith("@") else address)
            out.sendall(state.encode())
    except OSError:
        return False
    return True


def inherited_sockets(environ: Mapping[str, str] = os.environ) -> list[socket.socket]:
    """Listening sockets that systemd holds for us; they stay open across our restarts. Empty where there are none."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(environ.get("LISTEN_FDS", "0"))
    sockets = [socket.socket(fileno=FIRST_FD + number) for number in range(count)]
    for inherited in sockets:
        inherited.set_inheritable(False)
        inherited.setblocking(False)  # noqa: FBT003 -- the standard library's signature
    return sockets
