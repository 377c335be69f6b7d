"""WeChat's own token paths: an SDK becomes a client by one changed line (WECHAT.md W88, W94).

The `secret` of a request is the client's broker key, never the AppSecret. Answers are WeChat's:
HTTP 200 with an errcode and its words, even on failure. On any other status some SDKs print the
URL, which has the key in it.

An SDK cannot say which token was refused: it only asks again. So a client that asks again for a
token that it was handed already is taken to report it. WeChat is asked, at most once per
`verify_gap`, and the token is replaced only if WeChat refuses it.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from aiohttp import web

from broker.core.credential import NEVER, Endpoint, ticket_kinds
from broker.core.ports import StoreError
from broker.core.serving import Code, Served, Unavailable
from broker.tokens.keeper import Keeper
from broker.tokens.registry import Registry
from broker.tokens.tickets import Tickets
from broker.web.connection.connections import read_body
from broker.web.connection.fast_path import AGAIN
from broker.web.dialect import WECHAT, WECOM, Dialect, ErrcodeError
from broker.web.gate import CLIENT, Client, Gate, authenticates
from broker.web.handles import Handles
from broker.web.params import NO_STORE
from broker.web.words import english

PATHS: Final = ("/{slashes:/*}cgi-bin/token", "/{slashes:/*}cgi-bin/stable_token")
WECOM_PATH: Final = "/{slashes:/*}cgi-bin/gettoken"
TICKET_PATHS: Final = (
    "/{slashes:/*}cgi-bin/ticket/getticket",
    "/{slashes:/*}cgi-bin/ticket/get",
    "/{slashes:/*}cgi-bin/get_jsapi_ticket",
)
GRANT: Final = "client_credential"
HANDLE_LIVES_S: Final = 7200  # what SDKs expect of a token
WINDOW_S: Final = 60.0
# Answers to one client about one version within the window. It ends a loop; fifty threads that
# start at the same time stay below.
MOST_IN_WINDOW: Final = 100
MOST_KNOWN: Final = 4096


@dataclass(slots=True)
class Handed:
    """What a client was handed last.

    `at` is when (steady seconds); `times` counts the answers in the window that began at `began`.
    """

    version: str | None
    at: float
    began: float
    times: int


class Compat:
    """The handlers, and what they remember of each client and app.

    `patience_s` is how long a request waits for a refresh that is under way; `now` gives steady
    seconds. With `handles`, clients of the proxy get a handle in the place of a token.
    """

    def __init__(
        self,
        gate: Gate,
        registry: Registry,
        tickets: Tickets,
        patience_s: float,
        now: Callable[[], float],
        handles: Handles | None = None,
    ) -> None:
        self._gate = gate
        self._registry = registry
        self._tickets = tickets
        self._patience_s = patience_s
        self._now = now
        self._handles = handles
        self._handed: dict[tuple[str, str], Handed] = {}

    def routes(self) -> list[web.RouteDef]:
        """Return GET and POST for each path, with any number of leading slashes: SDKs differ."""
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
        """Answer with the token as WeChat would."""
        return await _in_dialect(request, self._token(request, WECHAT), WECHAT)

    @authenticates
    async def get_wecom_token(self, request: web.Request) -> web.Response:
        """Answer with the token as WeCom would."""
        return await _in_dialect(request, self._token(request, WECOM), WECOM)

    @authenticates
    async def get_ticket(self, request: web.Request) -> web.Response:
        """Answer with a ticket as WeChat would, to whoever has the app's token."""
        return await _in_dialect(request, self._ticket(request), WECHAT)

    async def _token(self, request: web.Request, dialect: Dialect) -> dict[str, Any]:
        params = await _parameters(request)
        arrived_at = self._now()
        client, keeper = self._identify(params, dialect)
        request[CLIENT] = client
        handed = self._handed.get((client.name, keeper.account.name))
        self._refuse_a_loop(handed, keeper, arrived_at)
        served = keeper.serve() or await keeper.get(0, self._patience_s)
        if _asks_again(handed, keeper, arrived_at) or _wants_another(params):
            served = await self._reported(keeper) or served
        if not isinstance(served, Served):
            raise ErrcodeError(
                45009 if served.code is Code.QUOTA_EXHAUSTED else -1,
                f"(token-broker: {english.unavailable(served)})",
            )
        self._note(client, keeper, self._now())
        handle = self._handles.of(client, keeper) if self._handles else None
        if handle is not None:  # it never ages: the proxy puts the token of the moment in its place
            return {**dialect.good, "access_token": handle, "expires_in": HANDLE_LIVES_S}
        token = served.token.value.reveal()
        return {**dialect.good, "access_token": token, "expires_in": served.expires_in}

    async def _ticket(self, request: web.Request) -> dict[str, Any]:
        params = await _parameters(request)
        token = str(params.get("access_token") or "")
        if not token:
            raise ErrcodeError(41001)
        held = self._handles.open(token) if self._handles else None
        owner = held[1] if held else self._owner_of(token)
        if owner is None:
            raise ErrcodeError(40001)
        # WeCom's own path for a company's ticket names no type.
        is_of_company = request.path.endswith("jsapi_ticket")
        kind = "jsapi" if is_of_company else str(params.get("type") or "")
        try:
            keeper = await self._tickets.keeper(owner.account, kind)
        except StoreError as error:
            raise ErrcodeError(-1, f"(token-broker: {error})") from None
        if keeper is None:
            known = " and ".join(ticket_kinds(owner.account.endpoint))
            raise ErrcodeError(47001, f"(token-broker: there are the types {known})")
        served = keeper.serve() or await keeper.get(0, self._patience_s)
        if isinstance(served, Unavailable):
            raise ErrcodeError(-1, f"(token-broker: {english.unavailable(served, english.TICKET)})")
        return {
            "errcode": 0,
            "errmsg": "ok",
            "ticket": served.token.value.reveal(),
            "expires_in": served.expires_in,
        }

    def _owner_of(self, token: str) -> Keeper | None:
        return next((keeper for keeper in self._registry if keeper.recognizes(token)), None)

    def _identify(self, params: dict[str, Any], dialect: Dialect) -> tuple[Client, Keeper]:
        """Return who asks for which app. Raises ErrcodeError, in WeChat's order of complaints.

        A client that may not use an app does not learn whether there is one.
        """
        if dialect is WECHAT and params.get("grant_type") != GRANT:
            raise ErrcodeError(40002)
        appid = str(params.get(dialect.app_field) or "")
        secret = str(params.get(dialect.secret_field) or "")
        if not appid or not secret:
            raise ErrcodeError(41004 if appid else 41002)
        client = self._gate.client_of(secret)
        if client is None:
            raise ErrcodeError(dialect.wrong_secret)
        # A corpid may have several apps. Then the key says which is meant, if it is for one only.
        named = [
            keeper
            for keeper in self._registry
            if appid in {keeper.account.appid, keeper.account.name}
            and (keeper.account.endpoint is Endpoint.WECOM) is (dialect is WECOM)
            and client.may_use(keeper.account.name)
        ]
        scopes = {"read", "proxy"} if self._handles else {"read"}
        if len(named) != 1 or not scopes & client.scopes:
            several = "(token-broker: give each app a client of its own)" if len(named) > 1 else ""
            raise ErrcodeError(40013, several)
        return client, named[0]

    @staticmethod
    def _refuse_a_loop(handed: Handed | None, keeper: Keeper, now: float) -> None:
        """Raise ErrcodeError if the client was handed this version too often within the window."""
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

    async def _reported(self, keeper: Keeper) -> Served | Unavailable | None:
        """Report the token in force. None if what was served before is as good an answer."""
        answer = await keeper.report(self._patience_s, version=keeper.credential.version)
        if isinstance(answer, Unavailable):
            return keeper.serve() or answer
        return answer[1]


