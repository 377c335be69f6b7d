"""What systemd does for a daemon, done by a test.

It holds the daemon's listening sockets, and receives what the daemon says of itself.
"""

import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.harness.processes import PATIENCE_S

# Puts the descriptors in its arguments where sd_listen_fds(3) says, and becomes the command that
# follows.
HANDOVER = """
import fcntl, os, sys
count = int(sys.argv[1])
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[2:2 + count]]
for place, fd in enumerate(high, 3):
    os.dup2(fd, place)
    os.close(fd)
names = ":".join(["broker"] * count)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count), LISTEN_FDNAMES=names)
os.execvp(sys.argv[2 + count], sys.argv[2 + count:])
"""


def handing_over(
    sockets: Sequence[socket.socket], command: Sequence[str], python: str = sys.executable
) -> list[str]:
    """The command, so that it inherits these sockets as systemd would hand them over."""
    return [
        python,
        "-c",
        HANDOVER,
        str(len(sockets)),
        *(str(sock.fileno()) for sock in sockets),
        *command,
    ]


def held(path: Path) -> list[socket.socket]:
    """A Unix socket at the path and a TCP socket on loopback, both listening."""
    unix, tcp = socket.socket(socket.AF_UNIX), socket.socket()
    unix.bind(str(path))
    tcp.bind(("127.0.0.1", 0))
    for sock in (unix, tcp):
        sock.listen(1024)
    return [unix, tcp]


class Ear:
    """A NOTIFY_SOCKET, and what was said on it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind("\0" + address[1:] if address.startswith("@") else address)
        self._sock.settimeout(PATIENCE_S)

    def message(self) -> dict[str, str]:
        """The next message, as fields."""
        return dict(line.split("=", 1) for line in self._sock.recv(4096).decode().splitlines())

    def until(self, field: str) -> dict[str, str]:
        """The next message with the field; those before it are dropped."""
        while field not in (message := self.message()):
            pass
        return message

    def heard(self) -> list[dict[str, str]]:
        """All that has been said and not been read."""
        said = []
        self._sock.setblocking(False)  # noqa: FBT003 -- the standard library's signature
        try:
            while True:
                said.append(self.message())
        except BlockingIOError:
            return said
        finally:
            self._sock.settimeout(PATIENCE_S)

    def close(self) -> None:
        self._sock.close()
