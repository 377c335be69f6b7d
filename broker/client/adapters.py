"""The token for HTTP libraries: added to each request as `access_token`.

A refused token is reported and the request is sent once more, if its body can be sent again: bytes
or nothing, not a stream that is used up.
"""

import json
from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from broker.client.aio import AsyncTokenClient
from broker.client.protocol import refusal
from broker.client.sync import TokenClient

if TYPE_CHECKING:
    import aiohttp
    import httpx
    import requests

MOST_BYTES: Final = 64 * 1024  # an error answer is small; a download is not for us to read


def _errcode(kind: str, body: bytes) -> int | None:
    if len(body) > MOST_BYTES or not kind.startswith(("application/json", "text/")):
        return None
    try:
        return refusal(json.loads(body))
    except ValueError:
        return None


def _worth_reading(kind: str, length: str | None) -> bool:
    return kind.startswith(("application/json", "text/")) and int(length or 0) <= MOST_BYTES


def aiohttp_middleware(client: AsyncTokenClient) -> "aiohttp.ClientMiddlewareType":
    """For `aiohttp.ClientSession(middlewares=[aiohttp_middleware(client)])`."""
    import aiohttp  # noqa: PLC0415 -- only who uses it needs it

    async def middleware(
        request: "aiohttp.ClientRequest", handler: "aiohttp.ClientHandlerType"
    ) -> "aiohttp.ClientResponse":
        token = await client.get()
        request.url = request.url.update_query(access_token=token)
        response = await handler(request)
        if not _worth_reading(response.content_type, response.headers.get("Content-Length")):
            return response
        errcode = _errcode(response.content_type, await response.read())
        again = (
            isinstance(request.body, (bytes, aiohttp.BytesPayload, aiohttp.payload.StringPayload))
            or not request.body
        )
        if errcode is None or not again or not await client.refused(token, errcode):
            return response
        response.release()
        request.url = request.url.update_query(access_token=await client.get())
        return await handler(request)

    return middleware


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
    """Whether the answer is small enough to read, and the request could be sent again."""
    kind, length = response.headers.get("Content-Type", ""), response.headers.get("Content-Length")
    return hasattr(request, "_content") and _worth_reading(
        kind, length
    )  # httpx keeps a body that is bytes there


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
                adapter = (
                    response.connection
                )  # the session's adapter, as requests' own digest auth uses it
                answer: requests.Response = adapter.send(again, **sending)
                answer.history.append(response)
                answer.request = again
                return answer

            prepared.register_hook("response", once_more)  # type: ignore[no-untyped-call]
            return prepared

    return Auth()
