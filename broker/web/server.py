"""The aiohttp application: the gate in front, every error as a problem, every request counted."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web

from broker.http.problems import Problem, ProblemError, problem
from broker.system import log
from broker.tokens.registry import Registry
from broker.web.api.metrics import Metrics, route_name
from broker.web.client_stats import ClientStats
from broker.web.connection.fast_path import ResponseCache
from broker.web.dialect import TOO_MANY, WECHAT, ErrcodeError, Refusal, refusal_of
from broker.web.gate import CLIENT, JUDGE, Gate, Handler, dialect_of
from broker.web.handed import HANDED
from broker.web.handouts import Handouts
from broker.web.occasions import Occasions

LARGEST_BODY: Final = 64 * 1024
CRASH_GAP_S: Final = 1.0  # a stranger who has found a bug must not fill the disk
THROTTLED_GAP_S: Final = 60.0
OnCrash = Callable[[str, Exception], None]


@dataclass(slots=True)
class Front:
    """What every request goes through, whatever its route.

    `on_crash` is told of a bug, with the route on which it happened, once a second at most.
    """

    gate: Gate
    registry: Registry
    response_cache: ResponseCache
    client_stats: ClientStats
    handouts: Handouts
    metrics: Metrics
    on_crash: OnCrash
    crashes: Occasions = field(init=False)
    throttled: Occasions = field(init=False)

    def __post_init__(self) -> None:
        """Begin to count."""
        now = self.response_cache.now
        self.crashes, self.throttled = Occasions(now, CRASH_GAP_S), Occasions(now, THROTTLED_GAP_S)

    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let the request in or refuse it, and answer errors as problems or errcodes."""
        self.response_cache.note_request(request)
        admissions = self.gate.admissions
        response = await self._answer(request, handler)
        if self.gate.admissions != admissions and not response.prepared:
            # Rights have changed meanwhile: the answer is for whoever may still ask.
            response = await self._answer(request, _judged(response))
        if self.registry.stopping:
            response.force_close()  # the client's next request is for the process that follows
        self._count(request, response)
        return response

    def is_admitted(self, request: web.Request) -> bool:
        """Return True if a request that was let in before may still be answered."""
        try:
            return self.gate.refuse(request) is None and not _judge(request)
        except (ProblemError, ErrcodeError):
            return False

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        dialect = dialect_of(request)
        try:
            response = self.gate.refuse(request) or await handler(request)
        except ErrcodeError as error:
            return Refusal(error, dialect or WECHAT)
        except ProblemError as error:
            response = error.response
        except web.HTTPException as error:
            response = _as_problem(error)
        # The log gets the bug once, with its traceback; the caller learns nothing of it.
        except Exception as error:  # noqa: BLE001
            where = route_name(request.match_info.route.resource)
            if self.crashes.note((where, type(error))):
                self.on_crash(where, error)
            response = problem(500, "internal-error", "A bug in the broker; its log has more.")
        if dialect is not None and isinstance(response, Problem):
            return refusal_of(response, dialect)
        return response

    def _count(self, request: web.Request, response: web.StreamResponse) -> None:
        # A refusal that an SDK gets as HTTP 200 is none, so it is counted by its errcode.
        status = response.errcode if isinstance(response, Refusal) else response.status
        resource, client = request.match_info.route.resource, request.get(CLIENT)
        self.metrics.request(resource, status)
        if status in {TOO_MANY, HTTPStatus.TOO_MANY_REQUESTS}:
            name, route = client.name if client is not None else "", route_name(resource)
            if times := self.throttled.note((name, route)):
                log.tell("throttled", client=name, route=route, times=times)
        if client is not None:
            now = self.response_cache.now()
            self.client_stats.record(client.name, 1, now)
            if (handed := request.get(HANDED)) is not None:
                self.handouts.record(client.name, handed, status, 1, now)


def application(front: Front, routes: Iterable[web.RouteDef]) -> web.Application:
    """Put the routes behind the front."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await front.answer(request, handler)

    front.gate.on_admitted = front.response_cache.admit_anew
    front.response_cache.is_admitted = front.is_admitted
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


def _judge(request: web.Request) -> web.Response | None:
    """Have the handler look again whether the client may do what it asks. Return the refusal."""
    judge = request.get(JUDGE)
    refusal = judge(request) if judge is not None else None
    return refusal if isinstance(refusal, web.Response) else None


def _judged(response: web.StreamResponse) -> Handler:
    """Return a handler that answers with this response, unless the request is refused by now."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return _judge(request) or response

    return handler


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
