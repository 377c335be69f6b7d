"""The way out for proxied calls: a client with a pool of its own that changes nothing on the way.

A request goes over the wire once, whatever becomes of it; redirects, cookies and compression are
the caller's business.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

import aiohttp
from aiohttp import hdrs
from multidict import CIMultiDict

from broker.http.no_retry import session_without_retries
from broker.http.way_out import DIRECT, OutgoingSession, WayOut

MOST_CONNECTIONS: Final = 256  # over all apps
# An idle connection is closed before WeChat would: a request on one it has closed would be lost
KEPT_S: Final = 10.0


class PlainRequest(aiohttp.ClientRequest):
    """A request that has no header but those it was given: aiohttp adds some where they miss."""

    _skip_auto_headers = CIMultiDict({hdrs.CONTENT_TYPE: None})

    def update_auto_headers(self, skip_auto_headers: Iterable[str] | None) -> None:
        """Add nothing."""


@asynccontextmanager
async def outgoing(
    connect_timeout_s: float, way_out: WayOut = DIRECT
) -> AsyncIterator[OutgoingSession]:
    """A client for proxied calls; `connect_timeout_s` is for a place in the pool and a connection.

    Its user sets all other limits.
    """
    connector = aiohttp.TCPConnector(
        limit=MOST_CONNECTIONS, keepalive_timeout=KEPT_S, ssl=way_out.tls()
    )
    async with session_without_retries(
        connector,
        timeout=aiohttp.ClientTimeout(total=None, connect=connect_timeout_s),
        request_class=PlainRequest,
    ) as session:
        yield OutgoingSession(session, way_out)
