"""What strangers may take of a listener that everybody can reach.

The listener has few connections, each for one request and a short time. Requests are counted by
address and in all. Nothing of this touches the companion's other listener.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final

from aiohttp import hdrs, web

MOST_CONNECTIONS: Final = 256
CONNECTION_S: Final = 30.0  # the longest that one may last, and LOOK_S more
LOOK_S: Final = 5.0
MOST_ADDRESSES: Final = 10_000
EACH: Final = (2.0, 60.0)  # requests a second of one address, and how many at once
ALL: Final = (100.0, 400.0)  # the same of everybody
SIX_PREFIX: Final = 64  # one customer has as many IPv6 addresses as they like

Networks = Sequence[IPv4Network | IPv6Network]


class VisitorLimits:
    """Counts requests. `clock` tells steady seconds.

    An address behind one of `proxies`, or behind a proxy on this machine, is taken from the last
    entry of X-Forwarded-For.
    """

    def __init__(self, clock: Callable[[], float], proxies: Networks) -> None:
        self._clock = clock
        self._proxies = proxies
        self._all = (ALL[1], clock())
        self._each: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, request: web.Request) -> bool:
        """Count a request; return False if there have been too many."""
        visitor, now = self._visitor(request), self._clock()
        left = _refilled(self._each.pop(visitor, (EACH[1], now)), EACH, now)
        self._each[visitor] = (left - 1 if left >= 1 else left, now)
        if len(self._each) > MOST_ADDRESSES:
            self._each.popitem(last=False)
        if left < 1:
            return False
        left = _refilled(self._all, ALL, now)
        self._all = (left - 1 if left >= 1 else left, now)
        return left >= 1

    def _visitor(self, request: web.Request) -> str:
        peer = request.remote or ""
        if not self._is_proxy(peer):
            return _customer(peer)
        forwarded = ",".join(request.headers.getall(hdrs.X_FORWARDED_FOR, []))
        return _customer(forwarded.rpartition(",")[2].strip()) or peer

    def _is_proxy(self, peer: str) -> bool:
        try:
            address = ip_address(peer)
        except ValueError:
            return True  # a Unix socket has no address
        return address.is_loopback or any(address in network for network in self._proxies)


def _refilled(bucket: tuple[float, float], limit: tuple[float, float], now: float) -> float:
    left, at = bucket
    return min(limit[1], left + (now - at) * limit[0])


def _customer(address: str) -> str:
    """Return whom requests from an address are counted to; nothing if it is no address."""
    try:
        found = ip_address(address)
    except ValueError:
        return ""
    if found.version == 4:  # noqa: PLR2004 -- IPv4
        return str(found)
    return str(IPv6Network((found, SIX_PREFIX), strict=False))


class _Door(asyncio.Protocol):
    """Hands a new connection to the server, or ends it where there are too many.

    Many connections can be accepted before the first of them is made, so they are counted when they
    are made.
    """

    def __init__(self, server: web.Server) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            return
        if len(self._server.connections) >= MOST_CONNECTIONS:
            transport.abort()
            return
        handler = self._server()
        transport.set_protocol(handler)
        handler.connection_made(transport)


def bounded(server: web.Server) -> Callable[[], asyncio.Protocol]:
    """Return a protocol factory for `server` that takes few connections at a time."""
    return partial(_Door, server)


async def end_old_connections(server: web.Server) -> None:
    """Hang up on connections that have lasted too long, until cancelled."""
    clock = asyncio.get_running_loop().time
    seen: dict[object, float] = {}
    while True:
        now = clock()
        seen = {one: seen.get(one, now) for one in server.connections}
        for handler in server.connections:
            if now - seen[handler] >= CONNECTION_S and handler.transport is not None:
                handler.transport.abort()
        await asyncio.sleep(LOOK_S)
