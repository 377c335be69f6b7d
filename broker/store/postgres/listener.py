"""The connection that listens for what other brokers change.

With each heartbeat it writes that this broker lives and what it serves, and reads the same of the
others. A notification is only a hint. What counts are the counters in the accounts' rows: each
heartbeat compares them with those we know, so that a change whose notification was missed is found.
After a new connection any account may have changed.
"""

import asyncio
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import psycopg

from broker.core.ports import Node, OnStoreChanged, StoreBusy, StoreError, Versions
from broker.store.postgres.errors import store_error
from broker.store.postgres.notifications import CHANNEL, Notification
from broker.store.postgres.pool import LOCKS, NO_SESSION, ConnectionPool, Session

HEARTBEAT_S: Final = 2.0
ANSWERS_WITHIN_S: Final = 3.0
LONGEST_PAUSE_S: Final = 2.0  # between two attempts to connect
FORGOTTEN_AFTER_S: Final = 86_400.0
NAMES: Final = LOCKS + 1  # the first half of the locks on nodes' names

_BEAT: Final = """insert into token_broker.nodes as it (name, seen_at, versions)
 values (%(name)s, extract(epoch from clock_timestamp()), %(versions)s)
 on conflict (name) do update set seen_at = excluded.seen_at, versions = excluded.versions,
 notified_at = case when %(was_notified)s then excluded.seen_at else it.notified_at end"""
_LOOK: Final = """select name, seen_at, notified_at, versions, pg_backend_pid() as pid,
 (select coalesce(sum(changes), 0)::bigint from token_broker.accounts) as changes
 from token_broker.nodes order by name"""
_FORGET: Final = (
    "delete from token_broker.nodes where seen_at < extract(epoch from clock_timestamp()) - %s"
)
_COUNTERS: Final = "select appid, endpoint, changes from token_broker.accounts"


class Listener:
    """Runs from :meth:`start` to :meth:`stop`.

    `name` may get a number, where a living broker has it already.
    """

    def __init__(self, pool: ConnectionPool, name: str, sender: str) -> None:
        self.name = name
        self.last_error: str | None = None
        self.nodes: Sequence[Node] = ()
        self._pool = pool
        self._wanted = name
        self._sender = sender
        # Each account's counter, as far as we were told of it or raised it ourselves.
        self._known: dict[tuple[str, str], int] = {}
        self._was_notified = False
        self._task: asyncio.Task[None] | None = None
        self._on_store_changed: OnStoreChanged
        self._versions: Versions

    def start(self, on_store_changed: OnStoreChanged, versions: Versions) -> None:
        """Listen from now on."""
        self._on_store_changed, self._versions = on_store_changed, versions
        self._task = asyncio.create_task(self._live(), name="listener")

    async def stop(self) -> None:
        """Listen no more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def note_counter(self, appid: str, endpoint: str, changes: int) -> None:
        """Know an account's counter as it is after a change of our own, or one we were told of."""
        self._known[appid, endpoint] = max(changes, self._known.get((appid, endpoint), 0))

    async def _live(self) -> None:
        pause = LONGEST_PAUSE_S / 16
        while True:
            try:
                session = await self._pool.connect(self.name)
                try:
                    await self._begin(session)
                    pause = LONGEST_PAUSE_S / 16
                    while True:
                        await self._beat(session)
                        await self._listen(session)
                finally:
                    await session.connection.close()
            except (psycopg.Error, OSError, TimeoutError) as error:
                self.last_error = str(store_error(error))
            except (StoreBusy, StoreError) as error:
                self.last_error = str(error)
            # A bug here must not end the daemon.
            except Exception as error:  # noqa: BLE001
                self.last_error = f"the listener failed: {type(error).__name__}"
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)

    async def _begin(self, session: Session) -> None:
        """LISTEN first, then read the counters: we are told of what changes between the two."""
        async with session.bounded(ANSWERS_WITHIN_S):
            await session.run(f"listen {CHANNEL}")
            await self._take_name(session)
            self._known = {
                (row["appid"], row["endpoint"]): row["changes"]
                for row in await session.run(_COUNTERS)
            }
        self.last_error = None
        self._on_store_changed(None)

    async def _take_name(self, session: Session) -> None:
        """Take a name that no living broker has, since two of one name would overwrite one row.

        Refusing to run because of a label would be worse.
        """
        number = 1
        while True:
            name = self._wanted if number == 1 else f"{self._wanted}-{number}"
            # It was ours before the connection broke, which the server may not know yet.
            if name == self.name and self.nodes:
                return
            asked = await session.run(
                "select pg_try_advisory_lock(%s, hashtext(%s)) as is_free", (NAMES, name)
            )
            if asked[0]["is_free"]:
                self.name = name
                return
            number += 1

    async def _beat(self, session: Session) -> None:
        """Write that we live and what we serve; read who else does, and what we were not told."""
        mine = {
            "name": self.name,
            "versions": json.dumps(dict(self._versions())),
            "was_notified": self._was_notified,
        }
        async with session.bounded(ANSWERS_WITHIN_S):
            await session.run(_BEAT, mine)
            await session.run(_FORGET, (FORGOTTEN_AFTER_S,))
            rows = await session.run(_LOOK)
            if any(row["pid"] != session.pid for row in rows):
                raise StoreError(NO_SESSION)
            self._was_notified = False
            self.nodes = [node for node in map(_node, rows) if node is not None]
            if rows and rows[0]["changes"] != sum(self._known.values()):
                await self._find_missed(session)

    async def _find_missed(self, session: Session) -> None:
        """Tell of each account whose counter is not the one we know, and know those from now on."""
        known, self._known = self._known, {}
        for row in await session.run(_COUNTERS):
            key = row["appid"], row["endpoint"]
            self._known[key] = row["changes"]
            if known.get(key) != row["changes"]:
                self._on_store_changed(row["appid"])

    async def _listen(self, session: Session) -> None:
        """Act on notifications for a heartbeat's time; psycopg keeps those between two calls."""
        async for notify in session.connection.notifies(timeout=HEARTBEAT_S):
            self._notified(notify)

    def _notified(self, notify: psycopg.Notify) -> None:
        notification = Notification.read(notify.payload)
        if notification is None or notification.sender == self._sender:
            return
        self._was_notified = True
        self.note_counter(notification.appid, notification.endpoint, notification.changes)
        self._on_store_changed(notification.appid)


def _node(row: dict[str, Any]) -> Node | None:
    """Return a broker as its row tells, None where that is no row a broker writes."""
    try:
        versions = json.loads(row["versions"])
    except (ValueError, RecursionError):
        return None
    instants = (row["seen_at"], row["notified_at"] or 0.0)
    if not isinstance(versions, dict) or not all(map(math.isfinite, instants)):
        return None
    if not all(version is None or isinstance(version, str) for version in versions.values()):
        return None
    return Node(row["name"], row["seen_at"], row["notified_at"], versions)
