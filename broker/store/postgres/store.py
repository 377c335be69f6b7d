"""The store on PostgreSQL: each method is one transaction, under the lock of the account's row.

A StoreError may mean that nobody knows whether the transaction is committed, where the connection
broke during COMMIT. Each method says why that is safe.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

import psycopg

from broker.core.credential import Account, Credential
from broker.core.documents import Rewrite
from broker.core.handouts import Handout
from broker.core.ports import (
    Change,
    Clock,
    Decide,
    Denied,
    Grant,
    Held,
    Node,
    OnStoreChanged,
    StoreBusy,
    StoreError,
    StoreRefused,
    Versions,
)
from broker.store.encryption import Plain, Seal
from broker.store.postgres import schema, side_tables, transfer
from broker.store.postgres.account_rows import AccountRows
from broker.store.postgres.errors import store_error
from broker.store.postgres.listener import Listener
from broker.store.postgres.lost_commits import LostCommits
from broker.store.postgres.pool import ConnectionPool, Session
from broker.store.rows import account_of
from broker.store.transfer import AccountExport

T = TypeVar("T")

TRIES_AGAIN_S = 1.0  # after the database could not be reached: a thousand apps may ask


class PostgresStore:
    """A :class:`broker.core.ports.Store` in a database that several brokers share.

    Open it with :meth:`open`.
    """

    sole_owner = False
    rows = AccountRows  # what a transaction does; tests that take something away put another here

    def __init__(
        self, url: str, clock: Clock, seal: Seal, node: str, *, alone: bool = False
    ) -> None:
        self._pool = ConnectionPool(url, alone=alone)
        self._clock = clock
        self._seal = seal
        self._sender = secrets.token_hex(8)
        self._lost_commits = LostCommits()
        self._listener = Listener(self._pool, node, self._sender)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._readying = asyncio.Lock()
        self._is_ready = False
        self._unready = ""  # why it is not ready, as was found last
        self._tries_at = 0.0  # when the loop's clock shows that, it is tried again

    @classmethod
    async def open(
        cls,
        url: str,
        clock: Clock,
        seal: Seal | None = None,
        node: str = "broker",
        *,
        alone: bool = False,
    ) -> "PostgresStore":
        """Reach the database, create or migrate the tables.

        Where it cannot be reached, the store is open all the same: each method tries again, and
        `last_error` says why it could not. With `alone` the database is ours while no broker runs,
        and then StoreError is raised. Raises StoreRefused and StoreBusy.
        """
        store = cls(url, clock, seal or Plain(), node, alone=alone)
        try:
            await store._make_ready()
        except StoreError:
            if alone:
                await store.close()
                raise
        except BaseException:
            await store.close()
            raise
        return store

    async def _make_ready(self) -> None:
        """Look at the database and its tables, once; again where that failed, at most each second.

        Raises StoreRefused, StoreBusy, StoreError.
        """
        async with self._readying:
            now = asyncio.get_running_loop().time()
            if self._is_ready:
                return
            if now < self._tries_at:
                raise StoreError(self._unready)
            name = self._listener.name
            try:
                await schema.refuse_pooling(self._pool, name)
                self._pool.keep(await self._pool.connect(name))  # StoreBusy is said here
                await schema.ensure(self._pool, name)
            except (psycopg.Error, OSError) as error:
                failure = store_error(error)
            except StoreError as error:
                failure = error
            else:
                self._is_ready, self._unready = True, ""
                return
            self._unready, self._tries_at = str(failure), now + TRIES_AGAIN_S
            raise failure from None

    @property
    def last_error(self) -> str | None:
        """See :class:`broker.core.ports.Store`."""
        return self._listener.last_error or self._unready or None

    @property
    def node(self) -> str:
        """See :class:`broker.core.ports.Store`. Another name than configured if that is taken."""
        return self._listener.name

    @property
    def nodes(self) -> tuple[Node, ...]:
        """See :class:`broker.core.ports.Store`."""
        return tuple(self._listener.nodes)

    def watch(self, on_store_changed: OnStoreChanged, versions: Versions) -> None:
        """See :class:`broker.core.ports.Store`."""
        self._listener.start(on_store_changed, versions)

    async def load(self, account: Account) -> Held:
        """See :class:`broker.core.ports.Store`.

        It writes only where the database has lost something. That is found again the next time,
        whether it was written or not.
        """
        return await self._run(account, lambda rows: rows.load())

    async def reserve(self, account: Account, decide: Decide) -> Grant | Denied:
        """See :class:`broker.core.ports.Store`.

        Where nobody knows, no call is made. An open reservation may stand there then: it counts as
        spent, and whoever meets it when its lease is over closes it as abandoned.
        """
        granted = await self._run(account, lambda rows: rows.reserve(decide))
        if isinstance(granted, Grant):
            # Only after the commit: a number that was rolled back is given to another call.
            its_epoch = {
                "appid": account.id,
                "endpoint": account.endpoint.value,
                "epoch": granted.credential.epoch,
            }
            self._lost_commits.remember(its_epoch, granted.call)
        return granted

    async def settle(
        self,
        account: Account,
        grant: Grant,
        outcome: str,
        change: Change,
        *,
        emergency: bool = False,
    ) -> Credential:
        """See :class:`broker.core.ports.Store`.

        Where nobody knows, the caller settles again. The ledger's row tells whether it was settled;
        then nothing is changed a second time.
        """
        return await self._run(
            account, lambda rows: rows.settle(grant, outcome, change, emergency=emergency)
        )

    async def amend(self, account: Account, change: Change) -> tuple[Credential, bool]:
        """See :class:`broker.core.ports.Store`.

        Where nobody knows, the caller goes by its memory until it reads again, which the account's
        counter makes it do. `change` looks at what is held, so that applying it twice is harmless.
        """
        return await self._run(account, lambda rows: rows.amend(change))

    async def history(self, since: float, account: Account) -> list[dict[str, Any]]:
        """See :class:`broker.core.ports.Store`. It only reads."""
        return await self._run(account, lambda rows: rows.history(since))

    async def add_handouts(self, handouts: Sequence[Handout]) -> None:
        """See :class:`broker.core.handouts.HandoutStore`.

        Where nobody knows, the caller adds them again: numbers may then be too high, times not.
        """
        await self._beside(partial(side_tables.add_handouts, handouts))

    async def drop_handouts(self, before: float, most: int) -> None:
        """See :class:`broker.core.handouts.HandoutStore`. Done again, it does nothing."""
        await self._beside(partial(side_tables.drop_handouts, before, most))

    async def handouts(self, account: str, most: int) -> list[Handout]:
        """See :class:`broker.core.handouts.HandoutStore`. It only reads."""
        return await self._beside(partial(side_tables.handouts, account, most))

    async def rewrite(self, name: str, rewrite: Rewrite) -> None:
        """See :class:`broker.core.documents.DocumentStore`.

        Where nobody knows, `rewrite` is given what came of it the next time.
        """
        await self._beside(partial(side_tables.rewrite, name, rewrite))

    async def accounts(self) -> list[tuple[Account, bool]]:
        """See :class:`broker.store.transfer.Movable`."""
        rows = await self._pool.transaction(self._listener.name, transfer.accounts)
        return [(account_of(row), row["token"] is not None) for row in rows]

    async def import_accounts(self, exports: Sequence[AccountExport]) -> None:
        """See :class:`broker.store.transfer.Movable`."""
        work = partial(
            transfer.import_accounts, exports, self._clock, self._seal, self._listener.name
        )
        await self._pool.transaction(self._listener.name, work, transfer.DEADLINE_S)

    async def close(self) -> None:
        """See :class:`broker.core.ports.Store`."""
        await self._listener.stop()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._pool.close()

    async def _beside(self, work: Callable[[Session], Awaitable[T]]) -> T:
        """Work in a transaction on what is kept beside the accounts."""
        return await self._kept(self._pool.transaction(self._listener.name, work))

    async def _kept(self, work: Coroutine[Any, Any, T]) -> T:
        """See work to its end, even if the caller stops waiting for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _run(self, account: Account, work: Callable[[AccountRows], Awaitable[T]]) -> T:
        """Work in a transaction under the account's lock."""
        return await self._kept(self._transaction(account, work))

    async def _transaction(
        self, account: Account, work: Callable[[AccountRows], Awaitable[T]]
    ) -> T:
        changes = 0

        async def work_on(session: Session) -> T:
            nonlocal changes
            rows = self.rows(
                session,
                account,
                self._clock,
                self._seal,
                self._lost_commits,
                self._listener.name,
                self._sender,
            )
            done = await work(rows)
            changes = rows.changes
            return done

        try:
            await self._make_ready()
            done = await self._pool.transaction(self._listener.name, work_on)
        except (StoreBusy, StoreRefused) as error:
            raise StoreError(str(error)) from None
        if changes:
            self._listener.note_counter(account.id, account.endpoint.value, changes)
        return done
