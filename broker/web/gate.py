"""The gate: decides for each request whether it gets in, before any route is asked.

It asks three questions. Is the `Host` one of ours (a browser tricked by DNS sends another)? Where
tokens are handed out: does the request come from a program, and not from a browser or through a
proxy? Which client is it, and what may that client do?
"""

import hashlib
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, TypeVar

from aiohttp import hdrs, web

from broker.http.hosts import HostCheck
from broker.http.problems import Problem, problem
from broker.web.dialect import WECHAT, Dialect

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Network = IPv4Network | IPv6Network
M = TypeVar("M", bound=Callable[..., Awaitable[web.StreamResponse]])

SCOPES: Final = frozenset({"read", "report", "login", "proxy", "admin"})
REQUEST_HEADER: Final = "X-Token-Broker"
# Some SDKs name these in Host whatever address they connect to (WECHAT.md W96).
WECHAT_HOSTS: Final = frozenset({"api.weixin.qq.com", "qyapi.weixin.qq.com"})
WECHAT_PATHS: Final = ("cgi-bin/", "sns/")


@dataclass(frozen=True, slots=True)
class Client:
    """A program that asks. `apps` is None if it may ask for all of them."""

    name: str
    scopes: frozenset[str]
    apps: frozenset[str] | None = None

    def may_use(self, app: str) -> bool:
        """Return True if this client may ask for the app of that name."""
        return self.apps is None or app in self.apps


# Every program on this machine, where no [clients] are configured.
LOCAL: Final = Client("local", SCOPES)
# The same by the Unix socket, told apart in who was handed which token.
LOCAL_SOCKET: Final = Client("socket", SCOPES)
# Whoever came by the Unix socket without a key, where [clients] are configured.
SOCKET: Final = Client("socket", SCOPES - {"admin"})
CLIENT: Final = web.RequestKey("client", Client)
# A handler sets this once it has found that the client may do what it asks: looks at that again,
# by the rights that hold now. It returns the refusal, or raises it, and holds no reference to the
# request, since the request refers to it.
Judge = Callable[[web.Request], object]
JUDGE: Final[web.RequestKey[Judge]] = web.RequestKey("judge")


def open_to_browsers(handler: M) -> M:
    """Mark a handler that hands out no token. A handler without any mark is guarded."""
    handler.open_to_browsers = True  # type: ignore[attr-defined]
    return handler


def open_to_probes(handler: M) -> M:
    """Mark a handler that answers whatever Host is named, or none.

    Load balancers and Prometheus ask by names and addresses that no configuration knows, HAProxy's
    default check by none at all. Such a handler must tell nothing that a web page may not read.
    """
    handler.open_to_probes = True  # type: ignore[attr-defined]
    return handler


def authenticates(handler: M) -> M:
    """Mark a handler that finds the client itself, in the request; the gate checks all else."""
    handler.authenticates = True  # type: ignore[attr-defined]
    return handler


def answers_in(dialect: Dialect) -> Callable[[M], M]:
    """Mark a handler for SDKs, which is on a path of WeChat's or WeCom's.

    All that is refused there, by the gate too, is HTTP 200 with an errcode (WECHAT.md W89), and the
    names of WeChat's own hosts are welcome.
    """

    def mark(handler: M) -> M:
        handler.dialect = dialect  # type: ignore[attr-defined]
        return handler

    return mark


answers_in_errcodes = answers_in(WECHAT)


def dialect_of(request: web.Request) -> Dialect | None:
    """Return how the handler of a request refuses; None if it refuses with problems."""
    found: Dialect | None = getattr(request.match_info.handler, "dialect", None)
    is_other_method = isinstance(request.match_info.http_exception, web.HTTPMethodNotAllowed)
    # No SDK asks with OPTIONS, but browsers do.
    if is_other_method and request.method != hdrs.METH_OPTIONS:
        return WECHAT if request.path.lstrip("/").startswith(WECHAT_PATHS) else None
    return found


