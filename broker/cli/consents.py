"""`token-broker avatars forget` and `show`: the file with the consents, and lists of openids."""

import contextlib
import csv
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from broker.avatars.consent.store import ConsentFile
from broker.config.settings import ConsentSettings

LARGEST: Final = 16 * 1024 * 1024
HEADING: Final = "openid"
_OPENID: Final = re.compile(r"o[A-Za-z0-9_-]{27}")


class CsvRefused(Exception):  # noqa: N818 -- said to a person
    """The file cannot be read, or names nobody."""


@contextlib.contextmanager
def opened(settings: ConsentSettings) -> Iterator[ConsentFile]:
    """Open the file. Root does so for its owner, to whom SQLite gives what it makes beside it.

    Raises ConsentStoreError, ConsentStoreRefused, and OSError if there is no such file.
    """
    is_anothers = settings.store.lstat().st_uid != os.geteuid()
    key, previous = settings.encryption_key, settings.previous_encryption_key
    file = ConsentFile.open(
        settings.store,
        None if key is None else key.reveal(),
        None if previous is None else previous.reveal(),
        for_owner=is_anothers and os.geteuid() == 0,
    )
    try:
        yield file
    finally:
        file.close()


def openids_in(name: str) -> list[str]:
    """Return the openids in a CSV file, or on standard input where `name` is `-`.

    They are the column that is headed `openid`, or else every cell that looks like an openid.
    Raises CsvRefused.
    """
    try:
        if name == "-":
            text = sys.stdin.read(LARGEST + 1)
        else:
            with Path(name).open(encoding="utf-8-sig", newline="") as file:
                text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise CsvRefused("is larger than 16 MiB")
        rows = list(csv.reader(text.splitlines()))
    except OSError as error:
        raise CsvRefused(f"cannot be read: {error.strerror}") from None
    except (ValueError, csv.Error):
        raise CsvRefused("is no CSV in UTF-8") from None
    found = list(dict.fromkeys(_openids(rows)))
    if not found:
        raise CsvRefused("names no openid")
    return found


def _openids(rows: list[list[str]]) -> Iterable[str]:
    heads = [cell.strip().lower() for cell in rows[0]] if rows else []
    if HEADING in heads:
        place = heads.index(HEADING)
        return [row[place].strip() for row in rows[1:] if len(row) > place and row[place].strip()]
    return [cell.strip() for row in rows for cell in row if _OPENID.fullmatch(cell.strip())]


def forgotten(deleted: int, named: int | None = None) -> str:
    """Say how many people's rows were deleted."""
    if named is None or named == deleted:
        return f"deleted: {deleted}"
    return f"deleted: {deleted}; nothing was kept of the other {named - deleted}"


def proof(file: ConsentFile) -> dict[str, object]:
    """Return what happened on which day, how often, and the texts that were agreed to.

    Days are Beijing's. Nobody is named. Raises ConsentStoreError.
    """
    days: dict[str, dict[str, int]] = {}
    for day, what, number in file.days():
        days.setdefault(day, {})[what] = number
    return {"days": days, "texts": {name: json.loads(it) for name, it in file.texts().items()}}
