"""The server's life: it accepts, it closes without turning anybody away, it probes itself.

Closing is what takes care. Sockets that systemd holds go on listening without us, so whoever is not
accepted yet waits for our successor; whoever is accepted gets an answer. A client that keeps its
connection is told `Connection: close` with its next answer, and has a moment to ask for it: closing
at once would meet requests that are on their way.
"""

import asyncio
import contextlib
import ctypes
import gc
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from aiohttp import web

from broker.web.connection.aiohttp_internals import GuardedSite
from broker.web.connection.connections import Connections
from broker.web.connection.fast_path import ResponseCache

FAREWELL_S: Final = 0.5  # for clients that keep their connection to ask once more
LOOK_S: Final = 0.02
DRAIN_S: Final = 5.0  # for answers under way
SWEEP_S: Final = 60.0
CROWD: Final = 1000  # connections that have left since the last sweep
UNBOUNDED_S: Final = 366 * 86400.0

KNOCK: Final = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def answering(app: web.Application) -> AsyncIterator[web.AppRunner]:
    """A server that answers, and at its end finishes the answers under way."""
    # A client that hangs up ends its handler. What must go on, a refresh, is a task of its
    # keeper's. Idle connections are ours to close: aiohttp does not see all of their requests.
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=DRAIN_S,
        keepalive_timeout=UNBOUNDED_S,
    )
    await runner.setup()
    try:
        yield runner
    finally:
        await runner.cleanup()


@asynccontextmanager
async def accepting(
    runner: web.AppRunner, sockets: Sequence[socket.socket], response_cache: ResponseCache
) -> AsyncIterator[None]:
    """Accept connections. At the end accept no more, and wait for those that are kept alive."""
    sweeping = asyncio.create_task(_sweep(response_cache.connections))
    try:
        for sock in sockets:
            is_unix = sock.family == socket.AF_UNIX
            guard = partial(response_cache.guard, is_unix=is_unix)
            await GuardedSite(runner, sock, guard).start()
        yield
    finally:
        sweeping.cancel()
        for site in runner.sites:
            await site.stop()
        await response_cache.end()
        await _farewell(response_cache.connections)
        response_cache.connections.close_the_rest()


async def _sweep(connections: Connections) -> None:
    """Close what is idle, for ever. After a crowd has left, return its memory to the system."""
    while True:
        await asyncio.sleep(SWEEP_S)
        connections.close_idle()
        if connections.left() > CROWD:
            await asyncio.to_thread(_return_memory)


def _return_memory() -> None:
    """Return free memory to the system: the collector and glibc would keep half of it."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # other C libraries have no malloc_trim
        ctypes.CDLL(None).malloc_trim(0)


async def _farewell(connections: Connections) -> None:
    """Return when no connection is left, or FAREWELL_S have passed."""
    late = asyncio.get_running_loop().time() + FAREWELL_S
    while asyncio.get_running_loop().time() < late:
        # First the pause: connections accepted a moment ago are not listed yet.
        await asyncio.sleep(LOOK_S)
        if not connections.open:
            return


async def answers(sock: socket.socket) -> bool:
    """Return True if a request to this listening socket of ours is answered with 200.

    The caller bounds it in time.
    """
    name = sock.getsockname()
    unix = sock.family == socket.AF_UNIX
    try:
        reader, writer = await (
            asyncio.open_unix_connection(name) if unix else asyncio.open_connection(*name[:2])
        )
    except OSError:
        return False
    try:
        writer.write(KNOCK)
        status = await reader.readline()
    except OSError:
        return False
    finally:
        writer.close()
    return status.split()[1:2] == [b"200"]
