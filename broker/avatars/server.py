"""The companion as a server: what is plugged into what, from start to SIGTERM."""

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import structlog
from aiohttp import web

from broker.avatars import api
from broker.avatars import gallery as pages
from broker.avatars.circuit_breaker import TellEvent
from broker.avatars.companion import COMPANION, Companion, CompanionOptions, companion
from broker.avatars.consent.limits import bounded, end_old_connections
from broker.avatars.consent.site import create_site
from broker.avatars.gate import HostGate, front, policy
from broker.system.clock import steady_clock

DRAIN_S: Final = 5.0  # for answers under way
LARGEST_BODY: Final = 1024  # nothing here takes one
WELL: Final = frozenset({"well-again", "consent-store-well-again"})

Seconds = Callable[[], float]


def create_app(
    options: CompanionOptions,
    clock: Seconds | None = None,
    wall: Seconds = time.time,
    tell: TellEvent | None = None,
) -> web.Application:
    """Build the application.

    `clock` tells the seconds that ages are measured in, `tell` is told of transitions.
    """
    app = web.Application(
        middlewares=[front(HostGate(options.hosts), policy(options.image_sources), crashed)],
        client_max_size=LARGEST_BODY,
    )
    app.add_routes([*api.routes(), *pages.routes(proxy_images=options.proxy_images)])

    async def parts(app: web.Application) -> AsyncIterator[None]:
        async with companion(options, clock or steady_clock(), wall, tell or log) as built:
            app[COMPANION] = built
            yield

    app.cleanup_ctx.append(parts)
    return app


async def serve(
    options: CompanionOptions,
    sockets: Sequence[socket.socket],
    ready: Callable[[], None],
    public: Sequence[socket.socket] = (),
) -> None:
    """Answer on these listening sockets until SIGTERM or SIGINT; `ready` is called once it does.

    The page that asks for consent is on the `public` ones. Raises ConsentStoreRefused.
    """
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    app = create_app(options)
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=True, shutdown_timeout=DRAIN_S
    )
    await runner.setup()
    try:
        for sock in sockets:
            await web.SockSite(runner, sock).start()
        async with asking(app[COMPANION], public):
            ready()
            await stopped.wait()
    finally:
        await runner.cleanup()


@asynccontextmanager
async def asking(companion: Companion, sockets: Sequence[socket.socket]) -> AsyncIterator[None]:
    """Serve the page that asks for consent on these sockets, within its own limits."""
    if companion.options.consent is None or companion.consents is None:
        yield
        return
    site = create_site(companion, companion.options.consent, companion.consents, crashed)
    # A person who hangs up while WeChat is asked has agreed all the same: no handler_cancellation.
    runner = web.AppRunner(site, access_log=None, shutdown_timeout=DRAIN_S)
    await runner.setup()
    assert runner.server is not None  # noqa: S101 -- set up just now
    factory = bounded(runner.server)
    reaper = asyncio.create_task(end_old_connections(runner.server))
    listening: list[asyncio.Server] = []
    try:
        listening += [await _listen(factory, sock) for sock in sockets]
        yield
    finally:
        for server in listening:
            server.close()
        reaper.cancel()
        await runner.cleanup()


async def _listen(factory: Callable[[], asyncio.Protocol], sock: socket.socket) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    if sock.family == socket.AF_UNIX:
        return await loop.create_unix_server(factory, sock=sock)
    return await loop.create_server(factory, sock=sock)


def log(event: str, **facts: object) -> None:
    """One line per transition."""
    logger = structlog.get_logger()
    (logger.info if event in WELL else logger.warning)(
        event, **{name: fact for name, fact in facts.items() if fact != ""}
    )


def crashed(route: str, error: Exception) -> None:
    """Tell of a bug, with its traceback."""
    structlog.get_logger().error("request-crashed", route=route, exc_info=error)
