"""WeChat's own token paths, so that an SDK becomes a client by one changed line (WECHAT.md W88, W94).

The `secret` of a request is the client's broker key, never the AppSecret. Answers are WeChat's:
HTTP 200 with an errcode and its words, even on failure, since on anything else some SDKs print the
URL with the key in it.

An SDK cannot say which token was refused: it only asks again. So a client that asks again for a
token it was handed already is taken to report it; WeChat is asked, at most once per `verify_gap`,
and only on its word the token is replaced.
"""

import asyncio
import json
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from aiohttp import web

from broker.core.credential import NEVER, Endpoint, ticket_kinds
from broker.core.ports import StoreError
from broker.core.serving import Code, Served, Unavailable
from broker.tokens.keeper import Keeper
from broker.tokens.tickets import Tickets
from broker.web.connection.fast_path import AGAIN
from broker.web.context import EDGE
from broker.web.dialect import WECHAT, WECOM, Dialect, ErrcodeError
from broker.web.gate import CLIENT, Client, Gate, authenticates
from broker.web.handles import Handles
from broker.web.params import BODY_DEADLINE_S, NO_STORE

PATHS: Final = ("/{slashes:/*}cgi-bin/token", "/{slashes:/*}cgi-bin/stable_token")
WECOM_PATH: Final = "/{slashes:/*}cgi-bin/gettoken"
TICKET_PATHS: Final = (
    "/{slashes:/*}cgi-bin/ticket/getticket",
    "/{slashes:/*}cgi-bin/ticket/get",
    "/{slashes:/*}cgi-bin/get_jsapi_ticket",
)
GRANT: Final = "client_credential"
WINDOW_S: Final = 60.0
MOST_IN_WINDOW: Final = (
    100  # answers to one client about one version: a loop ends, fifty threads at a start do not
)
MOST_KNOWN: Final = 4096
THROTTLED: Final = {Code.REPORT_THROTTLED, Code.UPSTREAM_UNAVAILABLE}


@dataclass(slots=True)
class Handed:
    """What a client was handed last: the version, when, and how often in the window that began then."""

    version: str | None
    at: float
    began: float
    times: int


