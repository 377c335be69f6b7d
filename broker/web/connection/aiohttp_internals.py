"""Everything of the server that relies on aiohttp's inside, and not on its public interface.

tests/web/test_aiohttp_internals.py pins each of these facts. `pyproject.toml` admits another minor
version of aiohttp only after that test has passed on it:

- `RequestHandler._request_in_progress` is true from before a handler runs until after its answer
  has been written (:func:`is_answering`).
- `Server.__call__` makes a `RequestHandler` from `_loop` and `_kwargs` (:func:`new_handler`).
- `RequestHandler.handle_error` and `finish_response` build and write the answers that aiohttp gives
  by itself (:class:`QuietRequestHandler`).
- `BaseSite.stop` closes the server that its subclass has put into `_server`
  (:class:`GuardedSite`).

What the client side relies on is in broker/http/no_retry.py.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final

from aiohttp import hdrs, web
from aiohttp.web_protocol import RequestHandler

from broker.web.connection import malformed

BACKLOG: Final = 1024
# asyncio accepts as many connections at once as the backlog it is given. More than there are spare
# files would leave a refresh no descriptor.
ACCEPTED_AT_ONCE: Final = 8

SERVER_ERRORS: Final = 500


class QuietRequestHandler(RequestHandler):
    """aiohttp's protocol of one connection. The answers it gives by itself quote no request.

    `connection` is our own protocol of the same connection, which hands it what it reads.
    """

    __slots__ = ("connection",)

    def __init__(self, server: web.Server, connection: object) -> None:
        super().__init__(server, loop=server._loop, **server._kwargs)  # noqa: SLF001
        self.connection = connection

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that could not be parsed, or a bug outside of our handlers."""
        if isinstance(exc, UnicodeEncodeError) and hdrs.EXPECT in request.headers:
            # Where no route of ours is found, aiohttp quotes this header in its answer, and fails
            # if the header is not UTF-8.
            return malformed.expectation_failed()
        # aiohttp logs the error, or raises it where an answer has begun.
        super().handle_error(request, status, exc, message)
        if status < SERVER_ERRORS:
            return malformed.malformed_request(status)
        return malformed.internal_error(status)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Write an answer. One that aiohttp raised before our middleware becomes a problem."""
        if isinstance(resp, web.HTTPException):
            resp = malformed.raised_by_aiohttp(resp)
        return await super().finish_response(request, resp, start_time)


def new_handler(server: web.Server, connection: object) -> QuietRequestHandler:
    """Return aiohttp's protocol for a connection, as `server()` would make it."""
    return QuietRequestHandler(server, connection)


def is_answering(handler: asyncio.Protocol) -> bool:
    """Return True while aiohttp has begun with a request and has not written its answer."""
    inside: Any = handler
    return bool(inside._request_in_progress)  # noqa: SLF001


def close_after_answer(handler: asyncio.Protocol) -> None:
    """Have aiohttp close the connection once the request it is handling is answered."""
    if isinstance(handler, RequestHandler):
        handler.close()


class GuardedSite(web.BaseSite):
    """A listening socket whose connections are served by our protocol.

    `guard` is given a function that makes aiohttp's protocol for a connection, and returns ours.
    """

    def __init__(
        self,
        runner: web.BaseRunner,
        sock: socket.socket,
        guard: Callable[[Callable[[object], asyncio.Protocol]], asyncio.Protocol],
    ) -> None:
        super().__init__(runner, backlog=BACKLOG)
        self._sock = sock
        self._guard = guard

    @property
    def name(self) -> str:
        """What aiohttp prints of the site."""
        return str(self._sock)

    async def start(self) -> None:
        """Accept connections from now on. Raises RuntimeError if the runner is not set up."""
        await super().start()
        server = self._runner.server
        if server is None:
            raise RuntimeError("the runner is not set up")

        def new_connection() -> asyncio.Protocol:
            return self._guard(lambda connection: new_handler(server, connection))

        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            new_connection, sock=self._sock, backlog=ACCEPTED_AT_ONCE
        )
        # The kernel's queue is longer: who waits there has a connection already.
        self._sock.listen(BACKLOG)
