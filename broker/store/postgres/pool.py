"""Connections to PostgreSQL: few, made when needed, and never waited for longer than a few seconds.

It is a pool of our own rather than psycopg_pool. That one reconnects in the background at growing
intervals, and all it tells a caller is that it has no connection. Here the caller meets the fault
itself, and the first to ask after the fault was cured has a connection.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow, dict_row

from broker.core.ports import StoreBusy, StoreError, StoreRefused
from broker.store.postgres.errors import store_error

T = TypeVar("T")

# Beside the listener's. Ten brokers fit into PostgreSQL's own default of 100.
MOST_CONNECTIONS: Final = 4
CONNECT_S: Final = 2  # per host
DEADLINE_S: Final = 5.0  # of a transaction, whatever the server does
LOCKS: Final = 0x746B6272  # the first half of every advisory lock of ours
# Every connection of a broker holds it, shared: whoever has it alone knows that none runs.
RUNS: Final = 1
SCHEMA: Final = 2  # held by whoever creates or migrates the tables
NO_SESSION: Final = (
    "store.url leads to a pooler that changes the server's session between transactions (PgBouncer:"
    " pool_mode = session is needed, or name the server itself)"
)
_DEFAULTS: Final = {
    "target_session_attrs": "read-write",
    "connect_timeout": str(CONNECT_S),
    "keepalives_idle": "3",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
}
# The server ends a transaction that a stopped process leaves open (2 s) before those who wait for
# its row give up (3 s). It sends keepalives, so that the locks of a host that vanished are not held
# for hours. All this is set by statement, since poolers take no such options.
_SESSION: Final = {
    "idle_in_transaction_session_timeout": "2s",
    "lock_timeout": "3s",
    "statement_timeout": "4s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "search_path": "pg_catalog",
}
_SET: Final = ", ".join(
    f"set_config('{name}', '{value}', false)" for name, value in _SESSION.items()
)
# A database may be set to lose what it has just committed; a reservation must stay.
_DURABLE: Final = """set_config('synchronous_commit', case
 when current_setting('synchronous_commit') in ('off', 'local', 'remote_write') then 'on'
 else current_setting('synchronous_commit') end, false)"""


@dataclass
class Session:
    """A connection in use; `pid` is the server process behind it, `is_cut` that we cut it."""

    connection: psycopg.AsyncConnection[DictRow]
    pid: int = 0
    is_cut: bool = False
    warnings: list[str] = field(default_factory=list)

    async def run(self, statement: str, row: Any = ()) -> list[DictRow]:
        """Run a statement and return its rows. Raises psycopg.Error."""
        cursor = await self.connection.execute(statement.encode(), row)
        return await cursor.fetchall() if cursor.description else []

    def cut(self) -> None:
        """Make whatever waits for the server fail at once, even if the network drops everything."""
        self.is_cut = True
        with (
            suppress(OSError, psycopg.Error),
            socket.socket(fileno=os.dup(self.connection.fileno())) as sock,
        ):
            sock.shutdown(socket.SHUT_RDWR)

    @asynccontextmanager
    async def bounded(self, seconds: float) -> AsyncIterator[None]:
        """Cut the connection, and raise TimeoutError, where the work takes longer."""
        timer = asyncio.get_running_loop().call_later(seconds, self.cut)
        try:
            yield
        except (psycopg.Error, OSError):
            if self.is_cut:
                raise TimeoutError from None
            raise
        finally:
            timer.cancel()


class ConnectionPool:
    """The connections to one database.

    With `alone` there is one, and no broker may run meanwhile. Raises StoreRefused where the URL
    names no database.
    """

    def __init__(self, url: str, *, alone: bool = False) -> None:
        try:
            params: dict[str, Any] = {**_DEFAULTS, **conninfo_to_dict(url)}
        except psycopg.ProgrammingError:
            raise StoreRefused("store.url is not one that PostgreSQL's libpq understands") from None
        self._where = make_conninfo(**params)
        hosts = str(params.get("host", "")).count(",") + 1
        self._patience_s = CONNECT_S * hosts + 1.0
        self._idle: list[Session] = []
        self._slots = asyncio.Semaphore(1 if alone else MOST_CONNECTIONS)
        self._prepare = _prepare("" if alone else "_shared")

    async def connect(self, name: str) -> Session:
        """Make a connection as `name`, ready for use.

        Raises psycopg.Error, TimeoutError, and StoreBusy where the store is being moved.
        """
        session = await self.bare(name)
        try:
            async with session.bounded(DEADLINE_S):
                (row,) = await session.run(self._prepare)
        except BaseException:
            await session.connection.close()
            raise
        if not row["is_free"]:
            await session.connection.close()
            raise StoreBusy(
                "the store is being moved or migrated: start the broker when that is done"
            )
        session.pid = row["pid"]
        return session

    async def bare(self, name: str) -> Session:
        """Make a connection and set nothing on it. Raises psycopg.Error and TimeoutError."""
        where = make_conninfo(self._where, application_name=f"token-broker {name}")
        async with asyncio.timeout(self._patience_s):
            connection = await psycopg.AsyncConnection.connect(
                where, autocommit=True, row_factory=dict_row
            )
        session = Session(connection)
        connection.add_notice_handler(
            lambda notice: session.warnings.append(notice.severity_nonlocalized or "")
        )
        return session

    async def transaction(
        self, name: str, work: Callable[[Session], Awaitable[T]], deadline_s: float = DEADLINE_S
    ) -> T:
        """Do the work in one READ COMMITTED transaction.

        Raises StoreError: then nothing is committed, or nobody knows, where the connection was cut
        during COMMIT. What that means for each caller is written at the store's methods.
        """
        try:
            async with asyncio.timeout(self._patience_s):
                await self._slots.acquire()
        except TimeoutError as error:
            raise store_error(error) from None
        try:
            session = await self._begun(name)
            try:
                async with session.bounded(deadline_s):
                    done = await work(session)
                    await _commit(session)
            except BaseException:
                await session.connection.close()  # also rolls back
                raise
        except (psycopg.Error, OSError) as error:
            raise store_error(error) from None
        except StoreBusy as error:
            raise StoreError(str(error)) from None
        else:
            self.keep(session)
            return done
        finally:
            self._slots.release()

    async def _begun(self, name: str) -> Session:
        """Return a session in a transaction.

        An idle one that broke meanwhile is passed over: nothing was asked of it yet.
        """
        while self._idle:
            session = self._idle.pop()
            try:
                await _begin(session)
            except (psycopg.Error, OSError):
                await session.connection.close()
            else:
                return session
        session = await self.connect(name)
        await _begin(session)
        return session

    def keep(self, session: Session) -> None:
        """Keep a session for whoever needs one next."""
        self._idle.append(session)

    async def close(self) -> None:
        """Close the connections that are not in use."""
        while self._idle:
            await self._idle.pop().connection.close()


def _prepare(shared: str) -> str:
    return (
        f"select pg_backend_pid() as pid, {_SET}, {_DURABLE}, pg_try_advisory_lock{shared}({LOCKS},"
        f" {RUNS}) as is_free"
    )


async def _begin(session: Session) -> None:
    async with session.bounded(DEADLINE_S):
        await session.run("begin isolation level read committed read write")


async def _commit(session: Session) -> None:
    """Commit, and see that it is durable.

    To PostgreSQL it is only a warning where a synchronous standby did not confirm.
    """
    session.warnings.clear()
    await session.run("commit")
    if "WARNING" in session.warnings:
        raise StoreError("PostgreSQL: the synchronous standby did not confirm what was committed")
