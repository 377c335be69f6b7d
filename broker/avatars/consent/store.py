"""The file that holds what people agreed to: SQLite, readable by its owner only (WECHAT.md W128).

What is deleted is overwritten (`secure_delete`), and there is no write-ahead log in which it would
live on. With an encryption key a person's row is sealed, and found by a keyed hash of the openid.
"""

import hashlib
import hmac
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from broker.store.encryption import Plain, Seal, Sealed
from broker.store.sqlite.place import refusals

FOLLOWER, VISITOR = "follower", "visitor"
BUSY_S: Final = 2.0
AT_ONCE: Final = 500  # openids in one query
BEIJING_S: Final = 8 * 3600
_CHECK: Final = "consents of token-broker"
_SCHEMA: Final = """
create table if not exists meta (key text primary key, value text not null) strict;
create table if not exists consents (id text primary key, person text not null,
  agreed_at integer not null, text_version text not null, source text not null,
  expires_at integer not null) strict;
create index if not exists consents_by_end on consents (expires_at);
create table if not exists texts (version text primary key, text text not null,
  first_agreed_at integer not null) strict;
create table if not exists days (day text, what text, number integer not null,
  primary key (day, what)) strict;
"""


class ConsentStoreError(Exception):
    """The file cannot be read or written now. The text says why and holds nothing of a person."""


class ConsentStoreRefused(Exception):  # noqa: N818 -- as StoreRefused is named
    """The file must not be used. The text says why."""


@dataclass(frozen=True, slots=True)
class Consent:
    """What is kept of one person. Times are Unix seconds.

    `source` is `follower` or `visitor`: as whom the person agreed. `refresh_token` and `asked_at`,
    when the picture was asked for last, are only kept where renewal is switched on.
    """

    openid: str
    headimgurl: str
    agreed_at: int
    text_version: str
    source: str
    expires_at: int
    refresh_token: str | None = None
    asked_at: int | None = None

    def __repr__(self) -> str:
        return "[consent]"


