"""The tables: made and migrated under an advisory lock, recognised, and the rights they need."""

from collections.abc import Iterable
from importlib.resources import files
from typing import Final

import psycopg

from broker.core.ports import StoreRefused
from broker.store.postgres.pool import (
    DEADLINE_S,
    LOCKS,
    NO_SESSION,
    SCHEMA,
    ConnectionPool,
    Session,
)
from broker.store.rows import ACCOUNT_COLUMNS, CALL_COLUMNS

# Files beside this one. `SCHEMA_FILE` makes the tables as they are now; each of `UPGRADES` raises
# the version of tables that an earlier token-broker made by one, and is never changed after a
# release.
SCHEMA_FILE: Final = "schema.sql"
UPGRADES: Final = ("upgrade-2.sql", "upgrade-3.sql", "upgrade-4.sql")
VERSION: Final = 1 + len(UPGRADES)
RIGHTS: Final = {
    "meta": ("select",),
    "accounts": ("select", "insert", "update"),
    "calls": ("select", "insert", "update", "delete"),
    "nodes": ("select", "insert", "update", "delete"),
    "handouts": ("select", "insert", "update", "delete"),
    "documents": ("select", "insert", "update"),
}
OWN_COLUMNS: Final[dict[str, type]] = {
    "epoch": str,
    "calls": int,
    "prior_epoch": str,
    "prior_calls": int,
    "timeline": str,
    "changes": int,
}
COLUMNS: Final[dict[str, Iterable[str]]] = {
    "meta": ("key", "value"),
    "accounts": {**ACCOUNT_COLUMNS, **OWN_COLUMNS},
    "calls": {**CALL_COLUMNS, "epoch": str, "at": float, "node": str},
    "nodes": ("name", "seen_at", "notified_at", "versions"),
}
_THERE: Final = """select c.relname as in_table, a.attname as name from pg_class c
 join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
 where c.relnamespace = 'token_broker'::regnamespace and c.relkind in ('r', 'p')"""
_VERSION: Final = "select value from token_broker.meta where key = 'schema'"
_NOT_OURS: Final = (
    "the schema token_broker in this database is not ours: name another database in store.url"
)
_ALLOWED: Final = "select has_table_privilege(%s, %s) as is_allowed"


async def ensure(pool: ConnectionPool, name: str) -> None:
    """Create or migrate the tables where that is needed and allowed.

    Raises StoreRefused, StoreError.
    """

    async def work(session: Session) -> None:
        if await version(session) != VERSION:
            await session.run(
                "select pg_advisory_xact_lock(%s, %s)", (LOCKS, SCHEMA)
            )  # another broker may be at it
            await _migrate(session, await version(session))
        if why := await missing_columns(session) or await missing_rights(session):
            raise StoreRefused(why)

    await pool.transaction(name, work)


async def _migrate(session: Session, found: int) -> None:
    if found > VERSION:
        raise StoreRefused(newer(found))
    for name in pending(found):
        try:
            await session.run((files(__package__) / name).read_text())
        except psycopg.errors.InsufficientPrivilege:
            raise StoreRefused(not_allowed(name)) from None


def pending(found: int) -> tuple[str, ...]:
    """Return the files to run, in this order, where the tables have version `found`."""
    return (SCHEMA_FILE,) if found == 0 else UPGRADES[found - 1 :]


async def version(session: Session) -> int:
    """Return which version the tables have, 0 where there are none.

    Raises StoreRefused where the role may not look, or the tables are not ours.
    """
    (row,) = await session.run(
        "select exists (select from pg_namespace where nspname = 'token_broker') as is_there"
    )
    if not row["is_there"]:
        return 0
    try:
        rows = await session.run(_VERSION)
    except psycopg.errors.InsufficientPrivilege:
        raise StoreRefused(
            "the role may not use the schema token_broker: grant what schema.sql grants"
        ) from None
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
        raise StoreRefused(_NOT_OURS) from None
    if not rows or not str(rows[0]["value"]).isdecimal():
        raise StoreRefused(_NOT_OURS)
    return int(rows[0]["value"])


async def missing_columns(session: Session) -> str:
    """Return which tables and columns of this version are not there, as a sentence; or nothing."""
    there = {(row["in_table"], row["name"]) for row in await session.run(_THERE)}
    missing = [
        f"{table}.{name}"
        for table, names in COLUMNS.items()
        for name in names
        if (table, name) not in there
    ]
    if not missing:
        return ""
    return (
        f"the tables of the schema token_broker lack {', '.join(missing)}: restore a backup, or"
        " name another database in store.url"
    )


async def missing_rights(session: Session) -> str:
    """Return which rights the role lacks, as a sentence; empty where it lacks none."""
    lacking = [
        f"{right} on token_broker.{table}"
        for table, rights in RIGHTS.items()
        for right in rights
        if not (await session.run(_ALLOWED, (f"token_broker.{table}", right)))[0]["is_allowed"]
    ]
    return (
        f"the role lacks: {', '.join(lacking)}; as the owner of the tables, grant it"
        if lacking
        else ""
    )


async def refuse_pooling(pool: ConnectionPool, name: str) -> None:
    """Raise StoreRefused where a pooler takes a connection's server session away.

    Through a pooler, the number that libpq was given for the server process is one of the pooler's
    own. So where that number is right, there is no pooler. Else a second connection is made while
    the first is idle: if the pooler shares sessions, the second gets the session of the first, or
    the first has another one afterwards.
    """
    first = await pool.bare(name)
    try:
        async with first.bounded(DEADLINE_S):
            pids = [await _pid(first), await _pid(first)]
            if pids == [first.connection.pgconn.backend_pid] * 2:
                return
            second = await pool.bare(name)
            try:
                await second.run("begin")
                behind_second = await _pid(second)
                pids.append(await _pid(first))
            finally:
                await second.connection.close()
    except psycopg.errors.ProtocolViolation:  # pool_mode = statement allows no transaction at all
        raise StoreRefused(NO_SESSION) from None
    finally:
        await first.connection.close()
    if len(set(pids)) > 1 or behind_second in pids:
        raise StoreRefused(NO_SESSION)


async def _pid(session: Session) -> int:
    (row,) = await session.run("select pg_backend_pid() as pid")
    return int(row["pid"])


def newer(found: int) -> str:
    """Return what is said of tables that a later version wrote."""
    return (
        f"the tables were written by a newer token-broker (schema {found}, this one knows"
        f" {VERSION}): install that version again, or name another database in store.url"
    )


def not_allowed(name: str) -> str:
    """Return what is said where file `name` has to be run and this role may not do what it does."""
    what = (
        "the tables of the schema token_broker are missing and this role may not create them"
        if name == SCHEMA_FILE
        else "the tables are those of an earlier token-broker and this role may not change them"
    )
    return (
        f"{what}: as the database's owner, run psql -v ON_ERROR_STOP=1 --single-transaction -f"
        f" {files(__package__) / name}"
    )
