"""The response cache: while nothing has changed, the same request gets the same answer, before anything is parsed.

A connection's request goes through aiohttp whole: parsing, gate, routing, handler. Where the
handler says how its answer is given again (:data:`AGAIN`), the bytes of that answer are kept under
the bytes of the request, and the next chunk that equals them, on any connection of that kind, is
answered from there. What only time changes (`expires_in`) is said anew when its time is up;
anything else that changes drops everything that is kept. Header bytes are part of the key, so
nobody is ever answered with another's rights; TCP and Unix sockets are kept apart, since the gate
tells them apart.

What makes that safe is that a chunk is only looked up where it can be nothing but a request: each
chunk before it on its connection was exactly one whole request without a body, and aiohttp has
written its answer. One irregular chunk, and the connection stays with aiohttp for good. Requests
that wait for the next version wait together: see long_poll.py.
"""

import asyncio
import re
import socket
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, Final, cast

from aiohttp import HttpVersion11, web

from broker.core.credential import NEVER
from broker.web.connection.connections import Connections, Guarded
from broker.web.connection.long_poll import OnAnswered, PollGroups, Wait, Waiter
from broker.web.gate import CLIENT

Again = Callable[[], tuple[bytes, float] | None]
# Gives a body, and the steady time to which it is true; None where a handler has to look.
AGAIN: Final[web.RequestKey[Again]] = web.RequestKey("again")
_CHANGES: Final = web.RequestKey("changes", int)
_SINCE: Final = web.RequestKey(
    "since", float
)  # the loop's time at which it began to wait, of one that has waited already
MOST_KEPT: Final = 1024
LONGEST_REQUEST: Final = 4096
HEAD_END: Final = b"\r\n\r\n"
MORE: Final = re.compile(
    rb"\r\n(?:content-length|transfer-encoding|expect|upgrade):", re.IGNORECASE
)  # may follow


class CachedResponse:
    """An answer, until when it may be given, and how often it was since it was last told."""

    __slots__ = ("about", "again", "count", "data", "head", "until")

    def __init__(self, response: web.Response, again: Again, *about: Any) -> None:
        self.head = [
            f"HTTP/1.1 {response.status} {response.reason}",
            *(f"{k}: {v}" for k, v in response.headers.items()),
        ]
        self.again = again
        self.about = about  # route, client and status, for those who count
        self.count = 0
        self.data = b""
        self.until = NEVER

    def renew(self, now: float) -> bool:
        """Say it anew, as aiohttp would; whether it may be given now."""
        if (found := self.again()) is None:
            return False
        body, self.until = found
        told = {"Content-Length": str(len(body)), "Date": formatdate(usegmt=True)}
        names = ((line, line.partition(":")[0]) for line in self.head)
        head = [f"{name}: {told[name]}" if name in told else line for line, name in names]
        self.data = "\r\n".join([*head, "", ""]).encode() + body
        return now < self.until


