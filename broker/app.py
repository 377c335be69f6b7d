"""The wiring: what is plugged into what. Start-up is a list of contexts, shutdown its reverse."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from aiohttp import web

from broker import __version__, log, systemd
from broker.clock import SystemClock
from broker.config import Settings
from broker.core.ports import Witness
from broker.flight import Tools
from broker.listen import listeners
from broker.roster import Roster
from broker.schedule import every
from broker.sqlite import SqliteStore
from broker.web.api import Edge
from broker.web.gate import Client, Gate
from broker.web.metrics import Metrics
from broker.web.server import application
from broker.wechat import WeChat

CALLS_AT_ONCE: Final = 16  # to WeChat, over all apps
PATIENCE_SLACK_S: Final = 2.0  # beyond a call's timeout: a waiter hears of its outcome
DRAIN_S: Final = 5.0  # for answers under way when stopping


async def serve(settings: Settings) -> None:
    """Run the daemon until SIGTERM or SIGINT.

    Raises StoreBusy, StoreRefused, StoreError and OSError (a port that is taken) at start-up only.
    """
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with daemon(settings) as addresses:
        print(f"token-broker {__version__} serves on {', '.join(addresses)}", flush=True)  # noqa: T201 -- the contract's line
        systemd.notify("READY=1")
        await stopped.wait()
        systemd.notify("STOPPING=1")


@asynccontextmanager
async def daemon(settings: Settings) -> AsyncIterator[Sequence[str]]:
    """The running daemon, as its addresses."""
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(_store(settings))
        # Before the first look: a daemon that cannot serve must not spend a call.
        bound = await stack.enter_async_context(listeners(settings.server.listen, systemd.inherited_sockets()))
        upstream = await stack.enter_async_context(WeChat.connect(settings.wechat.api_base, settings.wechat.timeout))
        tools = Tools(
            store=store,
            upstream=upstream,
            clock=SystemClock(),
            policy=settings.policy,
            slots=asyncio.Semaphore(CALLS_AT_ONCE),
            witness=_witness(metrics),
            call_timeout_s=settings.wechat.timeout,
        )
        metrics.roster = roster = Roster(list(settings.apps.values()), tools)
        await roster.start()
        stack.push_async_callback(roster.landed)
        await stack.enter_async_context(every(settings.policy.tick, roster.tick))
        edge = Edge(roster, settings.wechat.timeout + PATIENCE_SLACK_S)
        app = application(edge, gate(settings), metrics, log.crash)
        await stack.enter_async_context(_listening(app, bound))
        stack.callback(roster.halt)
        yield [address for address, _ in bound]


def gate(settings: Settings) -> Gate:
    """Who gets in, by the configuration."""
    keys = {client.key_sha256: Client(client.name, client.scopes, client.apps) for client in settings.clients.values()}
    bound = [address.host for address in settings.server.listen if address.kind == "tcp"]
    return Gate(keys, [*bound, *settings.server.allowed_hosts])


def _witness(metrics: Metrics) -> Witness:
    def both(event: str, app: str, **facts: object) -> None:
        metrics.witness(event, app, **facts)
        log.witness(event, app, **facts)

    return both


@asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(settings.store.path, SystemClock())
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def _listening(app: web.Application, bound: Sequence[tuple[str, socket.socket]]) -> AsyncIterator[None]:
    # A client that hangs up ends its handler; what must go on (a flight) is a task of its keeper's.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=DRAIN_S)
    await runner.setup()
    try:
        for _, sock in bound:
            await web.SockSite(runner, sock, backlog=1024).start()
        yield
    finally:
        await runner.cleanup()
