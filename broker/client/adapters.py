"""The token for HTTP libraries: added to each request as `access_token`.

The token goes to the origin (scheme, host and port) of the first request only: a redirect to
another origin carries none. A refused token is reported and the request is sent once more, if its
body can be sent again: bytes or nothing, not a stream that is used up. What another origin answers
is no refusal.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit
from weakref import WeakKeyDictionary

from yarl import URL

from broker.client.aio import AsyncTokenClient
from broker.client.protocol import refusal
from broker.client.sync import TokenClient

if TYPE_CHECKING:
    import aiohttp
    import httpx
    import requests

MOST_BYTES: Final = 64 * 1024  # an error answer is small; a download is not for us to read
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


def _errcode(kind: str, body: bytes) -> int | None:
    """Return WeChat's errcode where an answer refuses the token."""
    if len(body) > MOST_BYTES:
        return None
    try:
        return refusal(json.loads(body)) if _is_text(kind) else None
    except ValueError:
        return None


def _is_text(kind: str) -> bool:
    return kind.startswith(("application/json", "text/"))


def _worth_reading(kind: str, length: str | None) -> bool:
    """Return True if an answer with such headers may be an error of WeChat's."""
    if length is not None and not length.isdecimal():
        return False
    return _is_text(kind) and int(length or 0) <= MOST_BYTES


@dataclass(slots=True)
class _Journey:
    """A request of aiohttp's that redirects send from place to place.

    `origin` is where it began, `heads_for` the origin that the last answer named.
    """

    origin: URL
    heads_for: URL | None = None
    retried: bool = False


class _Middleware:
    """The middleware of aiohttp, which runs again for each redirect.

    aiohttp does not say whether a request is the first or follows a redirect. It follows redirects
    in the task that asked, so the task's last answer tells.
    """

    def __init__(self, client: AsyncTokenClient) -> None:
        self._client = client
        self._journeys: WeakKeyDictionary[asyncio.Task[Any], _Journey] = WeakKeyDictionary()

    async def __call__(
        self, request: "aiohttp.ClientRequest", handler: "aiohttp.ClientHandlerType"
    ) -> "aiohttp.ClientResponse":
        # aiohttp's timeouts need a task, too.
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        origin = request.url.origin()
        journey = self._journeys.pop(task, None)
        if journey is None or journey.heads_for != origin:
            journey = _Journey(origin)
        at_home = journey.origin == origin
        response = await (
            self._with_token(request, handler, journey) if at_home else handler(request)
        )
        journey.heads_for = _redirected_to(response)
        if journey.heads_for is not None:
            self._journeys[task] = journey
        return response

    async def _with_token(
        self,
        request: "aiohttp.ClientRequest",
        handler: "aiohttp.ClientHandlerType",
        journey: _Journey,
    ) -> "aiohttp.ClientResponse":
        token = await self._client.get()
        request.url = request.url.update_query(access_token=token)
        response = await handler(request)
        kind, length = response.content_type, response.headers.get("Content-Length")
        if journey.retried or not _can_be_sent_again(request) or not _worth_reading(kind, length):
            return response
        errcode = _errcode(kind, await response.read())
        if errcode is None or not await self._client.refused(token, errcode):
            return response
        response.release()
        journey.retried = True
        request.url = request.url.update_query(access_token=await self._client.get())
        return await handler(request)


def _can_be_sent_again(request: "aiohttp.ClientRequest") -> bool:
    import aiohttp  # noqa: PLC0415 -- only who uses it needs it

    whole = (bytes, aiohttp.BytesPayload, aiohttp.payload.StringPayload)
    return not request.body or isinstance(request.body, whole)


def _redirected_to(response: "aiohttp.ClientResponse") -> URL | None:
    """Return the origin that an answer sends the request to; None where it sends it nowhere."""
    where = response.headers.get("Location") or response.headers.get("URI")
    if response.status not in REDIRECTS or where is None:
        return None
    try:
        return response.url.join(URL(where)).origin()
    except ValueError:
        return None  # aiohttp does not go there either


