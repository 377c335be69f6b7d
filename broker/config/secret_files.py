"""Reads secrets, above all from files, and refuses those that somebody else could read or replace.

The rules are ssh's, widened to how platforms deliver secrets:

- The file belongs to the daemon's user or to root.
- Others have no access. A group has access only if the daemon belongs to it, or if root owns the
  file: then root chose the group.
- More is allowed on what a platform mounts for us: a read-only mount of its own, and what others
  cannot reach in /run/secrets. Kubernetes, Docker and podman give secrets the mode 0444 there.
- Below $CREDENTIALS_DIRECTORY any mode is allowed: systemd guards that directory itself.

Owner and mode are read from the open file, so they cannot change between the check and the read.
Symbolic links are followed, because Kubernetes and systemd mount secrets as links, but only links
that root or the daemon's user made, and not into a directory where everybody may write.
"""

import os
import re
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.core.secret import Secret

LONGEST_SECRET: Final = 4096
LONGEST_LIST: Final = 64 * 1024
RUN_SECRETS: Final = Path("/run/secrets")
ROOT: Final = 0
_MOST_LINKS: Final = 40  # as many as the kernel follows
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")
_BYTE_ORDER_MARKS: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_QUOTES: Final = ("''", '""', "``", "‘’", "“”")
# Windows and macOS lack some of these flags. O_NONBLOCK: a FIFO must not make the open wait.
_OPEN_FLAGS: Final = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY")
)


class FileRefused(Exception):  # noqa: N818 -- named for what happened to the file
    """A file or value that cannot be used.

    The text says why and what cures it, and never quotes the content. `missing` is true where there
    is no such file.
    """

    def __init__(self, why: str, *, missing: bool = False) -> None:
        super().__init__(why)
        self.missing = missing


@dataclass(frozen=True, slots=True)
class Reader:
    """The user and the groups that a process reads files as; `uid` is None on Windows."""

    uid: int | None
    groups: frozenset[int]

    @classmethod
    def of_this_process(cls) -> "Reader":
        """Return the effective user and all groups of this process."""
        if not hasattr(os, "geteuid"):
            return cls(None, frozenset())
        return cls(os.geteuid(), frozenset({os.getegid(), *os.getgroups()}))

    def trusts(self, uid: int) -> bool:
        """Return True if this user is root or the reader itself."""
        return uid in (ROOT, self.uid)


# --- reading --------------------------------------------------------------------------------------


def read(path: Path, most: int) -> tuple[bytes, os.stat_result]:
    """Return a regular file's content, at most `most` bytes, with its owner and mode.

    Raises FileRefused.
    """
    try:
        fd = os.open(path, _OPEN_FLAGS)
        with os.fdopen(fd, "rb") as file:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise FileRefused(f"{path} is not a regular file")
            data = file.read(most + 1)
    except IsADirectoryError:
        raise FileRefused(f"{path} is a directory, not a file", missing=True) from None
    except FileNotFoundError:
        raise FileRefused(f"{path} does not exist", missing=True) from None
    except OSError as error:
        raise FileRefused(
            f"{path} cannot be read by uid {Reader.of_this_process().uid}: {error.strerror}"
        ) from None
    if len(data) > most:
        raise FileRefused(f"{path} is longer than {most} bytes")
    return data, info


def read_secret(path: Path, environ: Mapping[str, str]) -> Secret:
    """Return the one word in a guarded file, without the white space around it.

    Raises FileRefused.
    """
    return as_secret(_read_guarded(path, environ, LONGEST_SECRET), str(path))


def _read_guarded(path: Path, environ: Mapping[str, str], most: int) -> str:
    reader = Reader.of_this_process()
    _check_links(path, reader)
    data, info = read(path, most)
    if _is_below_credentials(path, environ):
        _check_owner(path, info, reader)
    else:
        check_closed(path, info, reader)
    if data.startswith(_BYTE_ORDER_MARKS):
        raise FileRefused(
            f"{path} begins with a byte order mark (BOM), which Windows editors add: save it as"
            " plain ASCII"
        )
    return data.decode("utf-8", "replace")


def read_secret_lines(path: Path, environ: Mapping[str, str]) -> tuple[tuple[int, Secret], ...]:
    """Return the lines of a guarded file with their numbers, each a secret of one word.

    Empty lines and lines that begin with `#` are left out. Raises FileRefused.
    """
    text = _read_guarded(path, environ, LONGEST_LIST)
    lines = enumerate(text.splitlines(), start=1)
    return tuple(
        (number, as_secret(line, f"{path}, line {number}"))
        for number, line in lines
        if line.strip() and not line.strip().startswith("#")
    )


def as_secret(text: str, place: str) -> Secret:
    """Return a value as a Secret, without the white space around it.

    Raises FileRefused, naming the place.
    """
    word = text.strip()
    if not word:
        raise FileRefused(f"{place}: the secret is empty")
    if len(word) > LONGEST_SECRET:
        raise FileRefused(f"{place}: the secret is longer than {LONGEST_SECRET} characters")
    if word[0] + word[-1] in _QUOTES and len(word) > 1:
        raise FileRefused(f"{place}: the secret is in quotes: write it without them")
    if not _VISIBLE.fullmatch(word):
        raise FileRefused(
            f"{place}: a secret is one word of visible ASCII characters, without blanks or line"
            " breaks"
        )
    return Secret(word)


