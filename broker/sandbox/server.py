"""The sandbox as an HTTP server: which request goes where."""

import asyncio
import logging
import re
import sys
import time
from collections.abc import Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from . import authorize, control, data, issuing, logins, robots
from .faults import TOKEN_PATHS
from .options import SandboxOptions
from .pictures import DEAD, SIZES, draw
from .state import STATE, SandboxState
from .wire import NOW


def create_app(
    options: SandboxOptions = SandboxOptions(),  # noqa: B008
    now: Callable[[], float] = time.time,
) -> web.Application:
    """Build the stand-in.

    ``now`` gives Unix seconds; all that the platform does with time asks it.
    """
    app = web.Application()
    app[STATE] = SandboxState(options, now)
    robots.add_routes(app)
    control.add_routes(app)
    authorize.add_routes(app)
    app.router.add_get("/mmopen/{name}/{size}", _picture)
    app.router.add_route("*", "/{path:.*}", _wechat)
    return app


async def serve(options: SandboxOptions, port: int, host: str = "127.0.0.1") -> None:
    """Run until cancelled; port 0 is any free port.

    Says where it listens once it does, and logs no requests.
    """
    logger = logging.getLogger(__name__)
    logger.addFilter(_without_quotation)
    runner = web.AppRunner(create_app(options), access_log=None, logger=logger, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        name = f"[{host}]" if ":" in host else host
        sys.stdout.write(f"sandbox listening on http://{name}:{runner.addresses[0][1]}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def _without_quotation(record: logging.LogRecord) -> bool:
    """Cut the traceback of a malformed request.

    It quotes the request line, and the line may hold a secret.
    """
    if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
        record.exc_info = None
    return True


async def _wechat(request: web.Request) -> web.StreamResponse:
    """Answer what WeChat would be asked; some SDKs send ``//cgi-bin/token`` (WECHAT.md W88)."""
    request[NOW] = request.app[STATE].world.now()
    path = re.sub("//+", "/", request.path)
    try:
        if path in TOKEN_PATHS:
            return await issuing.answer(request, path)
        if path.startswith(logins.PREFIX):
            return await logins.answer(request, path)
        return await data.answer(request, path)
    except ConnectionError:  # the peer left in the middle of its body, or of our answer
        return web.Response()


async def _picture(request: web.Request) -> web.Response:
    """Show an avatar. A dead one is a placeholder image, not a 404 (WECHAT.md W50)."""
    size, name = request.match_info["size"], request.match_info["name"]
    # - "132" is the longest
    pixels = SIZES.get(int(size)) if size.isdecimal() and len(size) <= 3 else None  # noqa: PLR2004
    is_dead = not pixels or request.app[STATE].portraits.is_dead(name)
    image = draw(DEAD if is_dead else name, pixels or SIZES[132])
    headers = {"Cache-Control": "max-age=86400"} | ({"X-ErrNo": "-6101"} if is_dead else {})
    return web.Response(body=image, content_type="image/png", headers=headers)
