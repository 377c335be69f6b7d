"""Who gets in: the outermost middleware, in front of every route.

Three questions. Is the `Host` one of ours (a browser tricked by DNS says another)? Does the request
come from a program of this machine, not from a browser or a proxy, where tokens are handed out? Who
is it, and may it do that?
"""

import hashlib
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from aiohttp import hdrs, web

from broker.http.hosts import HostCheck
from broker.http.problems import problem

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
H = TypeVar("H", bound=Handler)
M = TypeVar("M", bound=Callable[..., Awaitable[web.StreamResponse]])

SCOPES: Final = frozenset({"read", "report", "login", "proxy", "admin"})
ANYBODY: Final = "*"
REQUEST_HEADER: Final = "X-Token-Broker"
BROWSER: Final = ("sec-fetch-",)
FORWARDED: Final = ("x-forwarded-",)


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks. `apps` is None where it may ask for all of them."""

    name: str
    scopes: frozenset[str]
    apps: frozenset[str] | None = None

    def may_use(self, app: str) -> bool:
        """Whether this client may ask for the app of that name."""
        return self.apps is None or app in self.apps


LOCAL: Final = Client(
    "local", SCOPES
)  # everybody on this machine, where no [clients] are configured
SOCKET: Final = Client(
    "socket", SCOPES - {"admin"}
)  # let in by the Unix socket's group, where [clients] are
CLIENT: Final = web.RequestKey("client", Client)


def open_to_browsers(handler: H) -> H:
    """Mark a handler that hands out no token: probes, status, pages.

    Everything unmarked is guarded.
    """
    handler.open_to_browsers = True  # type: ignore[attr-defined]
    return handler


def authenticates(handler: M) -> M:
    """Mark a handler that finds out itself who asks, by what is in the request; host and browser are looked at here."""
    handler.authenticates = True  # type: ignore[attr-defined]
    return handler


def answers_in_errcodes(handler: M) -> M:
    """Mark a handler for SDKs: what is refused before it is asked, too, is HTTP 200 with an errcode (WECHAT.md W89)."""
    handler.answers_in_errcodes = True  # type: ignore[attr-defined]
    return handler


class Gate:
    """Decides for each request; `keys` maps the SHA-256 (hex) of a bearer key to its client, empty where there are none."""

    def __init__(self, keys: Mapping[str, Client], hosts: Iterable[str]) -> None:
        self.admit(keys, hosts)

    def admit(self, keys: Mapping[str, Client], hosts: Iterable[str]) -> None:
        """Go by these keys and names from now on."""
        self.keys = keys
        self._hosts = HostCheck(hosts)

    def refuse(self, request: web.Request) -> web.Response | None:
        """The refusal, or None after noting who the client is."""
        if not request.raw_path.startswith(
            "/"
        ):  # an absolute URI names a host of its own, past our look at Host
            refusal = problem(400, "malformed-request", "Ask for a path, not for a URI.")
            refusal.force_close()
            return refusal
        match = request.match_info
        if match.http_exception is not None or hasattr(match.handler, "open_to_browsers"):
            return self._foreign(request)
        if hasattr(match.handler, "authenticates"):
            return self._foreign(request) or _not_a_program(request)
        return self._foreign(request) or _not_a_program(request) or self.identify(request)

    def client_of(self, key: str) -> Client | None:
        """The client that has this key; everybody on this machine where no clients are configured."""
        return self.keys.get(_sha256(key)) if self.keys else LOCAL

    def _foreign(self, request: web.Request) -> web.Response | None:
        if self._hosts.is_ours(request):
            return None
        detail = "This name is not the broker's: add it to server.allowed_hosts if it is."
        return problem(403, "host-not-allowed", detail)

    def identify(self, request: web.Request) -> web.Response | None:
        """The refusal, or None after noting who the client is, by its key or by the header that only programs send."""
        given = request.headers.getall(hdrs.AUTHORIZATION, [])
        if given and self.keys:
            client = self.keys.get(_digest(given[0])) if len(given) == 1 else None
            if client is None:
                return problem(
                    401,
                    "invalid-key",
                    "No client has this key.",
                    WWW_Authenticate='Bearer error="invalid_token"',
                )
            request[CLIENT] = client
            return None
        local = not self.keys or by_unix_socket(request)
        if not local:
            return problem(
                401, "missing-key", "Send `Authorization: Bearer KEY`.", WWW_Authenticate="Bearer"
            )
        if request.headers.get(REQUEST_HEADER) != "1":
            return problem(
                403,
                "missing-request-header",
                f"Send the header `{REQUEST_HEADER}: 1`; a web page could not.",
            )
        request[CLIENT] = SOCKET if self.keys else LOCAL
        return None


def _not_a_program(request: web.Request) -> web.Response | None:
    for name in request.headers:
        lowered = name.lower()
        if lowered == "origin" or lowered.startswith(BROWSER):
            return problem(
                403,
                "browser-request",
                "Tokens are for programs; this request comes from a browser.",
            )
        if lowered in {"forwarded", "via"} or lowered.startswith(FORWARDED):
            return problem(
                403,
                "forwarded-request",
                "Tokens are for this host; this request comes through a proxy.",
            )
    return None


def _digest(authorization: str) -> str:
    """SHA-256 of the bearer key: looking up a digest takes the same time however much of a key was right."""
    scheme, _, key = authorization.partition(" ")
    return _sha256(key.strip()) if scheme.lower() == "bearer" else ""


def _sha256(key: str) -> str:
    try:  # aiohttp has header bytes that are no UTF-8 escaped so; JSON may have what no bytes are
        return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    except UnicodeEncodeError:
        return ""


def by_unix_socket(request: web.Request) -> bool:
    """Whether the peer came by the Unix socket, whose group decides who may."""
    sock = request.transport.get_extra_info("socket") if request.transport is not None else None
    return sock is not None and sock.family == socket.AF_UNIX
