"""The page on which WeChat asks its user (WECHAT.md W103 to W106, W111, W114).

Who that user is, and whether WeChat shows the page at all, is told by `POST /sandbox/phone`.
"""

import html
import re
from dataclasses import replace
from typing import Final
from urllib.parse import urlencode, urlsplit

from aiohttp import web

from .answers import WeChatRefusal
from .followers import FIRST_WITHHELD, openid
from .pictures import picture_id
from .state import STATE, SandboxState
from .users import USERINFO, WEB, Phone, SimulatedUser
from .world import SimulatedAccount

PATH: Final = "/connect/oauth2/authorize"
SCOPES: Final = ("snsapi_base", USERINFO)
_PAGE: Final = """\
<!doctype html>
<html lang="zh-CN">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>微信登录 · sandbox</title>
<style>
body {{ margin: 2rem auto; max-width: 22rem; padding: 0 1rem; font: 1rem/1.6 sans-serif; }}
img {{ border-radius: .5rem; }}
button {{ width: 100%; min-height: 2.75rem; margin-top: .75rem; font: inherit; }}
</style>
</head>
<body>
<main>
<h1>微信登录</h1>
<p>This page stands in for WeChat. {site} asks for your nickname and avatar.</p>
<p><img src="/mmopen/{picture}/96" alt="" width="96" height="96"></p>
<form method="get" action="{action}">
{fields}
<button name="answer" value="allow">允许 Allow</button>
<button name="answer" value="refuse">拒绝 Refuse</button>
</form>
</main>
</body>
</html>
"""


def add_routes(app: web.Application) -> None:
    """Mount the page."""
    app.router.add_get(PATH, _authorize)


def default_phone(account: SimulatedAccount) -> Phone:
    """Return the first follower who withholds their avatar, or the first there is."""
    is_first = account.withhold or account.followers <= FIRST_WITHHELD
    return Phone(openid(account.appid, 0 if is_first else FIRST_WITHHELD))


async def _authorize(request: web.Request) -> web.Response:
    state, said = request.app[STATE], request.query
    redirect, mark = said.get("redirect_uri", ""), said.get("state", "")
    try:
        account = state.world.account(said.get("appid", ""))
        is_known = said.get("response_type") == "code" and said.get("scope") in SCOPES
        is_web = urlsplit(redirect).scheme in ("http", "https")
    except (WeChatRefusal, ValueError):
        return _mistaken("appid or redirect_uri")
    if not is_known or not is_web:
        return _mistaken("redirect_uri, response_type or scope")
    if not re.fullmatch(r"[a-zA-Z0-9]{0,128}", mark):
        return _mistaken("state")
    phone = state.phones.get(account.appid, default_phone(account))
    scope = said["scope"]
    is_silent = scope != USERINFO or phone.snapshot
    is_silent = is_silent or (phone.silent and said.get("forcePopup") != "true")
    if said.get("answer") == "refuse":
        return _back(redirect, {"state": mark})
    if is_silent or said.get("answer") == "allow":
        return _back(redirect, {"code": _code(state, account, phone, scope), "state": mark})
    return _ask(request, phone, urlsplit(redirect).hostname or "")


def _code(state: SandboxState, account: SimulatedAccount, phone: Phone, scope: str) -> str:
    """Give the code of who is asked; a snapshot's is that of a virtual account."""
    if phone.snapshot:
        phone = replace(phone, openid=openid(f"{account.appid}/snapshot", 0), unionid=None)
    user = SimulatedUser(account.appid, phone.openid, phone.unionid, phone.snapshot, scope)
    return state.users.code(user, WEB)


def _ask(request: web.Request, phone: Phone, site: str) -> web.Response:
    fields = "\n".join(
        f'<input type="hidden" name="{html.escape(name)}" value="{html.escape(value)}">'
        for name, value in request.query.items()
        if name != "answer"
    )
    page = _PAGE.format(
        site=html.escape(site), picture=picture_id(phone.openid), action=PATH, fields=fields
    )
    return web.Response(text=page, content_type="text/html")


def _back(redirect: str, query: dict[str, str]) -> web.Response:
    joint = "&" if urlsplit(redirect).query else "?"
    where = f"{redirect}{joint}{urlencode(query)}"
    return web.Response(status=302, headers={"Location": where, "Cache-Control": "no-store"})


def _mistaken(what: str) -> web.Response:
    return web.Response(status=200, text=f"参数错误: {what}\n")
