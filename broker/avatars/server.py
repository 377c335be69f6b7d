"""The companion as a server: what is plugged into what, from start to SIGTERM."""

import asyncio
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import structlog
from aiohttp import web

from broker.avatars import api
from broker.avatars import gallery as pages
from broker.avatars.circuit_breaker import TellEvent
from broker.avatars.companion import COMPANION, CompanionOptions, companion
from broker.avatars.gate import HostGate, front
from broker.system.clock import steady_clock

DRAIN_S: Final = 5.0  # for answers under way
LARGEST_BODY: Final = 1024  # nothing here takes one
WELL: Final = frozenset({"well-again"})

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
        middlewares=[front(HostGate(options.hosts), options.image_sources, _crashed)],
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
    options: CompanionOptions, sockets: Sequence[socket.socket], ready: Callable[[], None]
) -> None:
    """Answer on these listening sockets until SIGTERM or SIGINT; `ready` is called once it does."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    runner = web.AppRunner(
        create_app(options), access_log=None, handler_cancellation=True, shutdown_timeout=DRAIN_S
    )
    await runner.setup()
    try:
        for sock in sockets:
            await web.SockSite(runner, sock).start()
        ready()
        await stopped.wait()
    finally:
        await runner.cleanup()


def log(event: str, **facts: object) -> None:
    """One line per transition."""
    logger = structlog.get_logger()
    (logger.info if event in WELL else logger.warning)(
        event, **{name: fact for name, fact in facts.items() if fact != ""}
    )


def _crashed(route: str, error: Exception) -> None:
    structlog.get_logger().error("request-crashed", route=route, exc_info=error)
