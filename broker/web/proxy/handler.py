"""The proxy: calls to WeChat's other interfaces, with the client's token replaced by the app's.

Services need neither secret, token, nor a whitelisted address. A call goes over the wire once; a
second time only where WeChat has answered that it refuses the token, which means that it did
nothing, and the body can be sent again. Refusals of our own are WeChat's numbers with HTTP 200, as
on the token paths (compat.py): SDKs print URLs on anything else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict
from yarl import URL

from broker.config.schema import ProxyTable as Table
from broker.core.credential import Account
from broker.core.interfaces import REFUSED, refused_by_default
from broker.core.serving import Served, Unavailable
from broker.http.way_out import PROXY_ERRORS, OutgoingSession, failure_of_call
from broker.tokens.keeper import DUE_SOON_S, Keeper
from broker.web.dialect import WECHAT, ErrcodeError, no_token
from broker.web.gate import CLIENT, JUDGE, Client, answers_in_errcodes, authenticates
from broker.web.params import NO_STORE
from broker.web.proxy import headers as hops
from broker.web.proxy import paths
from broker.web.proxy.callers import Callers
from broker.web.proxy.limits import Busy, ProxyLimits, TooFast
from broker.web.proxy.masking import Masks, WithheldError, masked
from broker.web.proxy.relay import IdleDeadline, Peek, TooLarge, Upload, cut, look, pass_on
from broker.web.words import english

METHODS: Final = (
    "GET",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
)  # aiohttp answers HEAD where it answers GET
OTHERS: Final = (
    "(token-broker: under /sns/ are GET /sns/userinfo, /sns/auth and /sns/oauth2/refresh_token,"
    " and, with [compat] enabled = true, logins)"
)
ITS_OWN: Final = (
    "(token-broker: a token path is never passed on; [compat] enabled = true answers it here)"
)
PACKED: Final = (  # aiohttp would unpack it on its way
    "(token-broker: send the body as it is, without Content-Encoding)"
)
DOUBTFUL: Final = (
    "(token-broker: a parameter is named almost like access_token, or stands behind ; ? or ,)"
)
QUOTED: Final = (
    "(token-broker: the answer quotes the token in a packed body that is too long to mask;"
    " ask without Accept-Encoding)"
)
AWAY: Final = "(token-broker: WeChat could not be reached, or did not answer in time)"

Base = Callable[[Account], URL]


class ProxyCounters(Protocol):
    """Who counts."""

    def proxied(self, app: str, outcome: str) -> None:
        """Count a call that came for an app, by what became of it."""

    def refused(self, errcode: int) -> None:
        """Count a refusal of the proxy's own."""


@dataclass(slots=True)
class ProxiedCall:
    """One proxied call: what came in, for whom, and what goes out."""

    request: web.Request
    client: Client
    keeper: Keeper
    path: str
    query: str
    headers: CIMultiDict[str]
    upload: Upload
    pace: IdleDeadline
    outcome: str = "passed"
    response: web.StreamResponse | None = None  # once it has begun


