"""Calls with users' tokens, passed on as they came (WECHAT.md W82 to W84).

Nothing of the account's is added.

An SDK with one base address sends them here after a web login. They take no AppSecret, so all that
the broker lends is its way out. What does take the secret is answered by web/api/logins.py.
"""

import asyncio
import re
from typing import Final
from urllib.parse import unquote_plus

import aiohttp
from aiohttp import hdrs, web
from yarl import URL

from broker.core.answer import MOST_BYTES
from broker.http.way_out import OutgoingSession, under
from broker.web.dialect import WECHAT, ErrcodeError
from broker.web.gate import (
    CLIENT,
    JUDGE,
    LOCAL,
    REQUEST_HEADER,
    SOCKET,
    Client,
    Gate,
    answers_in_errcodes,
    authenticates,
    by_unix_socket,
)
from broker.web.handles import PREFIX
from broker.web.params import NO_STORE
from broker.web.proxy import headers as hops
from broker.web.proxy import paths
from broker.web.proxy.handler import ProxyCounters
from broker.web.proxy.limits import Busy, ProxyLimits, TooFast

PATHS: Final = ("/sns/oauth2/refresh_token", "/sns/userinfo", "/sns/auth")
SCOPES: Final = frozenset({"login", "proxy"})
DEADLINE_S: Final = 30.0
OF_USERS: Final = "sns/"  # in the place of an app's name, which has no slash in it
SECRETLESS: Final = (
    "(token-broker: this call takes no secret, and WeChat must not see it: leave it out)"
)
HANDLE_GIVEN: Final = "(token-broker: this takes a user's token, not the app's)"
WHO: Final = "(token-broker: say who you are with `Authorization: Bearer KEY`)"
LACKS_SCOPE: Final = "(token-broker: this client has neither the scope `login` nor `proxy`)"
AWAY: Final = "(token-broker: WeChat could not be reached, or did not answer in time)"

DOUBTFUL: Final = "(token-broker: a parameter is named almost like access_token)"
_HANDLE: Final = re.compile(rf"(?:^|[&=;?,]){re.escape(PREFIX)}")  # at the beginning of a value


class UserCalls:
    """The handler. `base` is where WeChat is; calls are counted under `OF_USERS`."""

    def __init__(
        self,
        gate: Gate,
        limits: ProxyLimits,
        out: OutgoingSession,
        base: URL,
        counters: ProxyCounters,
    ) -> None:
        self._gate, self._limits, self._out, self._base = gate, limits, out, base
        self._counters = counters

    def routes(self) -> list[web.RouteDef]:
        """Return a route for each path, with any number of leading slashes."""
        return [web.route("GET", f"/{{slashes:/*}}{path[1:]}", self.handle) for path in PATHS]

    @answers_in_errcodes
    @authenticates
    async def handle(self, request: web.Request) -> web.Response:
        """Pass a call on, and its answer back."""
        try:
            client = self._client(request)
            if isinstance(client, web.Response):
                return client
            request[CLIENT], request[JUDGE] = client, self._client
            return await self._answer(request, client)
        except ErrcodeError as refusal:
            self._counters.refused(refusal.errcode)
            return web.json_response(WECHAT.refusal(refusal), headers=NO_STORE)

    def _client(self, request: web.Request) -> Client | web.Response:
        """Return who asks, or the gate's refusal.

        Of programs on this machine the user's token is proof enough.
        """
        if hdrs.AUTHORIZATION in request.headers or REQUEST_HEADER in request.headers:
            if (refusal := self._gate.identify(request)) is not None:
                return refusal
            client = request[CLIENT]
        elif not self._gate.keys or by_unix_socket(request):
            client = SOCKET if self._gate.keys else LOCAL
        else:
            raise ErrcodeError(40001, WHO)
        if not SCOPES & client.scopes:
            raise ErrcodeError(48001, LACKS_SCOPE)
        return client

    async def _answer(self, request: web.Request, client: Client) -> web.Response:
        raw, _, query = request.raw_path.partition("?")
        path = paths.plain(raw)
        if path not in PATHS:
            raise ErrcodeError(48001, paths.UNUSUAL)
        self._refuse_what_is_ours(request, query)
        url = URL(f"{under(self._base, path)}?{paths.visible(query)}", encoded=True)
        outcome = "abandoned"
        try:
            with self._limits.passing(client, OF_USERS):
                response = await self._sent(url, request)
            outcome = "passed" if response is not None else "unreachable"
        except Busy as why:
            outcome = "too-fast" if isinstance(why, TooFast) else "busy"
            raise ErrcodeError(45011, f"(token-broker: {why})") from None
        finally:
            self._counters.proxied(OF_USERS, outcome)
        if response is None:
            raise ErrcodeError(-1, AWAY)
        return response

    def _refuse_what_is_ours(self, request: web.Request, query: str) -> None:
        """Raise ErrcodeError for a key or handle in the query: WeChat must not see either."""
        if "secret" in request.query or (
            self._gate.keys and any(map(self._gate.client_of, request.query.values()))
        ):
            raise ErrcodeError(47001, SECRETLESS)
        if paths.is_doubtful(query):
            raise ErrcodeError(47001, DOUBTFUL)
        if _HANDLE.search(unquote_plus(unquote_plus(unquote_plus(query)))):
            raise ErrcodeError(40001, HANDLE_GIVEN)

    async def _sent(self, url: URL, request: web.Request) -> web.Response | None:
        """Send the call once; None where no whole answer comes."""
        headers = hops.onward(request.headers)
        headers.popall(hdrs.CONTENT_LENGTH, None)
        try:
            async with (
                asyncio.timeout(DEADLINE_S),
                self._out.request("GET", url, headers=headers) as answer,
            ):
                body = b""
                while piece := await answer.content.readany():
                    body += piece
                    if len(body) > MOST_BYTES:
                        return None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        passed = hops.back(answer.headers)
        passed.popall(hdrs.CONTENT_LENGTH, None)
        passed.update(NO_STORE)
        return web.Response(status=answer.status, headers=passed, body=body)
