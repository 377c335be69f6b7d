"""The token endpoints: how a call is read, logged, held, answered (WECHAT.md W2, W3, W61, W88)."""

import json
import re
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from .answers import WeChatRefusal
from .calls import LoggedCall
from .faults import Fault
from .state import STATE, SandboxState
from .wire import Reply, perform, send, unless_gone
from .world import STABLE, WECOM, IssueResult


async def answer(request: web.Request, path: str) -> web.StreamResponse:
    """Answer a token call, whatever the method: a wrong one is a call that failed."""
    state, endpoint = request.app[STATE], path.rpartition("/")[2]
    params = await _params(request, endpoint)
    who = str(params.get("corpid" if endpoint == WECOM else "appid", ""))
    with suppress(WeChatRefusal):
        state.world.account(who)  # seen, though a fault may keep the call from it
    with state.calls.arriving(who, endpoint, force=params.get("force_refresh") is True) as call:
        event = state.gate.event(who)
        if event and not await unless_gone(request, event):
            return web.Response()  # the peer has hung up; this is for aiohttp
        fault = state.faults.take(who, path)
        if fault is None:
            return await send(_truth(request, call, params))
        return await _suffer(request, call, params, fault)


async def _suffer(
    request: web.Request, call: LoggedCall, params: dict[str, Any], fault: Fault
) -> web.StreamResponse:
    """Answer by a fault, which is the outcome then.

    An errcode is WeChat's own answer, so the call counts.
    """
    state = request.app[STATE]

    async def truth() -> Reply:
        answer = _truth(request, call, params, same=fault.kind == "same_token")
        call.outcome = fault.kind
        return answer

    call.outcome = fault.kind
    if fault.kind == "errcode":
        call.outcome = int(fault.params["errcode"])
        with suppress(WeChatRefusal):
            state.world.account(call.appid).spend(call.endpoint, state.world.now())
    return await perform(fault, request, truth)


def _truth(
    request: web.Request, call: LoggedCall, params: dict[str, Any], *, same: bool = False
) -> dict[str, Any]:
    """Do what was asked, and note in the log what came of it."""
    state = request.app[STATE]
    try:
        if call.endpoint == STABLE and request.method != "POST":
            raise WeChatRefusal(43002)
        grant = _grant(state, call.endpoint, params, same=same)
    except WeChatRefusal as refusal:
        call.outcome = refusal.errcode
        return refusal.answer(state.world.now())
    call.outcome = 0
    call.granted(grant.token, minted=grant.minted)
    success = {"access_token": grant.token.value, "expires_in": grant.expires_in}
    return (
        {"errcode": 0, "errmsg": "ok"} | success if call.endpoint == WECOM else success
    )  # WECHAT.md W4, W61


def _grant(
    state: SandboxState, endpoint: str, params: dict[str, Any], *, same: bool
) -> IssueResult:
    if endpoint == WECOM:
        corpid, secret = str(params.get("corpid", "")), str(params.get("corpsecret", ""))
        if not corpid or not secret:
            raise WeChatRefusal(41004 if corpid else 41002)
        if not re.fullmatch(r"w[wxp][0-9A-Za-z_-]{1,62}", corpid):  # WECHAT.md W64
            raise WeChatRefusal(40013, "invalid corpid")
        return state.world.gettoken(corpid, secret)
    account = state.world.admit(endpoint, params)
    if same and (
        repeated := state.world.repeat(account.stable if endpoint == STABLE else account.classic)
    ):
        return repeated
    if endpoint == STABLE:
        return state.world.stable(account, force=params.get("force_refresh") is True)
    return state.world.classic(account)


async def _params(request: web.Request, endpoint: str) -> dict[str, Any]:
    """Read the parameters (WECHAT.md W3, W88).

    stable_token has them in its JSON body only, the others also as query or form.
    """
    body = await request.read()
    query: dict[str, Any] = dict(request.query)
    if endpoint == STABLE and request.method == "POST":
        return _json(body)
    return query | dict(parse_qsl(body.decode(errors="replace"))) | _json(body)


def _json(body: bytes) -> dict[str, Any]:
    try:
        read = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(read, dict):
        return {}
    return {
        key: value
        for key, value in read.items()
        if isinstance(value, str) or key == "force_refresh"
    }