class Proxy:
    """The handler.

    `base` returns where an account's calls go. `patience_s` is how long a call waits for a refresh
    that is under way.
    """

    def __init__(
        self,
        table: Table,
        callers: Callers,
        limits: ProxyLimits,
        out: OutgoingSession,
        base: Base,
        counters: ProxyCounters,
        patience_s: float,
    ) -> None:
        self._table, self._callers, self._limits = table, callers, limits
        self._out, self._base, self._counters = out, base, counters
        self._patience_s = patience_s
        self._masks = Masks()

    def routes(self) -> list[web.RouteDef]:
        """One route for all that may be asked, behind those of the drop-in."""
        return [
            web.route(method, paths.pattern(self._table.prefixes), self.handle)
            for method in METHODS
        ]

    @answers_in_errcodes
    @authenticates
    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Pass a call on, and its answer back."""
        try:
            return await self._answer(request)
        except ErrcodeError as refusal:
            self._counters.refused(refusal.errcode)
            return web.json_response(WECHAT.refusal(refusal), headers=NO_STORE)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path, query = self._target(request)
        if request.body_exists and hops.is_packed(request.headers):
            raise ErrcodeError(47001, PACKED)
        if paths.is_doubtful(query):
            raise ErrcodeError(47001, DOUBTFUL)
        tokens = paths.presented(query)
        if len(tokens) > 1:
            raise ErrcodeError(47001, "(token-broker: access_token is given twice)")
        caller = self._callers.of(request, "".join(tokens))
        if isinstance(caller, web.Response):
            return caller
        client, keeper = caller
        request[CLIENT] = client
        presented = "".join(tokens)
        request[JUDGE] = lambda again: self._callers.of(again, presented)
        pace = IdleDeadline(self._table.idle_timeout, self._table.total_timeout)
        upload = Upload(request, self._table.max_body, self._table.max_retry_body, pace)
        call = ProxiedCall(
            request,
            client,
            keeper,
            path,
            query,
            hops.onward(request.headers),
            upload,
            pace,
            "abandoned",
        )
        try:
            with self._limits.passing(client, keeper.account.name):
                return await self._bounded(call)
        except Busy as why:
            call.outcome = "too-fast" if isinstance(why, TooFast) else "busy"
            raise ErrcodeError(45011, f"(token-broker: {why})") from None
        finally:
            self._counters.proxied(keeper.account.name, call.outcome)

    async def _bounded(self, call: ProxiedCall) -> web.StreamResponse:
        """The exchange, with whatever may go wrong in it."""
        try:
            async with call.pace:
                return await self._exchange(call)
        except (aiohttp.ClientError, TooLarge, TimeoutError, OSError) as error:
            if call.response is not None:
                call.outcome = "cut"
                cut(call.request)
                return call.response
            if call.upload.is_too_large:
                call.outcome = "too-large"
                raise ErrcodeError(
                    47001, f"(token-broker: a body has at most {self._table.max_body} bytes)"
                ) from None
            call.outcome = "unreachable"
            if isinstance(error, PROXY_ERRORS):
                code, facts = failure_of_call(error, 0, in_tunnel=True)
                why = english.FAILURES.reasons[code].format_map(facts)
                raise ErrcodeError(-1, f"(token-broker: {why})") from None
            raise ErrcodeError(-1, AWAY) from None

    async def _exchange(self, call: ProxiedCall) -> web.StreamResponse:
        """One try, and another where WeChat refuses the token."""
        patience_s = self._patience_s
        served: Served | Unavailable | None = call.keeper.serve()
        if served is None:
            call.pace(patience_s)
            served = await call.keeper.get(0, patience_s)
            call.pace()
            self._judge_anew(call)
        if isinstance(served, Unavailable):
            call.outcome = "no-token"
            raise no_token(served, call.keeper.credential.failure)
        async with await self._sent(call, served) as answer:
            seen = await look(answer, call.pace)
            if not seen.is_refusal:
                return await self._given(call, answer, seen, served, "passed")
        following = await self._following(call, served)
        if following is None or not call.upload.can_be_sent_again:
            return await self._given(call, answer, seen, served, "token-refused")
        self._judge_anew(call)
        served = following
        async with await self._sent(call, served) as answer:
            seen = await look(answer, call.pace)
            return await self._given(
                call, answer, seen, served, "token-refused" if seen.is_refusal else "retried"
            )

    def _judge_anew(self, call: ProxiedCall) -> None:
        """Raise ErrcodeError if the client has lost its right while the call waited."""
        judged = call.request[JUDGE](call.request)
        if isinstance(judged, web.Response):
            raise ErrcodeError(40001)

    async def _following(self, call: ProxiedCall, refused: Served) -> Served | None:
        """Report that WeChat refuses a token, and return the one to try then.

        Where the report brings none, but the next token call is due in a moment, wait for what it
        brings. None where nothing helps, or nobody could send the call again.
        """
        keeper, version, patience_s = call.keeper, refused.credential.version, self._patience_s
        call.pace(2 * patience_s)
        try:
            reported = await keeper.report(patience_s, version=version, seen=True)
            if not isinstance(reported, Unavailable):
                return reported[1]
            if not call.upload.can_be_sent_again or keeper.next_call_in() >= DUE_SOON_S:
                return None
            following = await keeper.watch(version or "", min(patience_s, DUE_SOON_S))
            return following if isinstance(following, Served) else None
        finally:
            call.pace()

    async def _given(
        self,
        call: ProxiedCall,
        answer: aiohttp.ClientResponse,
        seen: Peek,
        served: Served,
        outcome: str,
    ) -> web.StreamResponse:
        """Return the answer as the client gets it."""
        if outcome == "token-refused":
            self._callers.note_refused(call.client, call.keeper, served.credential.version)
        mask = self._masks.of(call.keeper, served)
        try:
            head, coding = masked(mask, seen.head, seen.coding, whole=seen.whole)
        except WithheldError:
            call.outcome = "withheld"
            raise ErrcodeError(-1, QUOTED) from None
        headers = hops.back(answer.headers, mask)
        if coding != seen.coding:
            headers.popall(hdrs.CONTENT_ENCODING, None)
        if seen.whole and call.request.method != hdrs.METH_HEAD:
            headers.popall(hdrs.CONTENT_LENGTH, None)
            call.outcome = outcome
            return web.Response(status=answer.status, headers=headers, body=head)
        call.response = web.StreamResponse(status=answer.status, headers=headers)
        await pass_on(call.response, call.request, answer, head, call.pace)
        call.outcome = outcome
        return call.response

    def _target(self, request: web.Request) -> tuple[str, str]:
        """Return path and query as they go on. Raises ErrcodeError for what never does."""
        raw, _, query = request.raw_path.partition("?")
        path = paths.plain(raw)
        if path is None:
            raise ErrcodeError(48001, paths.UNUSUAL)
        if path.startswith(paths.OTHER_TOKENS):
            raise ErrcodeError(48001, OTHERS)
        if paths.is_token_path(path):
            raise ErrcodeError(48001, ITS_OWN)
        refused = refused_by_default(path)
        if refused is not None and refused not in self._table.allow:
            why = f"{REFUSED[refused]}; [proxy] allow = ['{refused}'] lets it through"
            raise ErrcodeError(48001, f"(token-broker: {why})")
        return path, paths.visible(query)

    async def _sent(self, call: ProxiedCall, served: Served) -> aiohttp.ClientResponse:
        """Send the call with this token, and return its answer as soon as there is its head."""
        query = paths.with_token(call.query, served.token.value.reveal())
        url = URL(f"{self._base(call.keeper.account)}{call.path}?{query}", encoded=True)
        data = await call.upload.data()
        answer: aiohttp.ClientResponse = await self._out.request(
            call.request.method, url, headers=call.headers, data=data
        )
        if answer.status == HTTPStatus.SWITCHING_PROTOCOLS:
            answer.close()
            raise aiohttp.ClientPayloadError  # nobody asked for another protocol
        call.pace()
        return answer
