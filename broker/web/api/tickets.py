"""/v1/tickets: tickets as tokens are handed out, and the signatures that pages need of them (WECHAT.md W55, W57, W58)."""

import json
import re
import secrets
from http import HTTPStatus
from typing import Any, Final

from aiohttp import hdrs, web

from broker.core import signature
from broker.core.credential import ticket_kinds
from broker.core.ports import StoreError
from broker.core.secret import Secret
from broker.core.serving import Code, Served, Unavailable
from broker.http.problems import ProblemError
from broker.tokens.keeper import Keeper
from broker.tokens.tickets import Tickets
from broker.web.context import EDGE
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

PAGE: Final = re.compile(
    r"https?://[!-~]{1,4096}"
)  # as location.href gives it, that is percent-encoded
VALUE: Final = re.compile(r"[\x21-\x7e]{1,256}")


class TicketDesk:
    """The handlers."""

    def __init__(self, tickets: Tickets) -> None:
        self._tickets = tickets

    def routes(self) -> list[web.RouteDef]:
        """Every route of /v1/tickets."""
        return [
            web.get("/v1/tickets/{app}/{type}", self.get_ticket),
            web.post("/v1/tickets/{app}/jsapi/signature", self.sign_page),
            web.post("/v1/tickets/{app}/wx_card/signature", self.sign_card),
            web.post("/v1/tickets/{app}/agent_config/signature", self.sign_agent),
        ]

    async def get_ticket(self, request: web.Request) -> web.Response:
        """The ticket; 304 where the client has it, at once or after `wait` seconds."""
        keeper = await self._keeper(request, request.match_info["type"])
        wait, min_ttl = numbers(request, wait=LONGEST_WAIT_S, min_ttl=LONGEST_TTL_S)
        version = keeper.credential.version
        if hdrs.IF_NONE_MATCH in request.headers and version and matches(request, version):
            answer = (
                await keeper.watch(version, wait) if wait or keeper.serve(min_ttl) is None else None
            )
            if answer is None and keeper.serve(min_ttl) is not None:
                return web.Response(
                    status=HTTPStatus.NOT_MODIFIED, headers={**NO_STORE, hdrs.ETAG: f'"{version}"'}
                )
        served = keeper.serve(min_ttl) or await keeper.get(
            min_ttl, max(wait, request.app[EDGE].patience_s)
        )
        return (
            _ticket(request, keeper, served)
            if isinstance(served, Served)
            else unavailable(_said_of_tickets(served))
        )

    async def sign_page(self, request: web.Request) -> web.Response:
        """What `wx.config` needs for a page: `{"url": …}` → `{appId, timestamp, nonceStr, signature}`."""
        keeper, signed = await self._signed_page(request, "jsapi")
        return web.json_response({"appId": keeper.account.appid, **signed}, headers=NO_STORE)

    async def sign_agent(self, request: web.Request) -> web.Response:
        """What `wx.agentConfig` needs, besides the agentid, which is not signed (WECHAT.md W72): `{"url": …}` → `{corpid, timestamp, nonceStr, signature}`."""
        keeper, signed = await self._signed_page(request, "agent_config")
        return web.json_response({"corpid": keeper.account.appid, **signed}, headers=NO_STORE)

    async def _signed_page(self, request: web.Request, kind: str) -> tuple[Keeper, dict[str, Any]]:
        """Sign a page's address with a ticket."""
        keeper, ticket = await self._sign(request, kind)
        fields = await fields_of(request, {"url": str})
        url = fields.get("url", "")
        if not PAGE.fullmatch(url):
            raise ProblemError(
                422,
                "invalid-body",
                "`url` is the page's address as the browser shows it, http:// or https://.",
            )
        timestamp, nonce = int(request.app[EDGE].wall()), secrets.token_hex(8)
        signed = signature.jsapi(ticket, nonce, timestamp, url)
        return keeper, {"timestamp": timestamp, "nonceStr": nonce, "signature": signed}

    async def sign_card(self, request: web.Request) -> web.Response:
        """What a card needs: `{"card_id": …}`, with `code` and `openid` where it has them → these, and what signs them."""
        _, ticket = await self._sign(request, "wx_card")
        fields = await fields_of(request, {"card_id": str, "code": str, "openid": str})
        if "card_id" not in fields or not all(VALUE.fullmatch(value) for value in fields.values()):
            raise ProblemError(
                422,
                "invalid-body",
                "`card_id`, and `code` and `openid` where there are: 1 to 256 visible characters"
                " each.",
            )
        said = {
            **fields,
            "timestamp": str(int(request.app[EDGE].wall())),
            "nonce_str": secrets.token_hex(8),
        }
        return web.json_response(
            {**said, "signature": signature.card(ticket, *said.values())}, headers=NO_STORE
        )

    async def _sign(self, request: web.Request, kind: str) -> tuple[Keeper, Secret]:
        """The ticket to sign with; raises TicketUnavailableError where there is none."""
        keeper = await self._keeper(request, kind)
        served = keeper.serve() or await keeper.get(patience_s=request.app[EDGE].patience_s)
        if isinstance(served, Unavailable):
            raise TicketUnavailableError(served)
        return keeper, served.token.value

    async def _keeper(self, request: web.Request, kind: str) -> Keeper:
        account = keeper_of(request, "read").account
        try:
            found = await self._tickets.keeper(account, kind)
        except StoreError as error:
            raise TicketUnavailableError(
                Unavailable(Code.STORE_UNAVAILABLE, str(error), 5)
            ) from None
        if found is None:
            raise ProblemError(
                404,
                "unknown-ticket",
                f"This app has {' and '.join(f'`{kind}`' for kind in ticket_kinds(account.endpoint))}.",
            )
        return found


class TicketUnavailableError(ProblemError):
    """No ticket now."""

    def __init__(self, why: Unavailable) -> None:
        super().__init__(HTTPStatus.SERVICE_UNAVAILABLE, why.code.value, why.detail)
        self.response = unavailable(_said_of_tickets(why))


def _said_of_tickets(why: Unavailable) -> Unavailable:
    return Unavailable(why.code, why.detail.replace("token", "ticket"), why.retry_after)


def _ticket(request: web.Request, keeper: Keeper, served: Served) -> web.Response:
    credential = served.credential
    body: dict[str, Any] = {
        "app": keeper_of(request, "read").account.name,
        "appid": keeper.account.appid,
        "type": request.match_info["type"],
        "ticket": served.token.value.reveal(),
        "expires_in": served.expires_in,
        "expires_at": iso(request.app[EDGE].wall() + served.expires_in),
        "version": credential.version,
        "state": served.state.value,
    }
    headers = {**NO_STORE, hdrs.ETAG: f'"{credential.version}"'}
    return web.Response(
        body=json.dumps(body).encode(), headers=headers, content_type="application/json"
    )
