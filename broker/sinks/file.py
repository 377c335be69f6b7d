"""A token in a file: replaced as a whole by a rename, so that no reader ever sees half of one.

Beside `NAME` stands `.NAME.version`, which holds the order of the token and no part of it. It is
locked by whoever writes, so that two brokers on one host never put an older token over a newer.
"""

import asyncio
import errno
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from broker.config.reach import why_not_here
from broker.config.settings import FileSinkSettings
from broker.sinks.formats import Writing, encoded, is_older
from broker.sinks.outcome import SinkError, SinkFault

FULL: Final = {errno.ENOSPC, errno.EDQUOT}
LONGEST_ORDER: Final = 200
SAME_END_S: Final = 2.0  # ends are rounded: what differs by less is the same


class FileSink:
    """A :class:`broker.sinks.outcome.Sink` that is a file."""

    def __init__(self, settings: FileSinkSettings) -> None:
        self.label = f"file {settings.path}"
        self._settings = settings
        # The order and the end of the token that we wrote, and the file as it was then.
        self._written: tuple[str, float, os.stat_result] | None = None

    async def write(self, writing: Writing) -> None:
        """See :class:`broker.sinks.outcome.Sink`."""
        await asyncio.to_thread(self._guarded, lambda: self._write(writing))

    async def clear(self) -> None:
        """See :class:`broker.sinks.outcome.Sink`."""
        await asyncio.to_thread(self._guarded, self._clear)

    async def close(self) -> None:
        """See :class:`broker.sinks.outcome.Sink`."""

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            full = error.errno in FULL
            raise SinkError(SinkFault.DISK_FULL if full else SinkFault.NOT_WRITABLE) from None

    def _write(self, writing: Writing) -> None:
        path, order = self._settings.path, writing.order()
        if self._written is not None:
            known, ends_at, file = self._written
            moved = abs(writing.ends_at - ends_at) > SAME_END_S
            if known == order and not moved and _is_untouched(path, file):
                return
        if why_not_here(path.parent):
            raise SinkError(SinkFault.OPEN_TO_OTHERS)
        with self._order() as kept:
            if is_older(order, kept.read()) and path.exists():
                return
            self._replace(encoded(self._settings.format, writing))
            kept.write(f"{order} {writing.ends_at:.0f}")
        self._written = order, writing.ends_at, path.stat()

    def _clear(self) -> None:
        if not self._settings.path.exists():
            return
        with self._order() as kept:
            order, _, ends_at = kept.read().rpartition(" ")
            is_ours = self._written is not None and order == self._written[0]
            # Of an earlier process: it is over when its own time is.
            is_over = ends_at.isdecimal() and int(ends_at) <= time.time()
            if is_ours or is_over:
                self._settings.path.unlink(missing_ok=True)
        self._written = None

    def _replace(self, data: bytes) -> None:
        path = self._settings.path
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        try:
            with os.fdopen(fd, "wb") as file:
                if self._settings.group is not None:
                    os.fchown(fd, -1, self._settings.group)
                file.write(data)
                file.flush()
                os.fsync(fd)
                os.fchmod(fd, self._settings.mode)  # last: nobody reads what is not whole
            Path(name).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise

    @contextmanager
    def _order(self) -> Iterator["_Order"]:
        """The order of the token that is there, for us alone."""
        path = self._settings.path
        beside = path.with_name(f".{path.name}.version")
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(beside, flags, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise SinkError(SinkFault.OPEN_TO_OTHERS)
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield _Order(fd)
        finally:
            os.close(fd)


def _is_untouched(path: Path, then: os.stat_result) -> bool:
    """Return True if the file is still the one that we put there."""
    try:
        now = path.stat()
    except FileNotFoundError:
        return False
    names = ("st_ino", "st_mtime_ns", "st_size", "st_mode", "st_gid")
    return all(getattr(now, name) == getattr(then, name) for name in names)


class _Order:
    """The content of the file beside the token."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self) -> str:
        """Return the order of the last token that was written, or what stands there instead."""
        return os.pread(self._fd, LONGEST_ORDER, 0).decode("ascii", "replace")

    def write(self, order: str) -> None:
        """Replace it."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, order.encode(), 0)
