"""`/v1/tickets`: tickets, and signatures made with them (WECHAT.md W55, W57, W58)."""

import json
import re
import secrets
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from aiohttp import hdrs, web

from broker.core import signature
from broker.core.credential import ticket_kinds
from broker.core.ports import StoreError
from broker.core.secret import Secret
from broker.core.serving import Code, Served, Unavailable, UnavailableReason
from broker.http.problems import ProblemError
from broker.tokens.keeper import Keeper
from broker.tokens.registry import Registry
from broker.tokens.tickets import Tickets
from broker.web.connection.fast_path import APP, ResponseCache
from broker.web.params import (
    LONGEST_TTL_S,
    LONGEST_WAIT_S,
    NO_STORE,
    fields_of,
    iso,
    keeper_of,
    matches,
    numbers,
    unavailable,
)
from broker.web.words import english

PAGE: Final = re.compile(r"https?://[!-~]{1,4096}")  # percent-encoded, as location.href gives it
VALUE: Final = re.compile(r"[\x21-\x7e]{1,256}")
STORE_PAUSE_S: Final = 5  # a store that cannot be read now may be again by then


class TicketDesk:
    """The handlers.

    `patience_s` is how long a request waits for a fetch that is under way; `wall` gives unix time.
    """

    def __init__(
        self,
        registry: Registry,
        tickets: Tickets,
        response_cache: ResponseCache,
        patience_s: float,
        wall: Callable[[], float],
    ) -> None:
        self._registry = registry
        self._tickets = tickets
        self._response_cache = response_cache
        self._patience_s = patience_s
        self._wall = wall

    def routes(self) -> list[web.RouteDef]:
        """Return every route of /v1/tickets."""
        return [
            web.get("/v1/tickets/{app}/{type}", self.get_ticket),
            web.post("/v1/tickets/{app}/jsapi/signature", self.sign_page),
            web.post("/v1/tickets/{app}/wx_card/signature", self.sign_card),
            web.post("/v1/tickets/{app}/agent_config/signature", self.sign_agent),
        ]

    async def get_ticket(self, request: web.Request) -> web.Response:
        """Answer with the ticket; or 304 if the client has it, at once or after `wait` seconds."""
        keeper = await self._keeper(request, request.match_info["type"])
        wait, min_ttl = numbers(request, wait=LONGEST_WAIT_S, min_ttl=LONGEST_TTL_S)
        version = keeper.credential.version
        if hdrs.IF_NONE_MATCH in request.headers and version and matches(request, version):
            answer = None
            if wait or keeper.serve(min_ttl) is None:
                watching = keeper.watch(version, wait)
                answer = await self._response_cache.bounded(request, watching)
            if answer is None and keeper.serve(min_ttl) is not None:
                return web.Response(
                    status=HTTPStatus.NOT_MODIFIED, headers={**NO_STORE, hdrs.ETAG: f'"{version}"'}
                )
        served = keeper.serve(min_ttl) or await self._get(request, keeper, wait, min_ttl)
        if isinstance(served, Unavailable):
            return unavailable(served, english.TICKET)
        return self._ticket(request, keeper, served)

    async def _get(
        self, request: web.Request, keeper: Keeper, wait: float, min_ttl: float
    ) -> Served | Unavailable:
        getting = keeper.get(min_ttl, max(wait, self._patience_s))
        if not wait:
            return await getting
        return await self._response_cache.bounded(request, getting) or await keeper.get(min_ttl)

    async def sign_page(self, request: web.Request) -> web.Response:
        """Answer with what `wx.config` needs for a page.

        `{"url": …}` gives `{appId, timestamp, nonceStr, signature}`.
        """
        keeper, signed = await self._signed_page(request, "jsapi")
        return web.json_response({"appId": keeper.account.appid, **signed}, headers=NO_STORE)

    async def sign_agent(self, request: web.Request) -> web.Response:
        """Answer with what `wx.agentConfig` of WeCom needs for a page.

        `{"url": …}` gives `{corpid, timestamp, nonceStr, signature}`. It also takes the agentid,
        which is not signed (WECHAT.md W72).
        """
        keeper, signed = await self._signed_page(request, "agent_config")
        return web.json_response({"corpid": keeper.account.appid, **signed}, headers=NO_STORE)

    async def _signed_page(self, request: web.Request, kind: str) -> tuple[Keeper, dict[str, Any]]:
        """Sign the address of a page with a ticket."""
        keeper, ticket = await self._to_sign_with(request, kind)
        fields = await fields_of(request, {"url": str})
        url = fields.get("url", "")
        if not PAGE.fullmatch(url):
            raise ProblemError(
                422,
                "invalid-body",
                "`url` is the page's address as the browser shows it, http:// or https://.",
            )
        timestamp, nonce = int(self._wall()), secrets.token_hex(8)
        signed = signature.jsapi(ticket, nonce, timestamp, url)
        return keeper, {"timestamp": timestamp, "nonceStr": nonce, "signature": signed}

    async def sign_card(self, request: web.Request) -> web.Response:
        """Answer with what a card needs.

        `{"card_id": …}`, with `code` and `openid` if the card has them, gives the same fields,
        `timestamp`, `nonce_str`, and the `signature` over all of them.
        """
        _, ticket = await self._to_sign_with(request, "wx_card")
        fields = await fields_of(request, {"card_id": str, "code": str, "openid": str})
        if "card_id" not in fields or not all(VALUE.fullmatch(value) for value in fields.values()):
            raise ProblemError(
                422,
                "invalid-body",
                "`card_id`, and `code` and `openid` where there are: 1 to 256 visible characters"
                " each.",
            )
        to_sign = {
            **fields,
            "timestamp": str(int(self._wall())),
            "nonce_str": secrets.token_hex(8),
        }
        signed = {**to_sign, "signature": signature.card(ticket, *to_sign.values())}
        return web.json_response(signed, headers=NO_STORE)

    async def _to_sign_with(self, request: web.Request, kind: str) -> tuple[Keeper, Secret]:
        """Return the ticket; raises TicketUnavailableError if there is none."""
        keeper = await self._keeper(request, kind)
        served = keeper.serve() or await keeper.get(patience_s=self._patience_s)
        if isinstance(served, Unavailable):
            raise TicketUnavailableError(served)
        return keeper, served.token.value

    async def _keeper(self, request: web.Request, kind: str) -> Keeper:
        account = keeper_of(request, self._registry, "read").account
        try:
            found = await self._tickets.keeper(account, kind)
        except StoreError as error:
            why = UnavailableReason.NOT_RECORDED
            raise TicketUnavailableError(
                Unavailable(Code.STORE_UNAVAILABLE, why, STORE_PAUSE_S, store_error=str(error))
            ) from None
        if found is None:
            known = " and ".join(f"`{kind}`" for kind in ticket_kinds(account.endpoint))
            raise ProblemError(404, "unknown-ticket", f"This app has {known}.")
        return found

    def _ticket(self, request: web.Request, keeper: Keeper, served: Served) -> web.Response:
        version = served.credential.version
        body: dict[str, Any] = {
            "app": request[APP],
            "appid": keeper.account.appid,
            "type": request.match_info["type"],
            "ticket": served.token.value.reveal(),
            "expires_in": served.expires_in,
            "expires_at": iso(self._wall() + served.expires_in),
            "version": version,
            "state": served.state.value,
        }
        headers = {**NO_STORE, hdrs.ETAG: f'"{version}"'}
        return web.Response(
            body=json.dumps(body).encode(), headers=headers, content_type="application/json"
        )


class TicketUnavailableError(ProblemError):
    """There is no ticket now."""

    def __init__(self, answer: Unavailable) -> None:
        detail = english.unavailable(answer, english.TICKET)
        super().__init__(HTTPStatus.SERVICE_UNAVAILABLE, answer.code.value, detail)
        self.response = unavailable(answer, english.TICKET)
