"""Which store a configuration means: a file of this host, or a database that several share.

Only this module knows that there are two kinds.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

from broker.config.load import ConfigError
from broker.config.settings import StoreSettings
from broker.core.documents import DocumentStore
from broker.core.handouts import HandoutStore
from broker.core.ports import Store
from broker.store import transfer
from broker.store.encryption import Plain, Seal, Sealed
from broker.store.sqlite import check
from broker.store.sqlite.anchor import BootClock
from broker.store.sqlite.store import SqliteStore
from broker.store.transfer import Movable
from broker.system import log


class FullStore(Store, Movable, HandoutStore, DocumentStore, Protocol):
    """A store as both kinds are: what the daemon needs of it, and what `migrate` needs."""


@asynccontextmanager
async def store(settings: StoreSettings, clock: BootClock) -> AsyncIterator[FullStore]:
    """Open the store, and close it at the end.

    Raises StoreBusy, StoreRefused, StoreError, ConfigError.
    """
    opened = await _opened(settings, clock)
    try:
        yield opened
    finally:
        await opened.close()


async def move(source: StoreSettings, target: StoreSettings, clock: BootClock) -> tuple[int, int]:
    """Move everything from one to the other, while no broker runs on either (transfer.py).

    Return how many accounts and how many calls that were.

    Raises StoreBusy, StoreRefused, StoreError, ConfigError.
    """
    async with AsyncExitStack() as stack:
        both = []
        for settings in (source, target):
            both.append(await _opened(settings, clock, alone=True))
            stack.push_async_callback(both[-1].close)
        return await transfer.move(*both)


async def inspect(settings: StoreSettings) -> list[str]:
    """Return what is wrong with the store, as sentences; empty where it is good or not there yet.

    Nothing is changed, and a broker may run meanwhile.
    """
    if settings.path is None:
        _need_psycopg()
        from broker.store.postgres.check import (  # noqa: PLC0415
            inspect,
        )

        return await inspect(settings.url)
    return check.inspect(settings.path)


def warnings(settings: StoreSettings) -> list[str]:
    """Return what a person should know of a store that is good."""
    return [] if settings.path is None else check.warnings(settings.path)


async def _opened(settings: StoreSettings, clock: BootClock, *, alone: bool = False) -> FullStore:
    seal = _seal(settings)
    if settings.path is None:
        _need_psycopg()
        from broker.store.postgres.store import PostgresStore  # noqa: PLC0415 -- the same

        return await PostgresStore.open(settings.url, clock, seal, settings.node, alone=alone)
    opened = await SqliteStore.open(settings.path, clock, seal)
    if opened.set_aside:
        log.tell("store-set-aside", path=opened.set_aside)
    for path, mode in opened.corrected:
        log.tell("store-mode-corrected", path=str(path), was=f"{mode:o}")
    return opened


def _seal(settings: StoreSettings) -> Seal:
    key, previous = settings.encryption_key, settings.previous_encryption_key
    if key is None:
        return Plain()
    return Sealed(key.reveal(), None if previous is None else previous.reveal())


def _need_psycopg() -> None:
    try:
        import psycopg  # noqa: F401, PLC0415 -- the same
    except ImportError:  # the package is there, but not the C library that it needs
        raise ConfigError(
            ["store.url: psycopg cannot be loaded: pip install 'wechat-token-broker[postgres]'"]
        ) from None
