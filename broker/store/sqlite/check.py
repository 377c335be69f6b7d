"""What `token-broker check` asks of a store file.

It changes nothing and owns nothing, so it may run beside the daemon.
"""

import contextlib
import os
import sqlite3
import stat
from pathlib import Path

from sqlite_utils import Database

from broker.store.sqlite.content import oddities
from broker.store.sqlite.file import BUSY_TIMEOUT_S, newer
from broker.store.sqlite.lock import OWNER_ONLY
from broker.store.sqlite.place import files_of, is_on_container_layer, refusals
from broker.store.sqlite.schema import MIGRATIONS


def inspect(path: Path) -> list[str]:
    """Return what is wrong with a store file, as sentences.

    Nothing is where it is good, or not there yet.
    """
    found = refusals(path)
    if path.parent.is_dir() and not os.access(path.parent, os.W_OK | os.X_OK):
        found.append(f"the directory {path.parent} cannot be written by this user")
    return found or (_inspect_content(path) if path.exists() else [])


def warnings(path: Path) -> list[str]:
    """Return what a person should know of a store that the daemon takes all the same."""
    found = [
        f"others may read {file} (mode {mode:o}): the daemon takes that away when it starts"
        for file in files_of(path)
        if file.exists() and (mode := stat.S_IMODE(file.stat().st_mode)) & ~OWNER_ONLY
    ]
    if is_on_container_layer(path):
        why = f"{path} lies on the container's own layer and is lost with the container"
        found.append(f"{why}: mount a volume at {path.parent}")
    return found


def _inspect_content(path: Path) -> list[str]:
    if not path.stat().st_size:
        return []
    try:
        where = f"{path.as_uri()}?mode=ro"
        with contextlib.closing(
            sqlite3.connect(where, uri=True, timeout=BUSY_TIMEOUT_S)
        ) as connection:
            version = connection.execute("pragma user_version").fetchone()[0]
            verdict = connection.execute("pragma quick_check(1)").fetchone()[0]
            if version > len(MIGRATIONS):
                return [newer(path, version)]
            if verdict != "ok":
                return [f"{path} is damaged: {verdict}"]
            return [f"{path}: {why}" for why in oddities(Database(connection), version)]
    except sqlite3.Error as error:
        return [f"{path}: {error}"]