class Compat:
    """The handlers, and what they remember of each client and app.

    With `handles`, clients of the proxy get one for a token.
    """

    def __init__(self, gate: Gate, tickets: Tickets, handles: Handles | None = None) -> None:
        self._gate = gate
        self._tickets = tickets
        self._handles = handles
        self._handed: dict[tuple[str, str], Handed] = {}

    def routes(self) -> list[web.RouteDef]:
        """GET and POST on all paths, with any number of leading slashes: SDKs differ in all of it."""
        handlers = {
            **dict.fromkeys(PATHS, self.get_token),
            WECOM_PATH: self.get_wecom_token,
            **dict.fromkeys(TICKET_PATHS, self.get_ticket),
        }
        return [
            web.route(method, path, handler)
            for path, handler in handlers.items()
            for method in ("GET", "POST")
        ]

    @authenticates
    async def get_token(self, request: web.Request) -> web.Response:
        """The token as WeChat would hand it out."""
        return await _said(request, self._token(request, WECHAT), WECHAT)

    @authenticates
    async def get_wecom_token(self, request: web.Request) -> web.Response:
        """The token as WeCom would hand it out."""
        return await _said(request, self._token(request, WECOM), WECOM)

    @authenticates
    async def get_ticket(self, request: web.Request) -> web.Response:
        """A ticket as WeChat would hand it out: to who has the app's token."""
        return await _said(request, self._ticket(request), WECHAT)

    async def _token(self, request: web.Request, dialect: Dialect) -> dict[str, Any]:
        said = await _parameters(request)
        edge, arrived_at = request.app[EDGE], request.app[EDGE].response_cache.now()
        client, keeper = self._identify(request, said, dialect)
        request[CLIENT] = client
        handed = self._handed.get((client.name, keeper.account.name))
        self._bound(handed, keeper, arrived_at)
        served = keeper.serve() or await keeper.get(0, edge.patience_s)
        if _asks_again(handed, keeper, arrived_at) or _wants_another(said):
            served = await _doubted(keeper, edge.patience_s) or served
        if not isinstance(served, Served):
            raise ErrcodeError(
                45009 if served.code is Code.QUOTA_EXHAUSTED else -1,
                f"(token-broker: {served.detail})",
            )
        self._note(client, keeper, edge.response_cache.now())
        handle = self._handles.of(client, keeper) if self._handles else None
        return {
            **dialect.good,
            "access_token": handle or served.token.value.reveal(),
            "expires_in": served.expires_in,
        }

    async def _ticket(self, request: web.Request) -> dict[str, Any]:
        said, edge = await _parameters(request), request.app[EDGE]
        token = str(said.get("access_token") or "")
        if not token:
            raise ErrcodeError(41001)
        held = self._handles.open(token) if self._handles else None
        tokens = (
            held[1]
            if held
            else next((keeper for keeper in edge.registry if keeper.recognizes(token)), None)
        )
        if tokens is None:
            raise ErrcodeError(40001)
        # WeCom's own path for a company's ticket names no type.
        kind = "jsapi" if request.path.endswith("jsapi_ticket") else str(said.get("type") or "")
        try:
            keeper = await self._tickets.keeper(tokens.account, kind)
        except StoreError as error:
            raise ErrcodeError(-1, f"(token-broker: {error})") from None
        if keeper is None:
            raise ErrcodeError(
                47001,
                f"(token-broker: there are the types {' and '.join(ticket_kinds(tokens.account.endpoint))})",
            )
        served = keeper.serve() or await keeper.get(0, edge.patience_s)
        if not isinstance(served, Served):
            raise ErrcodeError(-1, f"(token-broker: {served.detail})")
        return {
            "errcode": 0,
            "errmsg": "ok",
            "ticket": served.token.value.reveal(),
            "expires_in": served.expires_in,
        }

    def _identify(
        self, request: web.Request, said: dict[str, Any], dialect: Dialect
    ) -> tuple[Client, Keeper]:
        """Who asks for what, in WeChat's order of complaints; who may not use an app learns nothing of it."""
        if dialect is WECHAT and said.get("grant_type") != GRANT:
            raise ErrcodeError(40002)
        appid, secret = (str(said.get(name) or "") for name in (dialect.who, dialect.secret))
        if not appid or not secret:
            raise ErrcodeError(41004 if appid else 41002)
        client = self._gate.client_of(secret)
        if client is None:
            raise ErrcodeError(dialect.wrong_secret)
        # A corpid may have several apps: the key says which, where it opens one.
        named = [
            keeper
            for keeper in request.app[EDGE].registry
            if appid in {keeper.account.appid, keeper.account.name}
            and (keeper.account.endpoint is Endpoint.WECOM) is (dialect is WECOM)
            and client.may_use(keeper.account.name)
        ]
        scopes = {"read", "proxy"} if self._handles else {"read"}
        if len(named) != 1 or not scopes & client.scopes:
            raise ErrcodeError(
                40013, "(token-broker: give each app a client of its own)" if len(named) > 1 else ""
            )
        return client, named[0]

    def _bound(self, handed: Handed | None, keeper: Keeper, now: float) -> None:
        is_same = handed is not None and handed.version == keeper.credential.version
        if handed and is_same and handed.times >= MOST_IN_WINDOW and now < handed.began + WINDOW_S:
            raise ErrcodeError(45011, until=handed.began + WINDOW_S)

    def _note(self, client: Client, keeper: Keeper, now: float) -> None:
        key, version = (client.name, keeper.account.name), keeper.credential.version
        handed = self._handed.get(key)
        if handed is None or handed.version != version or now >= handed.began + WINDOW_S:
            if len(self._handed) >= MOST_KNOWN:
                self._handed.clear()
            self._handed[key] = Handed(version, now, now, 1)
        else:
            handed.at, handed.times = now, handed.times + 1


def _asks_again(handed: Handed | None, keeper: Keeper, arrived_at: float) -> bool:
    """Whether the client had the current token already when it asked: those who arrived together did not."""
    return (
        handed is not None
        and handed.version == keeper.credential.version
        and arrived_at > handed.at
    )


def _wants_another(said: dict[str, Any]) -> bool:
    return said.get("force_refresh") in (True, "true", "1")


async def _doubted(keeper: Keeper, patience_s: float) -> Served | Unavailable | None:
    """What comes of taking this for a report; None where the token held before is as good an answer."""
    answer = await keeper.report(patience_s, version=keeper.credential.version)
    if isinstance(answer, Unavailable):
        return keeper.serve() or answer
    return answer[1]


async def _said(
    request: web.Request, answering: Awaitable[dict[str, Any]], dialect: Dialect
) -> web.Response:
    try:
        answer = await answering
    except ErrcodeError as refusal:
        answer = dialect.refusal(refusal)
        if (
            refusal.until > NEVER
            # A loop costs next to nothing; a good answer is not given so: asking again means
            # something
        ):
            again = json.dumps(answer).encode(), refusal.until
            request[AGAIN] = lambda: again
    return web.json_response(answer, headers=NO_STORE)


async def _parameters(request: web.Request) -> dict[str, Any]:
    """Query and body, JSON or form, whatever the content type says."""
    said: dict[str, Any] = dict(request.query)
    if request.method == "POST" and request.can_read_body:
        try:
            async with asyncio.timeout(BODY_DEADLINE_S):
                body = await request.read()
            more = json.loads(body) if body.lstrip()[:1] == b"{" else dict(parse_qsl(body.decode()))
        except (TimeoutError, ValueError, RecursionError, ConnectionError):
            raise ErrcodeError(47001) from None
        said |= more if isinstance(more, dict) else {}
    return said
