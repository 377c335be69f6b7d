"""One owner per store file: a lock that survives a deleted lock file, and paths nobody planted.

Two locks (flock, so SQLite's own POSIX locks are not touched): one on `NAME.lock`, which stays when
the database is replaced under us, one on the database file itself, which stays when the lock file
is deleted. The lock file also remembers the newest call ever reserved, so that a database restored
from yesterday is recognised; or that there was none yet, so that a first start that was cut off is
told from a file that was emptied.
"""

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from broker.core.ports import StoreBusy, StoreRefused

OTHERS: Final = 0o077
UNUSED: Final = b"new\n"  # shorter than any note of a call, which is written over it


class StoreLock:
    """Exclusive ownership of a database file, from construction to :meth:`release`.

    Raises StoreBusy where another process owns it, StoreRefused where a path is a symlink, not a
    regular file, or readable by others, OSError where the directory cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._lock_fd = _claim(lock_path(path))
        if not path.exists() and not self._noted():
            self._note(UNUSED)
        try:
            self._file_fd = _claim(path)
        except BaseException:
            os.close(self._lock_fd)
            raise

    def newest_seen(self) -> tuple[str, int] | None:
        """The epoch and the newest call that this lock file remembers."""
        words = self._noted().decode("ascii", "replace").split()
        # Two words
        return (words[0], int(words[1])) if len(words) == 2 and words[1].isdecimal() else None  # noqa: PLR2004

    def unused(self) -> bool:
        """Whether no call was ever reserved here: an empty file is then a first start that was cut off, not a loss."""
        return self._noted() == UNUSED

    def remember(self, epoch: str, call: int) -> None:
        """Note the newest call."""
        self._note(f"{epoch} {call:020d}\n".encode())

    def _noted(self) -> bytes:
        return os.pread(self._lock_fd, 200, 0)

    def _note(self, hint: bytes) -> None:
        """A hint, so not synced and never an error: a full disk loses it, not the ledger."""
        with contextlib.suppress(OSError):
            os.pwrite(self._lock_fd, hint, 0)

    def follow(self, path: Path) -> None:
        """Own the file that is at `path` now, or a new one: the old was moved away."""
        os.close(self._file_fd)
        self._file_fd = _claim(path)

    def release(self) -> None:
        """Let go.

        Call it after SQLite has closed: closing any descriptor of the file drops SQLite's own
        locks.
        """
        os.close(self._file_fd)
        os.close(self._lock_fd)


NETWORKED: Final = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "afs",
    "ceph",
    "glusterfs",
    "lustre",
    "fuse.sshfs",
    "fuse.glusterfs",
}


def network_file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """The kind of network file system that `path` is on, None where it is local or cannot be known."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return None
    wanted = path.parent.resolve()
    # "36 35 98:0 /root /mount/point options … - fstype source options": the longest mount point
    # over the path counts.
    points = [
        (Path(words[4].replace("\\040", " ")), words[words.index("-") + 1])
        for words in lines
        if "-" in words
    ]
    over = [
        (len(point.parts), kind)
        for point, kind in points
        if point == wanted or point in wanted.parents
    ]
    kind = max(over, default=(0, ""))[1]
    return kind if kind in NETWORKED else None


def lock_path(path: Path) -> Path:
    """The lock file beside a store."""
    return path.with_name(path.name + ".lock")


def planted(path: Path) -> str | None:
    """Why a path must not be used: somebody else may have put it there, or may read it.

    None where it may.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(mode):
        return f"{path} is a symbolic link: somebody may have planted it; remove it"
    if not stat.S_ISREG(mode):
        return f"{path} is not a regular file"
    return (
        f"{path} holds tokens and others may read it: chmod 600 {path}" if mode & OTHERS else None
    )


def _claim(path: Path) -> int:
    # NOFOLLOW again after the look: what is opened is what was looked at, or nothing.
    if why := planted(path):
        raise StoreRefused(why)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise StoreBusy(f"another daemon owns {path}") from None
    except BaseException:
        os.close(fd)
        raise
    return fd
