"""Moving into a database: everything in one transaction.

What it takes to move out is the store's own.
"""

from collections.abc import Sequence
from typing import Any, Final

from broker.core.ports import Clock
from broker.store.encryption import Seal
from broker.store.postgres.clock_sample import ClockSample
from broker.store.postgres.pool import Session
from broker.store.rows import MOVED_COLUMNS, account_row, key_of
from broker.store.transfer import AccountExport

DEADLINE_S: Final = 600.0  # a week of a thousand apps
_CALL_COLUMNS: Final = ("appid", "endpoint", "epoch", "id", *MOVED_COLUMNS, "at", "node")
_CALL: Final = f"""insert into token_broker.calls ({", ".join(_CALL_COLUMNS)})
 values ({", ".join(f"%({name})s" for name in _CALL_COLUMNS)})"""  # noqa: S608 -- of constants


async def accounts(session: Session) -> list[dict[str, Any]]:
    """Every account's row, as far as it tells whose it is and whether there is a token."""
    return await session.run(
        "select appid, endpoint, token from token_broker.accounts order by appid, endpoint"
    )


async def import_accounts(
    exports: Sequence[AccountExport], clock: Clock, seal: Seal, node: str, session: Session
) -> None:
    """Write all of it; calls keep their numbers, and numbers go on from the newest.

    Raises psycopg.Error.
    """
    sample = await ClockSample.take(session, clock)
    ahead = clock.wall() - sample.db
    for export in exports:
        key, credential = key_of(export.account), export.credential
        token_call = credential.token.call if credential.token else 0
        newest = max(
            [token_call, credential.reserved_call or 0, *(call["id"] for call in export.calls)]
        )
        row = {
            **account_row(credential, key, seal, sample.to_database),
            "epoch": credential.epoch,
            "calls": newest,
        }
        names = ", ".join(row)
        places = ", ".join(f"%({name})s" for name in row)
        # Columns of ours
        await session.run(f"insert into token_broker.accounts ({names}) values ({places})", row)  # noqa: S608
        calls = [
            {**call, **key, "epoch": credential.epoch, "at": call["wall_at"] - ahead, "node": node}
            for call in export.calls
        ]
        await session.connection.cursor().executemany(_CALL, calls)
