"""How instants are put from the database's clock on the caller's steady clock, and back.

Everything in the database is written on the database's clock. It said `db` at some time between
`sent` and `got`, as the caller's clock has it. What is read is put on the caller's clock as though
the database had answered at `sent`, what is written as though at `got`. So a slow answer makes
tokens look older than they are, and never younger:

    caller:    sent=100.0 ......... got=100.4
    database:            db=5000
    read:      5000 is taken for 100.0
    written:   100.4 is taken for 5000, so 100.0 becomes 4999.6
"""

from dataclasses import dataclass

from broker.core.ports import Clock, StoreError
from broker.store.postgres.pool import NO_SESSION, Session


@dataclass(frozen=True, slots=True)
class ClockSample:
    """One reading of the database's clock, within a transaction.

    `db` is in unix seconds, `sent` and `got` are steady seconds of the caller's.
    """

    db: float
    sent: float
    got: float

    @classmethod
    async def take(cls, session: Session, clock: Clock) -> "ClockSample":
        """Ask the database what its clock shows.

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
        """The moment of the sample on the caller's clock, for decisions."""
        return self.sent

    @property
    def to_local(self) -> float:
        """What to add to an instant of the database's to have it on the caller's clock."""
        return self.sent - self.db

    @property
    def to_database(self) -> float:
        """What to add to an instant of the caller's to have it on the database's clock."""
        return self.db - self.got
