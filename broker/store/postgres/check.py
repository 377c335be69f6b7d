"""What `token-broker check` asks of a database: is it there, may we in, are the tables ours.

It changes nothing.
"""

import psycopg

from broker.core.ports import StoreBusy, StoreError, StoreRefused
from broker.store.postgres.errors import store_error
from broker.store.postgres.pool import ConnectionPool, Session
from broker.store.postgres.schema import (
    MIGRATIONS,
    missing_rights,
    newer,
    refuse_pooling,
    uncreated,
    version,
)

NAME = "check"


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
    if found > len(MIGRATIONS):
        return newer(found)
    if found == len(MIGRATIONS):
        return await missing_rights(session)
    (row,) = await session.run(
        "select has_database_privilege(current_database(), 'create') as may_create"
    )
    return "" if row["may_create"] else uncreated(MIGRATIONS[found])
