"""A lock on a name in a directory, which survives the deletion of everything in that directory.

It is a socket in Linux's abstract namespace, bound to a name made of the directory's inode and the
store's name. The kernel gives it up with the process. Where there is no such namespace, or another
network namespace, the locks on the files themselves (lock.py) are what there is.
"""

import errno
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Final

from broker.core.ports import StoreBusy
from broker.store.sqlite.place import trusted

_WAITING: Final = 4096  # second daemons that asked who we are; nobody answers them
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid: unix(7), SO_PEERCRED


def claim_name(path: Path) -> socket.socket | None:
    """Own the name of a store until the socket is closed; None where that cannot be had.

    Raises StoreBusy where a process of ours, of root, or of the directory's owner has it. A
    stranger's is ignored: otherwise any local user could keep the daemon from starting.
    """
    if sys.platform != "linux":
        return None
    directory = path.parent.stat()
    name = f"\0token-broker/{directory.st_dev}:{directory.st_ino}/{path.name}"
    try:
        held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError:  # no such sockets in here
        return None
    try:
        held.bind(name)
        held.listen(_WAITING)
    except OSError as error:
        held.close()
        if error.errno == errno.EADDRINUSE and _owner_of(name) in trusted() | {directory.st_uid}:
            raise StoreBusy(f"another daemon owns {path}") from None
        return None
    return held


def _owner_of(name: str) -> int | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(0)
        try:
            asking.connect(name)
            said = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:
            return None
    uid: int = _CREDENTIALS.unpack(said)[1]
    return uid if uid >= 0 else os.geteuid()
