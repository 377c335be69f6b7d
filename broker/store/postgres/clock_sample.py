"""Between two clocks: the database's, on which everything is written, and the caller's steady one.

The database said `db` at some time between `sent` and `got`. What is read is put on the caller's
clock as though it had been at `sent`, what is written as though at `got`: so a slow answer makes
tokens look older than they are, never younger.
"""

from dataclasses import dataclass

from broker.core.ports import Clock, StoreError
from broker.store.postgres.pool import NO_SESSION, Session


@dataclass(frozen=True, slots=True)
class ClockSample:
    """One reading of the clock in a transaction: unix seconds by the database, steady seconds before and after it was asked."""

    db: float
    sent: float
    got: float

    @classmethod
    async def take(cls, session: Session, clock: Clock) -> "ClockSample":
        """Ask the database.

        Raises psycopg.Error, and StoreError where a pooler gave us somebody else's session.
        """
        sent = clock.now()
        (row,) = await session.run(
            "select extract(epoch from clock_timestamp())::float8 as db, pg_backend_pid() as pid"
        )
        if row["pid"] != session.pid:
            raise StoreError(NO_SESSION)
        return cls(row["db"], sent, clock.now())

    @property
    def now(self) -> float:
        """The sample on the caller's clock, for decisions."""
        return self.sent

    @property
    def to_local(self) -> float:
        """What to add to an instant of the database's to have it on the caller's clock."""
        return self.sent - self.db

    @property
    def to_database(self) -> float:
        """What to add to an instant of the caller's to have it on the database's clock."""
        return self.db - self.got