def aiohttp_middleware(client: AsyncTokenClient) -> "aiohttp.ClientMiddlewareType":
    """For `aiohttp.ClientSession(middlewares=[aiohttp_middleware(client)])`."""
    return _Middleware(client)


def httpx_auth(client: TokenClient | AsyncTokenClient) -> "httpx.Auth":
    """For `httpx.Client(auth=httpx_auth(client))`; an AsyncClient takes an AsyncTokenClient."""
    import httpx  # noqa: PLC0415 -- the same

    class Auth(httpx.Auth):
        def sync_auth_flow(
            self, request: "httpx.Request"
        ) -> "Generator[httpx.Request, httpx.Response, None]":
            if not isinstance(client, TokenClient):
                raise TypeError("httpx.Client needs a TokenClient")
            token = client.get()
            request.url = request.url.copy_set_param("access_token", token)
            response = yield request
            if not _may_be_refusal(request, response):
                return
            code = _httpx_errcode(response.read(), response)
            if code is not None and client.refused(token, code):
                request.url = request.url.copy_set_param("access_token", client.get())
                yield request

        async def async_auth_flow(
            self, request: "httpx.Request"
        ) -> "AsyncGenerator[httpx.Request, httpx.Response]":
            if not isinstance(client, AsyncTokenClient):
                raise TypeError("httpx.AsyncClient needs an AsyncTokenClient")
            token = await client.get()
            request.url = request.url.copy_set_param("access_token", token)
            response = yield request
            if not _may_be_refusal(request, response):
                return
            code = _httpx_errcode(await response.aread(), response)
            if code is not None and await client.refused(token, code):
                request.url = request.url.copy_set_param("access_token", await client.get())
                yield request

    return Auth()


def _may_be_refusal(request: "httpx.Request", response: "httpx.Response") -> bool:
    """Return True if the answer is worth reading, and the request could be sent again.

    After a redirect it is the answer of another place than the one that was given the token.
    """
    kind, length = response.headers.get("Content-Type", ""), response.headers.get("Content-Length")
    is_whole = hasattr(request, "_content")  # httpx keeps a body that is bytes there
    return is_whole and not response.history and _worth_reading(kind, length)


def _httpx_errcode(body: bytes, response: "httpx.Response") -> int | None:
    return _errcode(response.headers.get("Content-Type", ""), body)


def requests_auth(client: TokenClient) -> "requests.auth.AuthBase":
    """For `requests.get(url, auth=requests_auth(client))` or `session.auth`."""
    import requests  # noqa: PLC0415 -- the same

    def with_token(prepared: "requests.PreparedRequest", token: str) -> None:
        parts = urlsplit(str(prepared.url))
        kept = [
            pair
            for pair in parse_qsl(parts.query, keep_blank_values=True)
            if pair[0] != "access_token"
        ]
        prepared.url = urlunsplit(parts._replace(query=urlencode([*kept, ("access_token", token)])))

    class Auth(requests.auth.AuthBase):
        def __call__(self, prepared: "requests.PreparedRequest") -> "requests.PreparedRequest":
            token = client.get()
            with_token(prepared, token)

            def once_more(
                response: "requests.Response", *_: Any, **sending: Any
            ) -> "requests.Response":
                # requests takes the hook along to where a redirect leads, the token it does not.
                if response.request is not prepared:
                    return response
                replayable = prepared.body is None or isinstance(prepared.body, (bytes, str))
                kind = response.headers.get("Content-Type", "")
                if not replayable or not _worth_reading(
                    kind, response.headers.get("Content-Length")
                ):
                    return response
                errcode = _errcode(kind, response.content)
                if errcode is None or not client.refused(token, errcode):
                    return response
                response.close()
                again = prepared.copy()
                again.hooks = {"response": []}
                with_token(again, client.get())
                # The session's adapter, as requests' own digest authentication uses it.
                adapter = response.connection
                answer: requests.Response = adapter.send(again, **sending)
                answer.history.append(response)
                answer.request = again
                return answer

            prepared.register_hook("response", once_more)  # type: ignore[no-untyped-call]
            return prepared

    return Auth()
