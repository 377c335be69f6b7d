"""The answers to what aiohttp refuses by itself, before our gate sees a request.

aiohttp's own texts quote what the peer sent, keys and all. These quote nothing.
"""

from http import HTTPStatus

from aiohttp import web

from broker.http.problems import problem


def malformed_request(status: int) -> web.Response:
    """Return the answer to bytes that cannot be parsed. The connection ends with it."""
    detail = "This is not a request that HTTP/1.1 allows."
    return _last(problem(status, "malformed-request", detail))


def internal_error(status: int) -> web.Response:
    """Return the answer where a bug showed outside of our handlers. The connection ends with it."""
    return _last(problem(status, "internal-error", "A bug in the broker; its log has more."))


def expectation_failed() -> web.Response:
    """Return the answer to an `Expect` header that we do not know. The connection ends with it."""
    status = HTTPStatus.EXPECTATION_FAILED
    return _last(problem(status, "http-error", status.phrase))


def raised_by_aiohttp(error: web.HTTPException) -> web.Response:
    """Return what aiohttp raised as a problem. The connection ends with it."""
    return _last(problem(error.status, "http-error", error.reason))


def _last(response: web.Response) -> web.Response:
    response.force_close()
    return response
