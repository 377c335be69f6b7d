"""What aiohttp refuses by itself, before our gate, said in our words: its own quote what the peer sent, keys and all."""

from http import HTTPStatus

from aiohttp import hdrs, web
from aiohttp.web_protocol import RequestHandler

from broker.http.problems import problem


class QuietRequestHandler(RequestHandler):
    """aiohttp's protocol of one connection, with problems for texts."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what could not be parsed, or a bug outside of our handlers; the connection ends with it."""
        if isinstance(exc, UnicodeEncodeError) and hdrs.EXPECT in request.headers:
            # Where no route of ours is found, aiohttp quotes the header, and fails where that is no
            # UTF-8.
            return _last(
                problem(
                    HTTPStatus.EXPECTATION_FAILED,
                    "http-error",
                    HTTPStatus.EXPECTATION_FAILED.phrase,
                )
            )
        super().handle_error(
            request, status, exc, message
        )  # logs, or raises where an answer has begun
        if status < 500:  # noqa: PLR2004 -- the server's own
            return _last(
                problem(status, "malformed-request", "This is not a request that HTTP/1.1 allows.")
            )
        return _last(problem(status, "internal-error", "A bug in the broker; its log has more."))

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Write an answer; one that aiohttp raised (an Expect that it does not know) becomes a problem."""
        if isinstance(resp, web.HTTPException):
            resp = _last(problem(resp.status, "http-error", resp.reason))
        return await super().finish_response(request, resp, start_time)


def protocol(server: web.Server) -> QuietRequestHandler:
    """A protocol for the next connection, as `server()` would make it."""
    # What its own __call__ does
    return QuietRequestHandler(server, loop=server._loop, **server._kwargs)  # noqa: SLF001


def _last(response: web.Response) -> web.Response:
    response.force_close()
    return response
