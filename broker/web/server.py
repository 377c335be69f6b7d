"""The aiohttp application: the gate in front, every error as a problem, every request counted."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from aiohttp import hdrs, web

from broker.http.problems import ProblemError, problem
from broker.tokens.registry import Registry
from broker.web.api.metrics import Metrics, route_name
from broker.web.client_stats import ClientStats
from broker.web.connection.fast_path import ResponseCache
from broker.web.dialect import WECHAT, ErrcodeError
from broker.web.gate import CLIENT, Gate, Handler
from broker.web.handed import HANDED
from broker.web.handouts import Handouts
from broker.web.params import NO_STORE

LARGEST_BODY: Final = 64 * 1024
PROBLEM: Final = "application/problem+json"
OnCrash = Callable[[str, Exception], None]


@dataclass(frozen=True, slots=True)
class Front:
    """What every request goes through, whatever its route.

    `on_crash` is told of a bug, with the route on which it happened.
    """

    gate: Gate
    registry: Registry
    response_cache: ResponseCache
    client_stats: ClientStats
    handouts: Handouts
    metrics: Metrics
    on_crash: OnCrash

    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let the request in or refuse it, and answer errors as problems."""
        self.response_cache.note_request(request)
        response = await self._answer(request, handler)
        if response.content_type == PROBLEM and hasattr(
            request.match_info.handler, "answers_in_errcodes"
        ):
            response = _as_errcode(response)
        if self.registry.stopping:
            response.force_close()  # the client's next request is for the process that follows
        self.metrics.request(request.match_info.route.resource, response.status)
        if (client := request.get(CLIENT)) is not None:
            now = self.response_cache.now()
            self.client_stats.record(client.name, 1, now)
            if (handed := request.get(HANDED)) is not None:
                self.handouts.record(client.name, handed, response.status, 1, now)
        return response

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return self.gate.refuse(request) or await handler(request)
        except ProblemError as error:
            return error.response
        except web.HTTPException as error:
            return _as_problem(error)
        # The log gets the bug once, with its traceback; the caller learns nothing of it.
        except Exception as error:  # noqa: BLE001
            self.on_crash(route_name(request.match_info.route.resource), error)
            return problem(500, "internal-error", "A bug in the broker; its log has more.")


def application(front: Front, routes: Iterable[web.RouteDef]) -> web.Application:
    """Put the routes behind the front."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await front.answer(request, handler)

    app = web.Application(middlewares=[middleware], client_max_size=LARGEST_BODY)
    if front.response_cache.enabled:
        app.on_response_prepare.append(front.response_cache.keep)
    app.add_routes(
        [
            web.route(one.method, one.path, one.handler, **one.kwargs, expect_handler=_expect)
            for one in routes
        ]
    )
    return app


def _as_errcode(refusal: web.StreamResponse) -> web.Response:
    """Say a problem of ours as WeChat would say it, to an SDK."""
    text = refusal.text if isinstance(refusal, web.Response) else None
    detail = json.loads(text or "{}").get("detail", "")
    errcode = {401: 40001, 403: 48001, 500: -1}.get(refusal.status, 47001)
    answer = WECHAT.refusal(ErrcodeError(errcode, f"(token-broker: {detail})"))
    response = web.json_response(answer, headers=NO_STORE)
    if refusal.keep_alive is False:
        response.force_close()
    return response


async def _expect(request: web.Request) -> None:
    """Answer `Expect`, the only header that aiohttp looks at before us: its refusal quotes it."""
    if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
        raise web.HTTPExpectationFailed
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # these bytes are no part of the answer


def _as_problem(error: web.HTTPException) -> web.Response:
    match error:
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            return problem(405, "method-not-allowed", f"Allowed here: {allowed}.", Allow=allowed)
        case web.HTTPRequestEntityTooLarge():
            return problem(413, "body-too-large", f"A body has at most {LARGEST_BODY} bytes.")
        case web.HTTPNotFound():
            return problem(
                404, "not-found", "There is no such route; GET /openapi.json lists them."
            )
        case _:
            return problem(error.status, "http-error", error.reason)
