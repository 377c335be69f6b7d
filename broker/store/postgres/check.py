"""What `token-broker check` asks of a database: is it there, may we in, are the tables ours.

It changes nothing.
"""

import psycopg

from broker.core.ports import StoreBusy, StoreError, StoreRefused
from broker.store.postgres.errors import store_error
from broker.store.postgres.pool import ConnectionPool, Session
from broker.store.postgres.schema import (
    VERSION,
    missing_rights,
    newer,
    not_allowed,
    pending,
    refuse_pooling,
    version,
)

NAME = "check"
_MAY_CREATE = "select has_database_privilege(current_database(), 'create') as is_allowed"
# What PostgreSQL demands of who alters a table: to be its owner, or in its owner's role.
_MAY_CHANGE = """select bool_and(pg_has_role(relowner, 'usage')) as is_allowed from pg_class
 where relnamespace = 'token_broker'::regnamespace and relkind = 'r'"""


async def inspect(url: str) -> list[str]:
    """What is wrong, as sentences; empty where the store is good, or can be made by the first broker."""
    try:
        pool = ConnectionPool(url)
        await refuse_pooling(pool, NAME)
        async with (await pool.connect(NAME)).connection as connection:
            return [why for why in [await _look(Session(connection))] if why]
    except (StoreRefused, StoreBusy, StoreError) as why:
        return [str(why)]
    except (psycopg.Error, OSError) as error:
        return [str(store_error(error))]


async def _look(session: Session) -> str:
    found = await version(session)
    if found > VERSION:
        return newer(found)
    if found == VERSION:
        return await missing_rights(session)
    (row,) = await session.run(_MAY_CREATE if found == 0 else _MAY_CHANGE)
    return "" if row["is_allowed"] else not_allowed(pending(found)[0])
