"""The shared store on a manual clock.

PostgreSQL is real; its time and timeline are what a test says.
"""

from typing import Any, Protocol

from psycopg.rows import DictRow

from broker.core.ports import Clock
from broker.store.encryption import Plain, Seal
from broker.store.postgres.account_rows import _TIMELINE
from broker.store.postgres.listener import Listener
from broker.store.postgres.pool import ConnectionPool, Session
from broker.store.postgres.store import PostgresStore


class ToldTwice(Clock, Protocol):
    """A host's clock that also tells what time it is at the database, in unix seconds."""

    def database(self) -> float:
        """Return that time."""

    def timeline(self) -> int:
        """The number of the server's timeline.

        Each promotion of a standby begins another.
        """


class ToldSession(Session):
    """A connection whose statements about the time get the manual clock's time with them."""

    clock: ToldTwice

    async def run(self, statement: str, row: Any = ()) -> list[DictRow]:
        told = statement.replace("clock_timestamp()", f"to_timestamp({self.clock.database():.6f})")
        told = told.replace(_TIMELINE, f"'{self.clock.timeline():08X}'")
        return await super().run(told, row)


class ToldLink(ConnectionPool):
    def __init__(self, url: str, clock: ToldTwice) -> None:
        super().__init__(url)
        self.clock = clock

    async def bare(self, name: str) -> Session:
        session = await super().bare(name)
        told = ToldSession(session.connection, warnings=session.warnings)
        told.clock = self.clock
        return told


class ToldStore(PostgresStore):
    """The real store.

    `known`: each account's counter of changes, as far as this process has heard.
    """

    def __init__(
        self,
        url: str,
        clock: ToldTwice,
        seal: Seal | None = None,
        node: str = "n",
        *,
        alone: bool = False,
    ) -> None:
        super().__init__(url, clock, seal or Plain(), node, alone=alone)
        self._pool = ToldLink(url, clock)
        self._listener = Listener(self._pool, node, self._sender)

    @property
    def known(self) -> dict[tuple[str, str], int]:
        return self._listener._known