class Gate:
    """Decides who gets in.

    `keys` maps the SHA-256 (hex) of each bearer key to its client. It is empty where no clients are
    configured. `admissions` counts how often rights have changed; `on_admitted` is called each time
    they have.
    """

    def __init__(self, keys: Mapping[str, Client], hosts: Iterable[str]) -> None:
        self.admissions = 0
        self.on_admitted: Callable[[], None] = lambda: None
        self.admit(keys, hosts)

    def admit(
        self,
        keys: Mapping[str, Client],
        hosts: Iterable[str],
        trusted_proxies: Collection[Network] = (),
    ) -> None:
        """Replace the keys, the names accepted in Host, and the networks of trusted proxies."""
        self.keys = keys
        self._trusted_proxies = trusted_proxies
        self._hosts = HostCheck(hosts)
        self.admissions += 1
        self.on_admitted()

    def refuse(self, request: web.Request) -> Problem | None:
        """Return the refusal; or None, after `request[CLIENT]` was set where a client is needed."""
        # An absolute URI names a host of its own, past our look at Host.
        if not request.raw_path.startswith("/"):
            refusal = problem(400, "malformed-request", "Ask for a path, not for a URI.")
            refusal.force_close()
            return refusal
        match = request.match_info
        if hasattr(match.handler, "open_to_probes"):
            return None
        if match.http_exception is not None or hasattr(match.handler, "open_to_browsers"):
            return self._foreign(request)
        if (refused := self._foreign(request) or _by_browser(request)) is not None:
            return refused
        # A forwarded request may come from anywhere, so only a key, or a trusted proxy, lets it in.
        if not self.keys and is_forwarded(request) and not self._is_by_trusted(request):
            return _forwarded()
        return None if hasattr(match.handler, "authenticates") else self.identify(request)

    def client_of(self, key: str) -> Client | None:
        """Return the client that has this key, or None.

        Where no clients are configured, every key is that of the local client.
        """
        return self.keys.get(_sha256(key)) if self.keys else LOCAL

    def _foreign(self, request: web.Request) -> Problem | None:
        welcome = WECHAT_HOSTS if dialect_of(request) is not None else ()
        if self._hosts.is_ours(request, welcome):
            return None
        detail = "This name is not the broker's: add it to server.allowed_hosts if it is."
        return problem(403, "host-not-allowed", detail)

    def identify(self, request: web.Request) -> Problem | None:
        """Find the client by its key, or by the header that only programs send.

        Returns the refusal; or None, after `request[CLIENT]` was set.
        """
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
        is_keyless = self.keys and not by_unix_socket(request)
        if is_keyless and is_forwarded(request) and not self._is_by_trusted(request):
            return _forwarded()
        if is_keyless:
            return problem(
                401, "missing-key", "Send `Authorization: Bearer KEY`.", WWW_Authenticate="Bearer"
            )
        if request.headers.get(REQUEST_HEADER) != "1":
            return problem(
                403,
                "missing-request-header",
                f"Send the header `{REQUEST_HEADER}: 1`; a web page could not.",
            )
        if by_unix_socket(request):
            request[CLIENT] = SOCKET if self.keys else LOCAL_SOCKET
        else:
            request[CLIENT] = LOCAL
        return None

    def _is_by_trusted(self, request: web.Request) -> bool:
        """Return True if the peer is a proxy whose forwarded requests are normal."""
        try:
            peer = ip_address(request.remote or "")
        except ValueError:  # a Unix socket has no address
            return False
        mapped = peer.ipv4_mapped if isinstance(peer, IPv6Address) else None
        return any((mapped or peer) in network for network in self._trusted_proxies)


def _by_browser(request: web.Request) -> Problem | None:
    for name in request.headers:
        lowered = name.lower()
        if lowered == "origin" or lowered.startswith("sec-fetch-"):
            return problem(
                403,
                "browser-request",
                "Tokens are for programs; this request comes from a browser.",
            )
    return None


def is_forwarded(request: web.Request) -> bool:
    """Return True if a proxy or a mesh has passed this request on."""
    names = (name.lower() for name in request.headers)
    return any(name in {"forwarded", "via"} or name.startswith("x-forwarded-") for name in names)


def _forwarded() -> Problem:
    return problem(
        403,
        "forwarded-request",
        "Tokens are for this host; this request comes through a proxy: send a client's key, or name"
        " the proxy's network in server.trusted_proxies.",
    )


def _digest(authorization: str) -> str:
    """Return the SHA-256 of the bearer key, empty if the scheme is another.

    To look up a digest takes the same time however much of a guessed key was right.
    """
    scheme, _, key = authorization.partition(" ")
    return _sha256(key.strip()) if scheme.lower() == "bearer" else ""


def _sha256(key: str) -> str:
    # aiohttp escapes header bytes that are no UTF-8 as lone surrogates. JSON can hold surrogates
    # that stand for no bytes at all: those are nobody's key.
    try:
        return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    except UnicodeEncodeError:
        return ""


def by_unix_socket(request: web.Request) -> bool:
    """Return True if the peer came by the Unix socket, whose group decides who may.

    A forwarded request does not: whoever sent it is not in that group.
    """
    if is_forwarded(request):
        return False
    sock = request.transport.get_extra_info("socket") if request.transport is not None else None
    return sock is not None and sock.family == socket.AF_UNIX
