"""Stands before every route: checks Host, turns errors into problems, sets security headers."""

from collections.abc import Callable, Iterable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from broker.avatars.errors import AvatarError
from broker.avatars.messages import sentence
from broker.http.hosts import HostCheck
from broker.http.problems import ProblemError, problem

Crash = Callable[[str, Exception], None]

POLICY: Final = (
    "default-src 'none'; style-src 'self'; img-src {}; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)


class HostGate:
    """Answers to its own names only: a web page that makes its name point here learns nothing."""

    def __init__(self, hosts: Iterable[str]) -> None:
        self._hosts = HostCheck(hosts)

    def refuse(self, request: web.Request) -> web.Response | None:
        """Return the refusal, or None where the request may be answered."""
        # An absolute URI names a host of its own, past our look at Host.
        if not request.raw_path.startswith("/"):
            return problem(400, "malformed-request", "Ask for a path, not for a URI.")
        if not self._hosts.is_ours(request):
            detail = "This name is not the companion's: add it to server.allowed_hosts if it is."
            return problem(403, "host-not-allowed", detail)
        return None


def policy(image_sources: Iterable[str]) -> str:
    """Return the Content-Security-Policy of pages with pictures from these places."""
    return POLICY.format(" ".join(["'self'", *image_sources]))


def front(gate: HostGate, policy: str, on_crash: Crash) -> Middleware:
    """Return the outermost middleware.

    `policy` is the Content-Security-Policy. `on_crash` is told of a bug, with the route it happened
    on.
    """
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
    }

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = gate.refuse(request) or await handler(request)
        except ProblemError as refusal:
            response = refusal.response
        except AvatarError as error:
            response = problem(
                error.status, error.code, sentence(error.code, error.facts), error.retry_after
            )
        except web.HTTPException as error:
            response = _as_problem(error)
        # Told once, with its traceback; the caller learns nothing of it
        except Exception as error:  # noqa: BLE001
            on_crash(_route(request), error)
            response = problem(500, "internal-error", "A bug in the companion; its log has more.")
        response.headers.update(headers)
        return response

    return middleware


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "none"


def _as_problem(error: web.HTTPException) -> web.Response:
    match error:
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            return problem(405, "method-not-allowed", f"Allowed here: {allowed}.", Allow=allowed)
        case web.HTTPNotFound():
            there_are = "/, /avatars, /avatars/{openid}, /v1/avatars, /livez, /readyz"
            return problem(404, "not-found", f"There is no such route; there are: {there_are}.")
        case _:
            return problem(error.status, "http-error", error.reason)
