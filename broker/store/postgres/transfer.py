"""Moving into a database, in one transaction. Moving out needs only the store's own methods."""

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
    """Return of every account's row whose it is, and its token."""
    return await session.run(
        "select appid, endpoint, token from token_broker.accounts order by appid, endpoint"
    )


async def import_accounts(
    exports: Sequence[AccountExport], clock: Clock, seal: Seal, node: str, session: Session
) -> None:
    """Write all of it. Calls keep their numbers, and new numbers go on from the newest.

    Raises psycopg.Error.
    """
    sample = await ClockSample.take(session, clock)
    wall_minus_db = clock.wall() - sample.db
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
            {
                **call,
                **key,
                "epoch": credential.epoch,
                "at": call["wall_at"] - wall_minus_db,
                "node": node,
            }
            for call in export.calls
        ]
        await session.connection.cursor().executemany(_CALL, calls)
