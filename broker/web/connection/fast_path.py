"""The response cache: while nothing has changed, an equal request gets an equal response, unparsed.

The first request goes through all of aiohttp: parsing, gate, routing, handler. Where the handler
says how its answer can be given again (:data:`AGAIN`), the bytes of the answer are kept under the
bytes of the request. The next chunk that equals them, on any connection of that kind, is answered
from there. What only time changes (`expires_in`) is written anew when it is no longer true. Any
other change of an app drops what is kept about that app.

Header bytes are part of the key, so nobody is ever answered with another's rights. TCP and Unix
sockets are kept apart, since the gate treats them differently. Which chunks may be looked up is in
connection.py; requests that wait for the next version are in long_poll.py.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from aiohttp import HttpVersion11, web

from broker.web.connection.cached_response import (
    Again,
    CachedResponse,
    CachedResponses,
    OnAnswered,
)
from broker.web.connection.connection import Connection, FastPath, connection_of
from broker.web.connection.connections import Connections
from broker.web.connection.long_poll import PollGroups, Wait
from broker.web.connection.waits import HandlerWait
from broker.web.gate import CLIENT
from broker.web.handed import HANDED

__all__ = ["AGAIN", "APP", "Again", "ResponseCache"]

T = TypeVar("T")

# A handler sets these: how its answer can be given again, and the one app that its answer is about.
AGAIN: Final[web.RequestKey[Again]] = web.RequestKey("again")
APP: Final = web.RequestKey("app", str)

# How many changes there had been when the request came.
_CHANGES: Final = web.RequestKey("changes", int)
# When a request that was handed back began to wait (loop time).
_SINCE: Final = web.RequestKey("since", float)

CACHED: Final = frozenset({200, 304})


class ResponseCache:
    """What all connections of a daemon share; their clock is the one that tokens age on.

    `on_answered` hears of the answers that aiohttp did not write. Without `enabled` there are none.
    """

    def __init__(
        self,
        connections: Connections,
        on_answered: OnAnswered = lambda *_: None,
        *,
        enabled: bool = True,
    ) -> None:
        self.connections = connections
        self.now = connections.now
        self.enabled = enabled
        # Whether a request that was let in may still be answered; set by those who judge.
        self.is_admitted: Callable[[web.Request], bool] = lambda _: True
        self._waiting: dict[HandlerWait, web.Request] = {}
        self._changes = 0
        self._last_change = 0  # the number of the last change that was not about one app
        self._last_change_of: dict[str, int] = {}  # by app, changes since then
        self._paths = {
            is_unix: FastPath(
                CachedResponses(self.now, on_answered),
                PollGroups(self.now, on_answered, connections.waits),
            )
            for is_unix in (False, True)
        }

    def guard(
        self, new_handler: Callable[[object], asyncio.Protocol], *, is_unix: bool = False
    ) -> Connection:
        """Return the protocol of a new connection; `new_handler` makes aiohttp's for it."""
        path = self._paths[is_unix] if self.enabled else None
        return Connection(self.connections, new_handler, path, is_unix=is_unix)

    # --- what a request's way through aiohttp tells -----------------------------------------------

    def note_request(self, request: web.Request) -> None:
        """Take note of a whole request that has come in, before anything is decided about it."""
        request[_CHANGES] = self._changes
        connection = connection_of(request)
        if connection is not None and (since := connection.begin()) is not None:
            request[_SINCE] = since

    async def keep(self, request: web.Request, response: web.StreamResponse) -> None:
        """Keep an answer that is about to be written, if handler and connection permit it.

        For `on_response_prepare`.
        """
        connection = connection_of(request)
        if connection is None or connection.request is None:
            return
        responses, groups = self._paths[connection.is_unix]
        if (group := groups.find(connection.request)) is not None and group.wait is None:
            group.release_all()  # this request did not wait, so those who came after it do not
        if request.version != HttpVersion11 or not response.keep_alive:
            connection.leave_to_aiohttp()
            return
        if (
            (again := request.get(AGAIN)) is None
            or response.status not in CACHED
            or not isinstance(response, web.Response)
            or self._has_changed(request)
        ):
            return
        about = request.match_info.route.resource, request.get(CLIENT), request.get(HANDED)
        cached = CachedResponse(response, again, request.get(APP), *about)
        responses.put(connection.request, cached)

    def join(self, request: web.Request, wait: Wait | None) -> None:
        """Have others who send the same bytes wait in this way; None if they cannot."""
        connection = connection_of(request)
        if connection is None or connection.request is None:
            return
        group = self._paths[connection.is_unix].groups.find(connection.request)
        if group is None or group.wait is not None:
            return
        is_regular = request.version == HttpVersion11 and request.keep_alive
        if wait is not None and is_regular and not self._has_changed(request):
            about = request.match_info.route.resource, request.get(CLIENT), request.get(HANDED)
            group.open(wait, *about)
        else:
            group.release_all()

    @staticmethod
    def left(request: web.Request, seconds: float) -> float:
        """Return what is left of so many seconds to wait: the request may have waited before."""
        since = request.get(_SINCE)
        return seconds if since is None else since + seconds - asyncio.get_running_loop().time()

    async def bounded(self, request: web.Request, waiting: Awaitable[T]) -> T | None:
        """Wait in a handler, as one of the requests that its client may have waiting.

        Return None if the wait is ended early: the client has too many, others need room, or the
        client may not ask any more.
        """
        client = request[CLIENT].name
        since = request.get(_SINCE, asyncio.get_running_loop().time())
        scope = asyncio.timeout(None)
        waiter = HandlerWait(scope, connection_of(request))
        try:
            async with scope:
                self.connections.waits.enter(client, waiter, since)
                self._waiting[waiter] = request
                return await waiting
        except TimeoutError:
            if not scope.expired():
                raise
            return None
        finally:
            waiter.end()
            self._waiting.pop(waiter, None)
            self.connections.waits.leave(client, waiter)

    # --- what changes -----------------------------------------------------------------------------

    def drop(self, app: str | None = None) -> None:
        """Give no answer again that was given until now and is about that app, or about no one app.

        Without an app, all answers are dropped. Whoever waits goes on waiting.
        """
        self._changes += 1
        if app is None:
            self._last_change = self._changes
            self._last_change_of.clear()
        else:
            self._last_change_of[app] = self._changes
        for path in self._paths.values():
            path.responses.drop(app)
        for path in self._paths.values():
            path.groups.drop_empty()

    def admit_anew(self) -> None:
        """Drop all answers, and look at everyone who waits again: who may ask has changed."""
        self.drop()
        for path in self._paths.values():
            path.groups.admit_anew()
        for waiter, request in list(self._waiting.items()):
            if not self.is_admitted(request):
                waiter.cut_short(0.0)

    async def end(self) -> None:
        """Leave everyone who waits to aiohttp, which finishes what is under way."""
        for path in self._paths.values():
            await path.groups.end()

    def account(self) -> None:
        """Report the answers given since the last report."""
        for path in self._paths.values():
            path.responses.report()

    def _has_changed(self, request: web.Request) -> bool:
        """Return True if what let a request in, or what it was answered, may not hold any more."""
        app = request.get(APP)
        last = self._changes if app is None else self._last_change_of.get(app, 0)
        noted: int = request.get(_CHANGES, -1)
        return max(last, self._last_change) > noted
