"""What `token-broker check` asks of a database: is it there, may we in, are the tables ours.

It changes nothing.
"""

from collections.abc import AsyncIterator

import psycopg

from broker.core.ports import StoreBusy, StoreError, StoreRefused
from broker.core.quota import Lane
from broker.store.postgres.errors import store_error
from broker.store.postgres.pool import ConnectionPool, Session
from broker.store.postgres.schema import (
    OWN_COLUMNS,
    VERSION,
    missing_columns,
    missing_rights,
    newer,
    not_allowed,
    pending,
    refuse_pooling,
    version,
)
from broker.store.rows import ACCOUNT_COLUMNS, FARTHEST, oddity

NAME = "check"
_LANES = ", ".join(f"'{lane}'" for lane in Lane)
_ODD_CALLS = f"""select count(*) as odd from token_broker.calls where lane not in ({_LANES})
 or lane is null or cost is null or forced is null or at is null
 or not abs(at) < {FARTHEST:g}"""  # noqa: S608 -- of constants
_MAY_CREATE = "select has_database_privilege(current_database(), 'create') as is_allowed"
# What PostgreSQL demands of who alters a table: to be its owner, or in its owner's role.
_MAY_CHANGE = """select bool_and(pg_has_role(relowner, 'usage')) as is_allowed from pg_class
 where relnamespace = 'token_broker'::regnamespace and relkind = 'r'"""


async def inspect(url: str) -> list[str]:
    """Return what is wrong, as sentences.

    Nothing is where the store is good, or where the first broker can make it.
    """
    try:
        pool = ConnectionPool(url)
        await refuse_pooling(pool, NAME)
        async with (await pool.connect(NAME)).connection as connection:
            session = Session(connection)
            why = await _look(session)
            return [why] if why else [odd async for odd in _oddities(session)]
    except (StoreRefused, StoreBusy, StoreError) as why:
        return [str(why)]
    except (psycopg.Error, OSError) as error:
        return [str(store_error(error))]


async def _look(session: Session) -> str:
    found = await version(session)
    if found > VERSION:
        return newer(found)
    if found == VERSION:
        return await missing_columns(session) or await missing_rights(session)
    (row,) = await session.run(_MAY_CREATE if found == 0 else _MAY_CHANGE)
    return "" if row["is_allowed"] else not_allowed(pending(found)[0])


async def _oddities(session: Session) -> AsyncIterator[str]:
    """Yield what no broker writes, as sentences."""
    if await version(session) != VERSION:
        return
    for row in await session.run("select * from token_broker.accounts"):
        if why := oddity(row, {**OWN_COLUMNS, **ACCOUNT_COLUMNS}):
            yield why
    (row,) = await session.run(_ODD_CALLS)
    if row["odd"]:
        yield (
            f"{row['odd']} row(s) of the table calls hold what token-broker does not write: delete"
            " them, or restore a backup"
        )