def _asks_again(handed: Handed | None, keeper: Keeper, arrived_at: float) -> bool:
    """Return True if the client had the current token already when its request came in.

    Requests that come in together, before the first is answered, are no reports.
    """
    return (
        handed is not None
        and handed.version == keeper.credential.version
        and arrived_at > handed.at
    )


def _wants_another(params: dict[str, Any]) -> bool:
    return params.get("force_refresh") in (True, "true", "1")


async def _in_dialect(
    request: web.Request, answering: Awaitable[dict[str, Any]], dialect: Dialect
) -> web.Response:
    """Build the answer, or the refusal that `answering` raises."""
    try:
        answer = await answering
    except ErrcodeError as refusal:
        answer = dialect.refusal(refusal)
        # The refusal of a loop is repeated from the response cache, so that the loop costs next to
        # nothing. Good answers are not: to ask again for the same token is a report.
        if refusal.until > NEVER:
            again = json.dumps(answer).encode(), refusal.until
            request[AGAIN] = lambda: again
    return web.json_response(answer, headers=NO_STORE)


async def _parameters(request: web.Request) -> dict[str, Any]:
    """Return query and body, JSON or form, whatever the content type says."""
    params: dict[str, Any] = dict(request.query)
    if request.method == "POST" and request.can_read_body:
        try:
            body = await read_body(request)
            more = json.loads(body) if body.lstrip()[:1] == b"{" else dict(parse_qsl(body.decode()))
        except (TimeoutError, ValueError, RecursionError, ConnectionError):
            raise ErrcodeError(47001) from None
        params |= more if isinstance(more, dict) else {}
    return params