def find_secret(
    name: str, file: Path | None, variable: str, inline: str | None, environ: Mapping[str, str]
) -> tuple[Secret, Path | None]:
    """Return an app's secret, and the file it is in, None where it is in no file.

    The first of these places that holds one counts: `file`, $CREDENTIALS_DIRECTORY/NAME.secret,
    $`variable`, `inline`. Raises FileRefused, naming the place.
    """
    granted = credential(f"{name}.secret", environ)
    if file is None and granted is not None and _may_exist(granted):
        file = granted
    if file is not None:
        return read_secret(file, environ), file
    for place, word in ((f"${variable}", environ.get(variable)), ("`secret`", inline)):
        if word:
            return as_secret(word, place), None
    tried = f"{granted} does not exist" if granted else "$CREDENTIALS_DIRECTORY is not set"
    raise FileRefused(
        f"no secret: this key is not set, {tried}, ${variable} is not set, nor is `secret`"
    )


def _may_exist(path: Path) -> bool:
    """Return False only if there is no such file; one that cannot be reached is not passed over."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def credential(name: str, environ: Mapping[str, str]) -> Path | None:
    """Return the path of a credential (systemd's LoadCredential=), None without such a directory.

    In a container $CREDENTIALS_DIRECTORY may be set to wherever secrets are mounted.
    """
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    return Path(directory, name) if directory.startswith("/") else None


# --- judging --------------------------------------------------------------------------------------


def check_closed(path: Path, info: os.stat_result, reader: Reader | None = None) -> None:
    """Raise FileRefused if somebody else could read or replace a file that holds a secret."""
    reader = reader or Reader.of_this_process()
    if reader.uid is None:  # Windows: its modes say nothing about who may read
        return
    _check_owner(path, info, reader)
    excess = stat.S_IMODE(info.st_mode) & ~_allowed_mode(info, reader)
    if excess and not _is_delivered(path, info, reader):
        raise FileRefused(
            f"{path} holds a secret, but {_others(excess)} have access"
            f" (mode {stat.S_IMODE(info.st_mode):04o}): {_cure(path, info, reader)}"
        )


def check_not_writable(path: Path, info: os.stat_result) -> None:
    """Raise FileRefused if everybody could rewrite a file that says where secrets are sent."""
    if Reader.of_this_process().uid is None or not info.st_mode & stat.S_IWOTH:
        return
    if not _is_read_only(path):
        raise FileRefused(f"{path} may be written by everybody: chmod o-w {_quoted(path)}")


def _allowed_mode(info: os.stat_result, reader: Reader) -> int:
    """Return the permission bits that a secret's file may have."""
    if info.st_gid in reader.groups:
        return 0o770
    return 0o740 if info.st_uid == ROOT else 0o700


def _others(excess: int) -> str:
    return "others" if excess & 0o007 else "a group"


def _cure(path: Path, info: os.stat_result, reader: Reader) -> str:
    """Return what helps where the file is: not every file can be given another mode."""
    if _is_read_only(path):
        return (
            "it is on a read-only file system and not a mount of its own: mount it as a secret"
            " (Kubernetes: a secret volume; Docker and podman: /run/secrets)"
        )
    if reader.uid in (ROOT, info.st_uid):
        return f"chmod 600 {_quoted(path)}"
    return f"as root: chown {reader.uid} {_quoted(path)} && chmod 600 {_quoted(path)}"


def _check_owner(path: Path, info: os.stat_result, reader: Reader) -> None:
    # A file that a container engine mounts read-only keeps the owner it has on the host.
    if reader.trusts(info.st_uid):
        return
    if _is_read_only(path) and _is_delivered(path, info, reader):
        return
    raise FileRefused(
        f"{path} belongs to uid {info.st_uid}, not to us or root: as root:"
        f" chown {reader.uid} {_quoted(path)}"
    )


def _is_delivered(path: Path, info: os.stat_result, reader: Reader) -> bool:
    """Return True if a platform mounted the file for us alone.

    Such a file is on another device than the root directory. A unit with ProtectSystem=strict sees
    all of / as read-only, so being read-only is not enough.
    """
    try:
        is_mounted = info.st_dev != Path("/").stat().st_dev
        if is_mounted and _is_read_only(path):
            return True
        real = path.resolve()
        if not real.is_relative_to(RUN_SECRETS):
            return False
        is_mounted = is_mounted and info.st_dev != RUN_SECRETS.parent.stat().st_dev
        return is_mounted or _is_out_of_reach(real, reader)
    except OSError:
        return False


def _is_read_only(path: Path) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except (OSError, AttributeError):
        return False


def _is_out_of_reach(real: Path, reader: Reader) -> bool:
    """Return True if a directory above the file is closed to everybody but us and root."""
    for directory in real.parents:
        info = directory.stat()
        if reader.trusts(info.st_uid) and not info.st_mode & ~_allowed_mode(info, reader) & 0o011:
            return True
    return False


def _is_below_credentials(path: Path, environ: Mapping[str, str]) -> bool:
    directory = credential("", environ)
    return directory is not None and ".." not in path.parts and path.is_relative_to(directory)


def _check_links(path: Path, reader: Reader) -> None:
    """Refuse links that somebody else made or could redirect.

    A missing file is left for :func:`read` to report.
    """
    here = path
    for _ in range(_MOST_LINKS):
        try:
            info = here.lstat()
            if not stat.S_ISLNK(info.st_mode):
                return
            here = here.parent / here.readlink()
            # A secret volume of Kubernetes is a directory with mode 1777, mounted read-only.
            open_to_all = here.parent.stat().st_mode & stat.S_IWOTH and not _is_read_only(
                here.parent
            )
        except OSError:
            return
        if not reader.trusts(info.st_uid):
            raise FileRefused(
                f"{path} is a symbolic link made by uid {info.st_uid}: remove it, somebody may have"
                " planted it"
            )
        if open_to_all:
            raise FileRefused(
                f"{path} is a symbolic link into {here.parent}, where everybody may write: move the"
                " file"
            )


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
