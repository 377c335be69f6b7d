"""Listening sockets: those that systemd hands over, or else our own.

The file of a Unix socket is made when it is bound, and removed when it is closed.
"""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from broker.system.address import Address

SOCKET_MODE: Final = 0o660  # the group decides who may connect
BACKLOG: Final = 1024


class AddressTaken(Exception):  # noqa: N818 -- a state, not a fault
    """Another program listens there already."""


@asynccontextmanager
async def listeners(
    addresses: Sequence[Address], inherited: Sequence[socket.socket]
) -> AsyncIterator[Sequence[tuple[str, socket.socket]]]:
    """Yield bound sockets with their addresses in words. With inherited ones, no others are made.

    Raises AddressTaken, and OSError if an address is not this machine's or a path cannot be
    written.
    """
    with contextlib.ExitStack() as stack:
        sockets = list(inherited)
        for address in [] if inherited else addresses:
            sock = (
                _bind_unix(Path(address.path), stack)
                if address.kind == "unix"
                else _bind_tcp(address)
            )
            stack.enter_context(contextlib.closing(sock))
            sockets.append(sock)
        yield [(_name(sock), sock) for sock in sockets]


def _socket(family: int) -> socket.socket:
    """Return a socket that does not block and is not inherited."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)  # noqa: FBT003 -- the standard library's signature
    return sock


def _bind_tcp(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = _socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address.host, address.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressTaken(
                f"{address} is taken: another program listens there; stop it or change"
                " server.listen"
            ) from None
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}") from None
    return sock


def _bind_unix(path: Path, stack: contextlib.ExitStack) -> socket.socket:
    _clear(path)
    sock = _socket(socket.AF_UNIX)
    before = os.umask(0o777 & ~SOCKET_MODE)
    try:
        sock.bind(str(path))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on unix:{path}: {error.strerror}") from None
    finally:
        os.umask(before)
    inode = path.lstat().st_ino
    stack.callback(_unlink, path, inode)
    return sock


def _clear(path: Path) -> None:
    """Remove the socket of a daemon that was killed. Raises AddressTaken for anything else."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise AddressTaken(f"unix:{path} is not a socket: somebody put it there; remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise AddressTaken(f"unix:{path} is taken: another program listens there")
    path.unlink()


def _unlink(path: Path, inode: int) -> None:
    with contextlib.suppress(OSError):
        if path.lstat().st_ino == inode:  # it may be a newer daemon's by now
            path.unlink()


def _name(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{name}"
    return (
        f"http://[{name[0]}]:{name[1]}"
        if sock.family == socket.AF_INET6
        else f"http://{name[0]}:{name[1]}"
    )
