"""The interfaces under /sns.

They are the code exchanges, which take the AppSecret, and what users' tokens are good for.
"""

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from .answers import WeChatRefusal, encode
from .state import STATE, SandboxState
from .users import MINIPROGRAM, USERINFO, WEB
from .wire import Reply, perform, send

PREFIX = "/sns/"


async def answer(request: web.Request, path: str) -> web.StreamResponse:
    """Answer a call under /sns; faults may be ordered for its path."""
    state, said = request.app[STATE], request.query
    state.login_calls[path if path in _ROUTES else "other"] += 1
    fault = state.faults.take(said.get("appid", ""), path)

    async def truth() -> Reply:
        try:
            if path not in _ROUTES:
                raise WeChatRefusal(40066)
            return _plain(_ROUTES[path](state, said, request.host))
        except WeChatRefusal as refusal:
            return _plain(refusal.answer(state.world.now()))

    return await (send(await truth()) if fault is None else perform(fault, request, truth))


def _plain(said: dict[str, Any]) -> Reply:
    """Answer JSON that calls itself text/plain (WECHAT.md W86)."""

    async def response() -> web.StreamResponse:
        return web.Response(body=encode(said), content_type="text/plain")

    return response


def _exchange(state: SandboxState, said: Mapping[str, str], kind: str, name: str) -> Any:
    """Check what a code exchange must say, in WeChat's order, and take the code."""
    if not said.get("appid"):
        raise WeChatRefusal(41002)
    account = state.world.account(said["appid"])
    if not said.get("secret"):
        raise WeChatRefusal(41004)
    account.check_secret(said["secret"])
    if said.get("grant_type") != "authorization_code":
        raise WeChatRefusal(40002)
    if not said.get(name):
        raise WeChatRefusal(41008)
    return state.users.redeem(account.appid, kind, said[name])


def _session(state: SandboxState, said: Mapping[str, str], _host: str) -> dict[str, Any]:
    return state.users.session(_exchange(state, said, MINIPROGRAM, "js_code"))


def _user_token(state: SandboxState, said: Mapping[str, str], _host: str) -> dict[str, Any]:
    return state.users.token(_exchange(state, said, WEB, "code"))


def _renewed(state: SandboxState, said: Mapping[str, str], _host: str) -> dict[str, Any]:
    if not said.get("appid"):
        raise WeChatRefusal(41002)
    if said.get("grant_type") != "refresh_token":
        raise WeChatRefusal(40002)
    return state.users.renew(said["appid"], said.get("refresh_token", ""))


def _profile(state: SandboxState, said: Mapping[str, str], host: str) -> dict[str, Any]:
    user = state.users.owner(said.get("access_token", ""), said.get("openid", ""))
    if user.scope != USERINFO:
        raise WeChatRefusal(48001)
    return {
        **user.known(),
        "nickname": "微信用户",
        "sex": 0,
        "headimgurl": state.portraits.url(host, user.openid),
        "privilege": [],
    }


def _is_good(state: SandboxState, said: Mapping[str, str], _host: str) -> dict[str, Any]:
    state.users.owner(said.get("access_token", ""), said.get("openid", ""))
    return {"errcode": 0, "errmsg": "ok"}


_ROUTES: dict[str, Callable[[SandboxState, Mapping[str, str], str], dict[str, Any]]] = {
    "/sns/jscode2session": _session,
    "/sns/oauth2/access_token": _user_token,
    "/sns/oauth2/refresh_token": _renewed,
    "/sns/userinfo": _profile,
    "/sns/auth": _is_good,
}
