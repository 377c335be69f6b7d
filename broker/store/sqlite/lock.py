"""One owner per store: locks that survive the deletion of what they lock.

There are three. One on the store's name, which stays when every file is deleted (name_lock.py). One
on the file `NAME.lock`, which stays when the database is replaced under us. One on the database
file itself, which stays when the lock file is deleted. The last two are flock's, so that SQLite's
own locks, which are POSIX locks, are not touched.

The lock file also remembers the newest call that was ever reserved, so that a database restored
from yesterday is recognised. Before the first call it says that there was none yet: an empty
database is then a first start that was cut off, and not a loss.
"""

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from broker.core.ports import StoreBusy, StoreRefused
from broker.store.sqlite.name_lock import claim_name
from broker.store.sqlite.place import files_of, why_not

OWNER_ONLY: Final = 0o700
UNUSED: Final = b"new\n"  # shorter than any note of a call, which is written over it
UNWRITABLE: Final = {errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EIO}
_CLOSED: Final = -1
_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class StoreLock:
    """Exclusive ownership of a database file, from construction to :meth:`release`.

    Raises StoreBusy where another process owns it, StoreRefused where a path was planted or belongs
    to somebody else, OSError where a file can neither be made nor read. `corrected` are the files
    whose modes let others read them, with those modes.
    """

    def __init__(self, path: Path) -> None:
        self.corrected: list[tuple[Path, int]] = []
        lock, database = files_of(path)[:2][::-1]
        self._name = claim_name(path)
        self._lock = _ClaimedFile(lock)
        self._database = _ClaimedFile(database)
        try:
            self._lock.claim()
            if not path.exists() and not self._noted():
                self._note(UNUSED)
            self._database.claim()
            self.corrected = [it for it in (narrowed(file) for file in files_of(path)) if it]
        except BaseException:
            self.release()
            raise

    def newest_seen(self) -> tuple[str, int] | None:
        """Return the epoch and the number of the newest call that the lock file remembers."""
        words = self._noted().decode("ascii", "replace").split()
        if len(words) == 2 and words[1].isdecimal():  # noqa: PLR2004 -- the two of them
            return words[0], int(words[1])
        return None

    def is_unused(self) -> bool:
        """Return True if no call was ever reserved here."""
        return self._noted() == UNUSED

    def remember(self, epoch: str, call: int) -> None:
        """Note the newest call."""
        self._note(f"{epoch} {call:020d}\n".encode())

    def lost(self) -> str | None:
        """Return what happened to a file that is not where it was claimed, None where all are."""
        return self._lock.lost() or self._database.lost()

    def reclaim(self) -> None:
        """Own the files that are at their paths now, new ones where there are none.

        What was noted stays noted: it is about this store, whoever put another lock file there.
        Raises what construction raises; it can be called again.
        """
        noted = self._noted()
        for file in (self._lock, self._database):
            file.close()
            file.claim()
        if noted:
            self._note(noted)

    def release(self) -> None:
        """Let go.

        Call it after SQLite has closed: closing any descriptor of the file drops SQLite's own
        locks.
        """
        self._database.close()
        self._lock.close()
        if self._name is not None:
            self._name.close()

    def _noted(self) -> bytes:
        return b"" if self._lock.fd == _CLOSED else os.pread(self._lock.fd, 200, 0)

    def _note(self, hint: bytes) -> None:
        """Write a hint.

        It is not synced and never an error: a full disk loses it, not the ledger.
        """
        with contextlib.suppress(OSError):
            os.pwrite(self._lock.fd, hint, 0)


class _ClaimedFile:
    """A file that is open and locked, or closed."""

    def __init__(self, path: Path) -> None:
        self.fd = _CLOSED
        self._path = path
        self._identity = (0, 0)

    def claim(self) -> None:
        fd = _opened(self._path)
        try:
            found = os.fstat(fd)
            if why := why_not(self._path, found):
                raise StoreRefused(why)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise StoreBusy(f"another daemon owns {self._path}") from None
        except BaseException:
            os.close(fd)
            raise
        self.fd, self._identity = fd, (found.st_dev, found.st_ino)

    def lost(self) -> str | None:
        try:
            found = self._path.lstat()
        except FileNotFoundError:
            return f"{self._path} was deleted or moved away while it was in use"
        if (found.st_dev, found.st_ino) != self._identity:
            return f"{self._path} was replaced while it was in use"
        return None

    def close(self) -> None:
        if self.fd != _CLOSED:
            os.close(self.fd)
        self.fd = _CLOSED


def _opened(path: Path) -> int:
    """Open a file for writing, or only for reading where nothing can be written there."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreRefused(
                f"{path} is a symbolic link: somebody may have planted it; remove it"
            ) from None
        if error.errno not in UNWRITABLE:
            raise
        try:
            return os.open(path, os.O_RDONLY | _FLAGS)
        except OSError:
            raise error from None


def narrowed(path: Path) -> tuple[Path, int] | None:
    """Take away what a file's mode allows to others; return its mode, None where it was right.

    A file of root's that we may only read, or one on a read-only mount, stays as it is.
    """
    try:
        fd = os.open(path, os.O_RDONLY | _FLAGS)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StoreRefused(
                f"{path} is a symbolic link: somebody may have planted it; remove it"
            ) from None
        return None
    try:
        found = os.fstat(fd)
        if why := why_not(path, found):
            raise StoreRefused(why)
        mode = stat.S_IMODE(found.st_mode)
        if mode & ~OWNER_ONLY:
            with contextlib.suppress(OSError):
                os.fchmod(fd, mode & OWNER_ONLY)
                return path, mode
        return None
    finally:
        os.close(fd)
