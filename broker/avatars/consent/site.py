"""The public listener: the page, its limits, and the route for events, put together."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from broker.avatars.companion import Companion
from broker.avatars.consent.consents import Consents
from broker.avatars.consent.events import EventDesk
from broker.avatars.consent.exchange import CodeExchange
from broker.avatars.consent.limits import VisitorLimits
from broker.avatars.consent.page import ConsentDesk
from broker.avatars.consent.state import States
from broker.avatars.consent.upkeep import ConsentUpkeep
from broker.avatars.gate import Crash, HostGate, front
from broker.avatars.urls import origin
from broker.config.settings import ConsentSettings
from broker.http.problems import problem

EVENTS: Final = "/consent/events"
LARGEST_BODY: Final = 64 * 1024  # bytes; an event has some 500
PAGE_S: Final = 25.0  # the broker and WeChat answer within 10 s each
EVENT_S: Final = 4.0  # WeChat waits for 5 (WECHAT.md W137)
POLICY: Final = (
    "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none';"
    " form-action 'self' {}; frame-ancestors 'none'"
)


def create_site(
    companion: Companion, settings: ConsentSettings, consents: Consents, on_crash: Crash
) -> web.Application:
    """Build the application. It lives no longer than the companion's parts."""
    exchange = CodeExchange(
        companion.client, companion.calls, companion.options.picture_hosts, settings.appid
    )
    desk = ConsentDesk(settings, States(companion.clock), exchange, consents, companion.followers)
    events = EventDesk(settings, consents, companion.wall)
    gate = HostGate([settings.public_url.partition("://")[2], *companion.options.hosts])
    app = web.Application(
        middlewares=[
            front(gate, POLICY.format(origin(settings.authorize_url)), on_crash),
            _bounded(VisitorLimits(companion.clock, companion.options.trusted_proxies)),
        ],
        client_max_size=LARGEST_BODY,
    )
    app.add_routes(desk.routes())
    app.add_routes([web.get(EVENTS, events.greet), web.post(EVENTS, events.hear)])
    upkeep = ConsentUpkeep(consents, companion.followers, exchange, companion.clock)

    async def keep_up(_app: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(upkeep.run())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    app.cleanup_ctx.append(keep_up)
    return app


def _bounded(limits: VisitorLimits) -> Middleware:
    """Return the middleware that lets so many requests in, for so long, one a connection.

    Events are not counted: their signature is looked at before anything else, and those who forward
    them have one address.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        is_event = request.path == EVENTS
        if not is_event and not limits.take(request):
            return problem(429, "too-many-requests", "Too many requests; try again soon.", 5)
        try:
            async with asyncio.timeout(EVENT_S if is_event else PAGE_S):
                response = await handler(request)
        except TimeoutError:
            response = problem(503, "too-slow", "This took too long; try again later.", 5)
        response.force_close()
        return response

    return middleware