class ConsentFile:
    """The open file. To be used on one thread.

    Methods raise ConsentStoreError. `now` is Unix seconds; rows whose time is over, and rows that
    cannot be read, do not exist for those methods that look.
    """

    def __init__(self, db: sqlite3.Connection, seal: Seal, key: str | None) -> None:
        self._db = db
        self._seal = seal
        self._key = None if key is None else hashlib.sha256(f"openid/{key}".encode()).digest()

    @classmethod
    def open(
        cls,
        path: Path,
        key: str | None = None,
        previous_key: str | None = None,
        *,
        for_owner: bool = False,
    ) -> Self:
        """Open the file, which is made where there is none.

        With `key` rows are sealed. Rows that were plain, or sealed with `previous_key`, are sealed
        with `key` now. `for_owner`: root acts for whoever owns the file, and it may be anybody's.
        Raises ConsentStoreRefused and ConsentStoreError.
        """
        if not for_owner:
            for why in refusals(path):
                raise ConsentStoreRefused(f"avatars.consent.store: {why}")
        seal: Seal = Plain() if key is None else Sealed(key)
        before: list[tuple[Seal, str | None]] = [(Plain(), None)]
        if previous_key is not None:
            before.append((Sealed(previous_key), previous_key))
        try:
            _make_private(path)
            db = sqlite3.connect(
                path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise ConsentStoreError(_reason(error)) from None
        opened = cls(db, seal, key)
        try:
            opened._prepare([] if key is None else before)
        except BaseException:
            db.close()
            raise
        return opened

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # --- people -----------------------------------------------------------------------------------

    def keep(self, consent: Consent, text: str) -> None:
        """Keep a consent instead of that person's earlier one, and the text that was agreed to."""
        with self._transaction():
            self._write(consent)
            self._db.execute(
                "insert into texts values (?, ?, ?) on conflict do nothing",
                (consent.text_version, text, consent.agreed_at),
            )
            self._count("agreed", 1, consent.agreed_at)

    def update(self, consent: Consent) -> bool:
        """Write a consent anew if it is still the one that is kept; return False if it is not."""
        with self._transaction():
            known = self._find([consent.openid], 0).get(consent.openid)
            if known is None or known.agreed_at != consent.agreed_at:
                return False
            self._write(consent)
        return True

    def find(self, openids: Sequence[str], now: float) -> dict[str, Consent]:
        """Return the consents of those who agreed, by openid."""
        with self._errors():
            return self._find(openids, now)

    def all(self, now: float) -> list[Consent]:
        """Return every consent."""
        with self._errors():
            rows = self._db.execute("select * from consents where expires_at > ?", (now,))
            return [one for row in rows if (one := _read(row, self._seal)) is not None]

    def number(self, now: float) -> int:
        """Return how many followers' consents there are."""
        with self._errors():
            question = "select count(*) from consents where source = 'follower' and expires_at > ?"
            return int(self._db.execute(question, (now,)).fetchone()[0])

    def forget(
        self, openids: Iterable[str], why: str, now: float, agreed_until: float | None = None
    ) -> int:
        """Delete these people's rows and return how many there were.

        With `agreed_until` only consents from before that moment, in Unix seconds, are deleted.
        """
        with self._transaction():
            deleted = 0
            for openid in openids:
                deleted += self._db.execute(
                    "delete from consents where id = ? and (? is null or agreed_at <= ?)",
                    (self._id(openid), agreed_until, agreed_until),
                ).rowcount
            self._count(why, deleted, now)
        return deleted

    def forget_all(self, now: float) -> int:
        """Delete every row and return how many there were."""
        with self._transaction():
            deleted = self._db.execute("delete from consents").rowcount
            self._count("forgotten", deleted, now)
        return deleted

    def expire(self, now: float) -> int:
        """Delete the rows whose time is over and return how many there were."""
        with self._transaction():
            gone = "delete from consents where expires_at <= ?"
            deleted = self._db.execute(gone, (now,)).rowcount
            self._count("expired", deleted, now)
        return deleted

    # --- proof, which names nobody ----------------------------------------------------------------

    def days(self) -> list[tuple[str, str, int]]:
        """Return (day in Beijing, what happened, how often)."""
        with self._errors():
            return list(self._db.execute("select day, what, number from days order by day, what"))

    def texts(self) -> dict[str, str]:
        """Return the texts that somebody agreed to, by their version."""
        with self._errors():
            return dict(self._db.execute("select version, text from texts"))

    # --- within -----------------------------------------------------------------------------------

    def _id(self, openid: str) -> str:
        if self._key is None:
            return openid
        return hmac.new(self._key, openid.encode(), hashlib.sha256).hexdigest()

    def _write(self, consent: Consent) -> None:
        person = {"openid": consent.openid, "headimgurl": consent.headimgurl}
        if consent.refresh_token is not None:
            person |= {"refresh_token": consent.refresh_token, "asked_at": str(consent.asked_at)}
        name = self._id(consent.openid)
        self._db.execute(
            "insert or replace into consents values (?, ?, ?, ?, ?, ?)",
            (
                name,
                self._seal.seal(json.dumps(person), name),
                consent.agreed_at,
                consent.text_version,
                consent.source,
                consent.expires_at,
            ),
        )

    def _find(self, openids: Sequence[str], now: float) -> dict[str, Consent]:
        found: dict[str, Consent] = {}
        for start in range(0, len(openids), AT_ONCE):
            names = [self._id(openid) for openid in openids[start : start + AT_ONCE]]
            marks = ",".join("?" * len(names))
            question = f"select * from consents where id in ({marks}) and expires_at > ?"  # noqa: S608
            for row in self._db.execute(question, (*names, now)):
                if (consent := _read(row, self._seal)) is not None:
                    found[consent.openid] = consent
        return found

    def _count(self, what: str, number: int, now: float) -> None:
        if number:
            day = time.strftime("%Y-%m-%d", time.gmtime(now + BEIJING_S))
            self._db.execute(
                "insert into days values (?, ?, ?)"
                " on conflict do update set number = number + excluded.number",
                (day, what, number),
            )

    def _prepare(self, before: Sequence[tuple[Seal, str | None]]) -> None:
        """Make the tables, and seal what another key sealed or none. Raises ConsentStoreRefused."""
        with self._errors():
            for setting in ("secure_delete = on", "journal_mode = delete", "synchronous = full"):
                self._db.execute(f"pragma {setting}")
        with self._transaction():
            for statement in _SCHEMA.split(";\n"):
                self._db.execute(statement)
            row = self._db.execute("select value from meta where key = 'check'").fetchone()
            if row is None or self._seal.unseal(row[0], "check") != _CHECK:
                if row is not None:
                    self._seal_anew(row[0], before)
                check = self._seal.seal(_CHECK, "check")
                self._db.execute("insert or replace into meta values ('check', ?)", (check,))

    def _seal_anew(self, check: str, before: Sequence[tuple[Seal, str | None]]) -> None:
        seal = next((seal for seal, _ in before if seal.unseal(check, "check") == _CHECK), None)
        if seal is None:
            raise ConsentStoreRefused(
                "avatars.consent.encryption_key_file: the consents were sealed with another key"
            )
        rows = self._db.execute("select * from consents").fetchall()
        self._db.execute("delete from consents")
        for row in rows:
            if (consent := _read(row, seal)) is not None:
                self._write(consent)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("begin immediate")
            try:
                yield
                self._db.execute("commit")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("rollback")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ConsentStoreError(_reason(error)) from None


def renewed(consent: Consent, headimgurl: str, refresh_token: str, now: float) -> Consent:
    """Return the same consent with a picture that was asked for now."""
    return replace(consent, headimgurl=headimgurl, refresh_token=refresh_token, asked_at=int(now))


def as_export(consent: Consent) -> Mapping[str, object]:
    """Return what is kept of a person, for that person to look at."""
    shown: dict[str, object] = {
        "openid": consent.openid,
        "headimgurl": consent.headimgurl,
        "agreed_at": _moment(consent.agreed_at),
        "text_version": consent.text_version,
        "source": consent.source,
        "expires_at": _moment(consent.expires_at),
    }
    if consent.refresh_token is not None:
        shown["refresh_token"] = "kept, sealed"  # noqa: S105 -- no token
    return shown


def _moment(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _read(row: Sequence[str | int], seal: Seal) -> Consent | None:
    """Return the consent in a row; None for a row that somebody damaged or put elsewhere."""
    name, sealed, agreed_at, text_version, source, expires_at = row
    text = seal.unseal(str(sealed), str(name))
    try:
        person = json.loads(text or "")
        openid, headimgurl = str(person["openid"]), str(person["headimgurl"])
        asked_at = int(person["asked_at"]) if "asked_at" in person else None
        refresh_token = person.get("refresh_token")
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return Consent(
        openid,
        headimgurl,
        int(agreed_at),
        str(text_version),
        str(source),
        int(expires_at),
        refresh_token,
        asked_at,
    )


def _make_private(path: Path) -> None:
    """Make the file with mode 600, or give that mode to the one that is there."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)
    finally:
        os.close(fd)


def _reason(error: Exception) -> str:
    """Return SQLite's or the system's own words, in which there is nothing of a person."""
    return getattr(error, "strerror", None) or str(error)
