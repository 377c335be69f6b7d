"""The data APIs, which ask for an access_token (WECHAT.md W31, W34, W38, W42, W43, W54)."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from . import followers
from .answers import UNNAMED, WeChatRefusal
from .state import STATE
from .tokens import IssuedToken
from .wire import Reply, perform, send
from .world import AGENT_CONFIG, SimulatedAccount

_MOST_PROFILES = 100
_TICKET_S = 7200
_ADDRESSES = {"ip_list": ["203.0.113.10", "203.0.113.11", "198.51.100.10"]}
_CORP_TICKETS = {"/cgi-bin/get_jsapi_ticket": "jsapi", "/cgi-bin/ticket/get": AGENT_CONFIG}


async def answer(request: web.Request, path: str) -> web.StreamResponse:
    """Answer a call to anything but a token endpoint; faults may be ordered for any path."""
    state = request.app[STATE]
    owner = state.world.owner(request.query.get("access_token", ""))
    fault = state.faults.take(owner.appid if owner else "", path)

    async def truth() -> Reply:
        try:
            return await _truth(request, path)
        except WeChatRefusal as refusal:
            return refusal.answer(state.world.now())

    return await (send(await truth()) if fault is None else perform(fault, request, truth))


async def _truth(request: web.Request, path: str) -> Reply:
    corp = request.app[STATE].world.corp(request.query.get("access_token", ""))
    if corp is not None and path == "/cgi-bin/message/send":
        return await _send_message(request, corp)
    if corp is not None or path in _CORP_TICKETS:
        return _of_wecom(request, path, corp)
    if path not in _ROUTES:
        raise WeChatRefusal(40066)
    method, handler = _ROUTES[path]
    if method == "POST" != request.method:
        raise WeChatRefusal(43002)
    account = request.app[STATE].world.authorize(request.query.get("access_token", ""))
    return await handler(request, account)


def _of_wecom(request: web.Request, path: str, corp: tuple[str, str] | None) -> Reply:
    """Answer what WeCom is asked.

    It is another platform: its tokens are good here only, and no other token is good here.
    """
    if corp is None:
        raise WeChatRefusal(40014 if request.query.get("access_token") else 41001)
    if path in {"/cgi-bin/get_api_domain_ip", "/cgi-bin/getcallbackip"}:
        return _ADDRESSES
    kind = _CORP_TICKETS.get(path)
    if kind is None:
        raise WeChatRefusal(40066)
    if kind == AGENT_CONFIG and request.query.get("type") != AGENT_CONFIG:
        raise WeChatRefusal(UNNAMED)
    ticket, left = request.app[STATE].world.corp_ticket(kind, *corp)
    return {"errcode": 0, "errmsg": "ok", "ticket": ticket.value, "expires_in": left}


async def _send_message(request: web.Request, corp: tuple[str, str]) -> Reply:
    """Take a message of a company's app, to be seen in the sandbox's state."""
    try:
        message = json.loads(await request.read())
        kind, content = str(message["msgtype"]), str(message[message["msgtype"]]["content"])
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise WeChatRefusal(UNNAMED) from error
    state = request.app[STATE]
    state.messages.append({"corpid": corp[0], "msgtype": kind, "content": content})
    return {"errcode": 0, "errmsg": "ok", "msgid": f"msg-{len(state.messages)}"}


async def _domain_ip(_request: web.Request, _account: SimulatedAccount) -> Reply:
    """Give addresses of nobody (RFC 5737)."""
    return _ADDRESSES


async def _user_get(request: web.Request, account: SimulatedAccount) -> Reply:
    if not account.user_get.take(request.app[STATE].world.now()):
        raise WeChatRefusal(45009)
    page = followers.page(account.appid, account.followers, request.query.get("next_openid", ""))
    if page is None:
        raise WeChatRefusal(40003)
    return page


async def _user_info(request: web.Request, account: SimulatedAccount) -> Reply:
    return _profile(request, account, request.query.get("openid"))


async def _user_info_batch(request: web.Request, account: SimulatedAccount) -> Reply:
    try:
        wanted = [user["openid"] for user in json.loads(await request.read())["user_list"]]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise WeChatRefusal(UNNAMED) from error
    if not 1 <= len(wanted) <= _MOST_PROFILES:
        raise WeChatRefusal(UNNAMED)
    return {"user_info_list": [_profile(request, account, openid) for openid in wanted]}


def _profile(request: web.Request, account: SimulatedAccount, openid: Any) -> dict[str, Any]:
    if not isinstance(openid, str) or not followers.is_openid(openid):
        raise WeChatRefusal(40003)
    headimgurl = request.app[STATE].portraits.url(request.host, openid)
    return followers.profile(
        account.appid, account.followers, openid, withhold=account.withhold, headimgurl=headimgurl
    )


async def _ticket(request: web.Request, account: SimulatedAccount) -> Reply:
    """Give the ticket of that type.

    It has an age of its own and lives on when the token is replaced (WECHAT.md W55).
    """
    kind, now = request.query.get("type", ""), request.app[STATE].world.now()
    if kind not in {"jsapi", "wx_card"}:
        raise WeChatRefusal(UNNAMED)
    ticket = account.tickets.get(kind)
    if ticket is None or ticket.left(now) <= 0:
        ticket = account.tickets[kind] = IssuedToken(now + _TICKET_S)
    return {"errcode": 0, "errmsg": "ok", "ticket": ticket.value, "expires_in": ticket.left(now)}


async def _upload(request: web.Request, _account: SimulatedAccount) -> Reply:
    state = request.app[STATE]
    return await state.media.upload(request, state.world.now())


async def _download(request: web.Request, _account: SimulatedAccount) -> Reply:
    return request.app[STATE].media.download(request)


_ROUTES: dict[str, tuple[str, Callable[[web.Request, SimulatedAccount], Awaitable[Reply]]]] = {
    "/cgi-bin/get_api_domain_ip": ("GET", _domain_ip),
    "/cgi-bin/getcallbackip": ("GET", _domain_ip),
    "/cgi-bin/user/get": ("GET", _user_get),
    "/cgi-bin/user/info": ("GET", _user_info),
    "/cgi-bin/user/info/batchget": ("POST", _user_info_batch),
    "/cgi-bin/ticket/getticket": ("GET", _ticket),
    "/cgi-bin/media/upload": ("POST", _upload),
    "/cgi-bin/media/get": ("GET", _download),
}
