"""The aiohttp application: the gate in front, every error as a problem, every request counted."""

import json
from collections.abc import Callable, Iterable
from typing import Final

from aiohttp import hdrs, web

from broker.http.problems import ProblemError, problem
from broker.web.api import openapi, probes, status, tokens
from broker.web.api.metrics import METRICS, Metrics, route_name
from broker.web.context import EDGE, Edge
from broker.web.dialect import WECHAT, ErrcodeError
from broker.web.gate import CLIENT, Gate, Handler
from broker.web.page import status as page
from broker.web.params import NO_STORE

LARGEST_BODY: Final = 64 * 1024
OnCrash = Callable[[str, Exception], None]


def application(
    edge: Edge, gate: Gate, metrics: Metrics, on_crash: OnCrash, more: Iterable[web.RouteDef] = ()
) -> web.Application:
    """Wire the routes, and `more` of them.

    `on_crash` is told of a bug, with the route it happened on.
    """

    @web.middleware
    async def front(request: web.Request, handler: Handler) -> web.StreamResponse:
        edge.response_cache.note_request(request)
        try:
            response = gate.refuse(request) or await handler(request)
        except ProblemError as bad:
            response = bad.response
        except web.HTTPException as error:
            response = _as_problem(error)
        # Told once, with its traceback; the caller learns nothing of it
        except Exception as error:  # noqa: BLE001
            on_crash(_route(request), error)
            response = problem(500, "internal-error", "A bug in the broker; its log has more.")
        if response.content_type == "application/problem+json" and hasattr(
            request.match_info.handler, "answers_in_errcodes"
        ):
            response = _as_errcode(response)
        if edge.registry.stopping:
            response.force_close()  # the next request is our successor's
        metrics.request(request.match_info.route.resource, response.status)
        if (client := request.get(CLIENT)) is not None:
            edge.client_stats.record(client.name, 1, edge.response_cache.now())
        return response

    app = web.Application(middlewares=[front], client_max_size=LARGEST_BODY)
    app[EDGE], app[METRICS] = edge, metrics
    if edge.response_cache.enabled:
        app.on_response_prepare.append(edge.response_cache.keep)
    ours = (tokens, status, probes, page)
    routes = [
        *(one for room in ours for one in room.routes()),
        web.get("/openapi.json", openapi.get_openapi),
        *more,
    ]
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
    said = WECHAT.refusal(ErrcodeError(errcode, f"(token-broker: {detail})"))
    response = web.json_response(said, headers=NO_STORE)
    if refusal.keep_alive is False:
        response.force_close()
    return response


async def _expect(request: web.Request) -> None:
    """Answer `Expect`, the only header that aiohttp looks at before us: its own refusal quotes it."""
    if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
        raise web.HTTPExpectationFailed
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # what was said until now is no part of the answer


def _route(request: web.Request) -> str:
    """The route's pattern: bounded in number, where paths are not."""
    return route_name(request.match_info.route.resource)


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
