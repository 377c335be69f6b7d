"""Hand-outs and documents in PostgreSQL: what is kept beside tokens and ledger."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from broker.core.documents import Rewrite
from broker.core.handouts import Handout
from broker.store.postgres.pool import Session

_ADD: Final = """insert into token_broker.handouts as kept
 (client, account, version, count, first_at, last_at, held, held_at, seen_at)
 values (%(client)s, %(account)s, %(version)s, %(count)s, %(first_at)s, %(last_at)s,
 %(held)s, %(held_at)s, %(seen_at)s)
 on conflict (client, account, version) do update set
 count = kept.count + excluded.count, held = kept.held + excluded.held,
 first_at = least(kept.first_at, excluded.first_at),
 last_at = greatest(kept.last_at, excluded.last_at),
 held_at = greatest(kept.held_at, excluded.held_at),
 seen_at = greatest(kept.seen_at, excluded.seen_at)"""
_READ: Final = """select client, account, version, count, first_at, last_at, held, held_at
 from token_broker.handouts where account = %s order by seen_at desc, client limit %s"""
_DROP_OLD: Final = "delete from token_broker.handouts where seen_at < %s"
_DROP_REST: Final = """delete from token_broker.handouts where (client, account, version) in
 (select client, account, version from token_broker.handouts order by seen_at desc offset %s)"""
# The row is made first, so that there is one to lock: two brokers that begin at once take turns.
_MAKE: Final = """insert into token_broker.documents values (%s, '') on conflict do nothing"""
_LOCK: Final = """select value, extract(epoch from clock_timestamp())::double precision as now
 from token_broker.documents where name = %s for update"""
_WRITE: Final = "update token_broker.documents set value = %s where name = %s"


async def add_handouts(handouts: Sequence[Handout], session: Session) -> None:
    """See :class:`broker.core.handouts.HandoutStore`."""
    # In one order: two brokers that lock the same rows in another order would deadlock.
    rows = [
        {**asdict(one), "seen_at": one.seen_at} for one in sorted(handouts, key=lambda one: one.key)
    ]
    await session.connection.cursor().executemany(_ADD, rows)


async def drop_handouts(before: float, most: int, session: Session) -> None:
    """See :class:`broker.core.handouts.HandoutStore`."""
    await session.run(_DROP_OLD, (before,))
    await session.run(_DROP_REST, (most,))


async def handouts(account: str, most: int, session: Session) -> list[Handout]:
    """See :class:`broker.core.handouts.HandoutStore`."""
    return [Handout(**row) for row in await session.run(_READ, (account, most))]


async def rewrite(name: str, change: Rewrite, session: Session) -> None:
    """See :class:`broker.core.documents.DocumentStore`."""
    await session.run(_MAKE, (name,))
    (row,) = await session.run(_LOCK, (name,))
    new = change(row["value"] or None, row["now"])
    if new is not None:
        await session.run(_WRITE, (new, name))
