"""Hand-outs and documents in the SQLite file: what is kept beside tokens and ledger."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Final

from sqlite_utils import Database

from broker.core.documents import Rewrite
from broker.core.handouts import Handout

_ADD: Final = """insert into handouts
 (client, account, version, count, first_at, last_at, held, held_at, seen_at)
 values (:client, :account, :version, :count, :first_at, :last_at, :held, :held_at, :seen_at)
 on conflict (client, account, version) do update set
 count = count + excluded.count, held = held + excluded.held,
 first_at = coalesce(min(first_at, excluded.first_at), first_at, excluded.first_at),
 last_at = coalesce(max(last_at, excluded.last_at), last_at, excluded.last_at),
 held_at = coalesce(max(held_at, excluded.held_at), held_at, excluded.held_at),
 seen_at = max(seen_at, excluded.seen_at)"""
_READ: Final = """select client, account, version, count, first_at, last_at, held, held_at
 from handouts where account = ? order by seen_at desc, client limit ?"""


def create(db: Database) -> None:
    """Make the tables."""
    db.execute(
        "create table handouts (client text not null, account text not null, version text not null,"
        " count integer not null, first_at real, last_at real, held integer not null, held_at real,"
        " seen_at real not null, primary key (client, account, version)) strict, without rowid"
    )
    db.execute("create index handouts_seen on handouts (account, seen_at)")
    db.execute("create table documents (name text primary key, value text not null) strict")


def add_handouts(db: Database, handouts: Iterable[Handout]) -> None:
    """See :class:`broker.core.handouts.HandoutStore`."""
    rows = [{**asdict(one), "seen_at": one.seen_at} for one in handouts]
    db.conn.executemany(_ADD, rows)


def drop_handouts(db: Database, before: float, most: int) -> None:
    """See :class:`broker.core.handouts.HandoutStore`."""
    db.execute("delete from handouts where seen_at < ?", [before])
    db.execute(
        "delete from handouts where (client, account, version) in (select client, account, version"
        " from handouts order by seen_at desc limit -1 offset ?)",
        [most],
    )


def handouts(db: Database, account: str, most: int) -> list[Handout]:
    """See :class:`broker.core.handouts.HandoutStore`."""
    rows: list[tuple[Any, ...]] = db.execute(_READ, [account, most]).fetchall()
    return [Handout(*row) for row in rows]


def rewrite(db: Database, name: str, change: Rewrite, wall: float) -> None:
    """See :class:`broker.core.documents.DocumentStore`."""
    row = db.execute("select value from documents where name = ?", [name]).fetchone()
    new = change(row[0] if row else None, wall)
    if new is not None:
        db.execute("insert or replace into documents values (?, ?)", [name, new])
