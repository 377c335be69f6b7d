"""In front of every route: the Host check, errors as problems, and the headers that keep a page to itself."""

from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from yarl import URL

from broker.avatars.errors import Trouble
from broker.avatars.problems import Bad, of_trouble, problem

Crash = Callable[[str, Exception], None]

LOOPBACK_NAMES: Final = frozenset({"localhost", "ip6-localhost", "ip6-loopback"})
POLICY: Final = "default-src 'none'; style-src 'self'; img-src {}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class Gate:
    """Answers to its own names only: a web page that makes its name point here learns nothing."""

    def __init__(self, hosts: Iterable[str]) -> None:
        self._hosts = LOOPBACK_NAMES | {host.strip("[]").lower() for host in hosts if host}

    def refuse(self, request: web.Request) -> web.Response | None:
        """The refusal, if it is to be refused."""
        if not request.raw_path.startswith("/"):  # an absolute URI names a host of its own, past our look at Host
            return problem(400, "malformed-request", "Ask for a path, not for a URI.")
        given = request.headers.getall(hdrs.HOST, [])
        if len(given) != 1 or not self._is_ours(_name(given[0]), request):
            return problem(403, "host-not-allowed", "This name is not the companion's: add it to server.allowed_hosts if it is.")
        return None

    def _is_ours(self, name: str, request: web.Request) -> bool:
        if name in self._hosts:
            return True
        try:
            address = ip_address(name)
        except ValueError:
            return False
        bound = request.transport and request.transport.get_extra_info("sockname")
        return address.is_loopback or (isinstance(bound, tuple) and name == bound[0])


def front(gate: Gate, image_sources: Iterable[str], on_crash: Crash) -> Middleware:
    """The one middleware. `on_crash` is told of a bug, with the route it happened on."""
    headers = {
        "Content-Security-Policy": POLICY.format(" ".join(["'self'", *image_sources])),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
    }

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = gate.refuse(request) or await handler(request)
        except Bad as bad:
            response = problem(bad.status, bad.code, bad.detail)
        except Trouble as trouble:
            response = of_trouble(trouble)
        except web.HTTPException as error:
            response = _as_problem(error)
        except Exception as error:  # noqa: BLE001 -- told once, with its traceback; the caller learns nothing of it
            on_crash(_route(request), error)
            response = problem(500, "internal-error", "A bug in the companion; its log has more.")
        response.headers.update(headers)
        return response

    return middleware


def _name(host: str) -> str:
    """The name in a Host header, without its port; empty where it is malformed."""
    try:
        url = URL(f"http://{host}")
        return (url.host or "").lower() if url.raw_authority.lower() == host.lower() and url.user is None else ""
    except ValueError:
        return ""


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
