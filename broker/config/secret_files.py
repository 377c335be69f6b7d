"""Secrets, in files above all: read only what nobody else could have read or planted, as ssh does with its keys.

What counts is taken from the open descriptor, so it cannot change between look and read: a regular
file, owned by this process's user or root, closed to group and others. Files under
$CREDENTIALS_DIRECTORY may have any mode: systemd guards the directory and gives them 0400 or 0440.

Symbolic links are followed, because Kubernetes and systemd mount secrets as links, but only links
that root or we made (in /tmp anybody could make one), and never into a directory that everybody may
write to.
"""

import os
import re
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from broker.core.secret import Secret

LONGEST_SECRET: Final = 4096
LONGEST_LIST: Final = 64 * 1024
OTHERS: Final = 0o077
_MOST_LINKS: Final = 40  # as many as the kernel follows
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")


class FileRefused(Exception):  # noqa: N818 -- named for what happened to the file
    """A file or value that will not do.

    Says why and what cures it; never holds any of its content.
    """

    def __init__(self, why: str, *, missing: bool = False) -> None:
        super().__init__(why)
        self.missing = missing


def read(path: Path, most: int) -> tuple[bytes, os.stat_result]:
    """Return a regular file's content, and its owner and mode as they are while it is read.

    Raises Refused.
    """
    try:
        # O_NONBLOCK: a FIFO in the file's place is refused below, it does not hang us here.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
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
            f"{path} cannot be read by uid {os.geteuid()}: {error.strerror}"
        ) from None
    if len(data) > most:
        raise FileRefused(f"{path} is longer than {most} bytes")
    return data, info


def check_closed(path: Path, info: os.stat_result) -> None:
    """Raise Refused if anybody but root and our user could read or replace a file's content."""
    _check_owner(path, info)
    if info.st_mode & OTHERS:
        mode = stat.S_IMODE(info.st_mode)
        raise FileRefused(
            f"{path} holds a secret, but group or others have access (mode {mode:04o}): chmod 600"
            f" {_quoted(path)}"
        )


def check_not_writable(path: Path, info: os.stat_result) -> None:
    """Raise Refused where everybody could rewrite the file: who writes the configuration says where secrets are sent."""
    if info.st_mode & stat.S_IWOTH:
        raise FileRefused(f"{path} may be written by everybody: chmod o-w {_quoted(path)}")


def read_secret(path: Path, environ: Mapping[str, str]) -> Secret:
    """Return the one word in a guarded file, without the white space around it. Raises Refused."""
    return as_secret(_read_guarded(path, environ, LONGEST_SECRET), str(path))


def _read_guarded(path: Path, environ: Mapping[str, str], most: int) -> str:
    _check_links(path)
    data, info = read(path, most)
    if _under_credentials(path, environ):
        _check_owner(path, info)
    else:
        check_closed(path, info)
    return data.decode("ascii", "replace")


def read_secret_lines(path: Path, environ: Mapping[str, str]) -> tuple[tuple[int, Secret], ...]:
    """Return the lines of a guarded file with their numbers, each a secret of one word.

    Empty lines and lines that begin with `#` are left out. Raises Refused.
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

    Raises Refused, naming the place.
    """
    word = text.strip()
    if not word:
        raise FileRefused(f"{place}: the secret is empty")
    if len(word) > LONGEST_SECRET:
        raise FileRefused(f"{place}: the secret is longer than {LONGEST_SECRET} characters")
    if not _VISIBLE.fullmatch(word):
        raise FileRefused(
            f"{place}: a secret is one word of visible ASCII characters, without blanks or line"
            " breaks"
        )
    return Secret(word)


def find_secret(
    name: str, file: Path | None, variable: str, inline: str | None, environ: Mapping[str, str]
) -> Secret:
    """Return an app's secret from the first place that has one, in the contract's order.

    Raises Refused, naming the place.
    """
    if file is not None:
        return read_secret(file, environ)
    granted = credential(f"{name}.secret", environ)
    if granted is not None and os.path.lexists(granted):
        return read_secret(granted, environ)
    for place, word in ((f"${variable}", environ.get(variable)), ("`secret`", inline)):
        if word:
            return as_secret(word, place)
    tried = f"{granted} does not exist" if granted else "$CREDENTIALS_DIRECTORY is not set"
    raise FileRefused(
        f"no secret: this key is not set, {tried}, ${variable} is not set, nor is `secret`"
    )


def credential(name: str, environ: Mapping[str, str]) -> Path | None:
    """Where systemd puts the credential of that name (LoadCredential=); None outside of such a unit."""
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    return Path(directory, name) if directory.startswith("/") else None


def _under_credentials(path: Path, environ: Mapping[str, str]) -> bool:
    directory = credential("", environ)
    return directory is not None and ".." not in path.parts and path.is_relative_to(directory)


def _check_owner(path: Path, info: os.stat_result) -> None:
    if info.st_uid not in (0, us := os.geteuid()):
        raise FileRefused(
            f"{path} belongs to uid {info.st_uid}, not to us or root: chown {us} {_quoted(path)}"
        )


def _check_links(path: Path) -> None:
    """Refuse links that somebody else made or may redirect.

    A missing file is left for :func:`read` to report.
    """
    here = path
    for _ in range(_MOST_LINKS):
        try:
            info = here.lstat()
            if not stat.S_ISLNK(info.st_mode):
                return
            here = here.parent / here.readlink()
            open_to_all = here.parent.stat().st_mode & stat.S_IWOTH
        except OSError:
            return
        if info.st_uid not in (0, os.geteuid()):
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
