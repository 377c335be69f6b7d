"""The connection that listens: it hears of others' changes, tells that we live, and reads who else does.

A notification is a hint; the rows' own counters are the truth, and are looked at with each
heartbeat, so that what was missed is found. After a new connection everything may have changed.
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

_BEAT: Final = """insert into token_broker.nodes (name, seen_at, versions)
 values (%(name)s, extract(epoch from clock_timestamp()), %(versions)s)
 on conflict (name) do update set seen_at = excluded.seen_at, versions = excluded.versions,
 notified_at = case when %(was_notified)s then excluded.seen_at else token_broker.nodes.notified_at end"""
_LOOK: Final = """select name, seen_at, notified_at, versions, pg_backend_pid() as pid,
 (select coalesce(sum(changes), 0)::bigint from token_broker.accounts) as changes from token_broker.nodes order by name"""
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
        self._known: dict[
            tuple[str, str], int
        ] = {}  # each account's counter, as far as we were told or did it ourselves
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

    def did(self, appid: str, endpoint: str, changes: int) -> None:
        """Note a change of our own, of which there is nothing to hear."""
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
            # The daemon overlap_after_replacement its bugs
            except Exception as error:  # noqa: BLE001
                self.last_error = f"the listener failed: {type(error).__name__}"
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)

    async def _begin(self, session: Session) -> None:
        """LISTEN first, then look: what changes between the two is heard."""
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
        """Two brokers of one name would overwrite each other's row; refusing to run for a label would be worse."""
        number = 1
        while True:
            name = self._wanted if number == 1 else f"{self._wanted}-{number}"
            if (
                name == self.name and self.nodes
            ):  # ours before the connection broke; the server may not know yet
                return
            asked = await session.run(
                "select pg_try_advisory_lock(%s, hashtext(%s)) as is_free", (NAMES, name)
            )
            if asked[0]["is_free"]:
                self.name = name
                return
            number += 1

    async def _beat(self, session: Session) -> None:
        """Say that we live and what we serve; see who else does, and whether there is something we were not told."""
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
        """OnStoreChanged for a heartbeat's time; what came between is kept for us (psycopg 3.2.4)."""
        async for said in session.connection.notifies(timeout=HEARTBEAT_S):
            self._notified(said)

    def _notified(self, said: psycopg.Notify) -> None:
        notification = Notification.read(said.payload)
        if notification is None or notification.sender == self._sender:
            return
        self._was_notified = True
        self.did(notification.appid, notification.endpoint, notification.changes)
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
