"""WeChat's own token paths: an SDK becomes a client by one changed line (WECHAT.md W88, W94).

The `secret` of a request is the client's broker key, never the AppSecret. Answers are WeChat's:
HTTP 200 with an errcode and its words, even on failure. On any other status some SDKs print the
URL, which has the key in it.

What it means that a client asks again is in askers.py. Handles never age and are not doubted: the
proxy puts the token of the moment in their place, and sees itself what WeChat refuses. Only a
client whose calls it has seen refused is stopped where it asks again and again.
"""

import json
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from broker.core.credential import Endpoint, ticket_kinds
from broker.core.ports import StoreError
from broker.core.serving import Served, Unavailable
from broker.tokens.keeper import Keeper
from broker.tokens.registry import Registry
from broker.tokens.tickets import Tickets
from broker.web.askers import Askers
from broker.web.connection.fast_path import AGAIN, APP, Again
from broker.web.dialect import WECHAT, WECOM, Dialect, ErrcodeError, no_token
from broker.web.gate import CLIENT, JUDGE, Client, Gate, answers_in, authenticates
from broker.web.handed import note_handed
from broker.web.handles import Handles
from broker.web.params import NO_STORE, sdk_params
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
DOUBTS_WITHIN_S: Final = 0.5
LOOPS: Final = (
    "(token-broker: WeChat refuses the calls of this client, and asking again brings the same"
    " handle; wait a minute)"
)


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
        self._handles = handles
        self._askers = Askers(now)

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

    @answers_in(WECHAT)
    @authenticates
    async def get_token(self, request: web.Request) -> web.Response:
        """Answer with the token as WeChat would."""
        return _answer(await self._token(request, WECHAT))

    @answers_in(WECOM)
    @authenticates
    async def get_wecom_token(self, request: web.Request) -> web.Response:
        """Answer with the token as WeCom would."""
        return _answer(await self._token(request, WECOM))

    @answers_in(WECHAT)
    @authenticates
    async def get_ticket(self, request: web.Request) -> web.Response:
        """Answer with a ticket as WeChat would, to whoever has the app's token."""
        return _answer(await self._ticket(request))

    async def _token(self, request: web.Request, dialect: Dialect) -> dict[str, Any]:
        params = dict(await sdk_params(request))
        client, keeper = self._identify(params, dialect)
        request[CLIENT], request[APP] = client, keeper.account.name
        request[JUDGE] = lambda _: self._identify(params, dialect)
        served = keeper.serve() or await keeper.get(0, self._patience_s)
        handle = self._handles.of(client, keeper) if self._handles else None
        if self._handles and handle is not None and isinstance(served, Served):
            if self._handles.is_loop(client, keeper):
                raise ErrcodeError(45011, LOOPS)
            return {**dialect.good, "access_token": handle, "expires_in": HANDLE_LIVES_S}
        name = client.name if self._gate.keys else str(params.get(dialect.secret_field))
        if self._askers.doubts(name, keeper) or _wants_another(params):
            # Nobody waits long while a good token is held: the verification goes on behind.
            patience_s = DOUBTS_WITHIN_S if isinstance(served, Served) else self._patience_s
            await keeper.doubt(patience_s)
            served = keeper.serve() or await keeper.get(0, self._patience_s)
        elif self._askers.has_asked(name, keeper):
            keeper.doubt_quietly()
        if not isinstance(served, Served):
            raise no_token(served, keeper.credential.failure)
        note_handed(request, keeper)
        self._askers.note(name, keeper, served)
        if request.method == "GET":
            request[AGAIN] = self._again(name, keeper, served, dialect)
        return _token(served, dialect)

    def _again(self, name: str, keeper: Keeper, first: Served, dialect: Dialect) -> Again:
        """Return how the same answer is given again, while the client goes on asking steadily."""
        credential = first.credential

        def again() -> tuple[bytes, float] | None:
            served = keeper.serve()
            if served is None or served.credential is not credential:
                return None
            if self._askers.doubts(name, keeper):
                return None
            self._askers.note(name, keeper, served)
            keeper.doubt_quietly()
            return json.dumps(_token(served, dialect)).encode(), served.until

        return again

    async def _ticket(self, request: web.Request) -> dict[str, Any]:
        params = dict(await sdk_params(request))
        token = str(params.get("access_token") or "")
        if not token:
            raise ErrcodeError(41001)
        owner = self._owner_of(token)
        request[JUDGE] = lambda _: self._owner_of(token)
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
            failure = keeper.credential.failure or owner.credential.failure
            raise no_token(served, failure, english.TICKET)
        return {
            "errcode": 0,
            "errmsg": "ok",
            "ticket": served.token.value.reveal(),
            "expires_in": served.expires_in,
        }

    def _owner_of(self, token: str) -> Keeper:
        """Return the app whose token or handle this is. Raises ErrcodeError."""
        if self._handles and (held := self._handles.open(token)) is not None:
            return held[1]
        for keeper in self._registry:
            if keeper.recognizes(token):
                return keeper
        raise ErrcodeError(40001)

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


def _token(served: Served, dialect: Dialect) -> dict[str, Any]:
    token = served.token.value.reveal()
    return {**dialect.good, "access_token": token, "expires_in": served.expires_in}


def _wants_another(params: dict[str, Any]) -> bool:
    return params.get("force_refresh") in (True, "true", "1")


def _answer(answer: dict[str, Any]) -> web.Response:
    return web.json_response(answer, headers=NO_STORE)