class ResponseCache:
    """What may be repeated, for all connections of a daemon; their clock is the one that tokens age on.

    `tell` hears of the answers given here: (route, client, status, how many, the last no later
    than).
    """

    def __init__(
        self, connections: Connections, tell: OnAnswered = lambda *_: None, *, enabled: bool = True
    ) -> None:
        self.connections = connections
        self.now = connections.now
        self.enabled = enabled
        self._tell = tell
        self._changes = 0
        self._kept: dict[bool, dict[bytes, CachedResponse]] = {
            True: {},
            False: {},
        }  # by "is a Unix socket"
        self._groups = {is_unix: PollGroups(self.now, tell) for is_unix in self._kept}

    def guard(self, make: Callable[[], asyncio.Protocol]) -> Guarded:
        """A connection's protocol around the one of aiohttp's that `make` makes."""
        return CachedConnection(self, make) if self.enabled else Guarded(self.connections, make)

    def beside(
        self, transport: asyncio.Transport
    ) -> tuple[dict[bytes, CachedResponse], PollGroups]:
        """What may be repeated on a connection of that kind, and who waits."""
        sock = transport.get_extra_info("socket")
        is_unix = sock is not None and sock.family == socket.AF_UNIX
        return self._kept[is_unix], self._groups[is_unix]

    def note_request(self, request: web.Request) -> None:
        """A whole request has come in: its connection is no longer silent."""
        if (connection := self.connections.of(request.protocol)) is not None:
            connection.heard_at = self.now()
            if isinstance(connection, CachedConnection):
                connection.is_at_work = True
                request[_CHANGES] = self._changes
                if connection.since is not None:
                    request[_SINCE], connection.since = connection.since, None

    async def keep(self, request: web.Request, response: web.StreamResponse) -> None:
        """Keep an answer that is about to be written, if its handler and its connection let us (`on_response_prepare`)."""
        connection = self.connections.of(request.protocol)
        if not isinstance(connection, CachedConnection) or connection.asked is None:
            return
        if (group := connection.groups.find(connection.asked)) is not None and group.wait is None:
            group.release_all()  # this is one that does not wait
        if request.version != HttpVersion11 or not response.keep_alive:
            connection.leave()
            return
        again = request.get(AGAIN)
        if (
            again is None
            or response.status not in {200, 304}
            or not isinstance(response, web.Response)
        ):
            return
        if request.get(_CHANGES) != self._changes:  # what let this request in may not hold any more
            return
        kept = connection.kept
        if len(kept) >= MOST_KEPT:
            self._drop(kept)
        if (older := kept.get(connection.asked)) is not None:
            self._account(older)
        kept[connection.asked] = CachedResponse(
            response, again, request.match_info.route.resource, request.get(CLIENT), response.status
        )

    def join(self, request: web.Request, wait: Wait | None) -> None:
        """A request begins to wait, and whoever sends the same may wait in the same way; None: with aiohttp."""
        connection = self.connections.of(request.protocol)
        if not isinstance(connection, CachedConnection) or connection.asked is None:
            return
        group = connection.groups.find(connection.asked)
        if group is None or group.wait is not None:
            return
        is_regular = request.version == HttpVersion11 and request.keep_alive
        if wait is not None and is_regular and request.get(_CHANGES) == self._changes:
            group.open(wait, request.match_info.route.resource, request.get(CLIENT))
        else:
            group.release_all()

    @staticmethod
    def left(request: web.Request, seconds: float) -> float:
        """What is left of so many seconds to wait, for one that may have waited here already."""
        since = request.get(_SINCE)
        return seconds if since is None else since + seconds - asyncio.get_running_loop().time()

    def drop(self) -> None:
        """Something has changed: no answer given until now is repeated.

        Whoever waits goes on waiting.
        """
        self._changes += 1
        for kept in self._kept.values():
            self._drop(kept)
        for groups in self._groups.values():
            groups.drop_empty()

    def admit_anew(self) -> None:
        """Who may ask has changed: whoever waits is looked at again."""
        self.drop()
        for groups in self._groups.values():
            groups.look_again()

    async def end(self) -> None:
        """Leave everyone who waits to aiohttp, which finishes what is under way."""
        for groups in self._groups.values():
            await groups.end()

    def account(self) -> None:
        """Tell of the answers given since the last time."""
        for kept in self._kept.values():
            for one in kept.values():
                self._account(one)

    def _drop(self, kept: dict[bytes, CachedResponse]) -> None:
        for one in kept.values():
            self._account(one)
        kept.clear()

    def _account(self, one: CachedResponse) -> None:
        if one.count:
            resource, client, status = one.about
            self._tell(resource, client, status, one.count, min(one.until, self.now()))
            one.count = 0


class CachedConnection(Waiter):
    """A connection that may use the response cache."""

    __slots__ = ("_is_regular", "_now", "_response_cache", "_write", "groups", "kept")

    def __init__(self, response_cache: ResponseCache, make: Callable[[], asyncio.Protocol]) -> None:
        super().__init__(response_cache.connections, make)
        self._response_cache = response_cache
        self._now = response_cache.now
        self._is_regular = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it."""
        self.kept, self.groups = self._response_cache.beside(cast("asyncio.Transport", transport))
        self._write = cast("asyncio.Transport", transport).write
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Answer it from the response cache, have it wait, or hand it to aiohttp."""
        if self._is_regular:
            if self.asked is not None:
                self.leave_group()
                self._is_regular = self.is_at_work and not self.is_answering
                self.asked, self.is_at_work = None, False
            if self._is_regular:
                kept = self.kept.get(data)
                if kept is not None and ((now := self._now()) < kept.until or kept.renew(now)):
                    kept.count += 1
                    self.heard_at = now
                    self._write(kept.data)
                    return
                if is_one_request(data):
                    if self.groups.enter(self, data):
                        self.heard_at = self._now()
                        return
                    self.asked = data
                else:
                    self._is_regular = False
        super().data_received(data)

    def leave(self) -> None:
        """Leave the connection to aiohttp from now on."""
        self.leave_group()
        self._is_regular, self.asked = False, None

    def pause_writing(self) -> None:
        """A peer that does not read is aiohttp's: it knows how to wait."""
        self.leave()
        (self.inner or self.wake()).pause_writing()


def is_one_request(data: bytes) -> bool:
    """Whether a chunk is exactly one request without a body, whoever reads it."""
    return (
        data.startswith(b"GET ")
        and len(data) <= LONGEST_REQUEST
        and data.find(HEAD_END) == len(data) - len(HEAD_END)
        and data.count(b"\n") == data.count(b"\r") == data.count(b"\r\n")
        and MORE.search(data) is None
    )
