"""The group robots of 企业微信, 钉钉 and 飞书. Their HTTP status is 200 whatever they say.

Any key is a robot's, except one that begins with `wrong`. A robot whose key begins with `signed`
takes only what is signed with :data:`SECRET`. A key of a robot takes 20 messages a minute.
"""

import base64
import hashlib
import hmac
import json
from typing import Any, Final

from aiohttp import web

from .state import STATE, SandboxState

SECRET: Final = "SECsandbox"  # noqa: S105 -- the sandbox's, known to everybody
MOST_A_MINUTE: Final = 20
_HOUR_S: Final = 3600
_LONGEST_WECOM: Final = 2048  # bytes
_LARGEST: Final = 20_000  # bytes of a body; 飞书's limit, the smallest of the three


class RobotRefusal(Exception):  # noqa: N818 -- an answer like any other
    """What a robot says instead of `ok`."""

    def __init__(self, errcode: int, errmsg: str) -> None:
        super().__init__(errcode)
        self.errcode, self.errmsg = errcode, errmsg


def add_routes(app: web.Application) -> None:
    """Mount the three robots, and the control routes about them."""
    app.router.add_post("/cgi-bin/webhook/send", _wecom)
    app.router.add_post("/robot/send", _dingtalk)
    app.router.add_post("/open-apis/bot/v2/hook/{key}", _feishu)
    app.router.add_get("/sandbox/robots", _said)
    app.router.add_post("/sandbox/robots", _refuse)


async def _wecom(request: web.Request) -> web.Response:
    key = request.query.get("key", "")
    try:
        text = await _text(request, "msgtype", ("text", "content"))
        _check(request, key, (93000, "invalid webhook url"), (45009, "api freq out of limit"))
        if len(text.encode()) > _LONGEST_WECOM:
            raise RobotRefusal(40058, "text.content exceed max length 2048")
        _take(request, "wecom", key, text)
    except RobotRefusal as refusal:
        return web.json_response({"errcode": refusal.errcode, "errmsg": refusal.errmsg})
    return web.json_response({"errcode": 0, "errmsg": "ok"})


async def _dingtalk(request: web.Request) -> web.Response:
    key = request.query.get("access_token", "")
    try:
        text = await _text(request, "msgtype", ("text", "content"))
        _check(request, key, (300005, "token is not exist"), (130101, "send too fast"))
        if key.startswith("signed"):
            at = request.query.get("timestamp", "")
            digest = hmac.digest(SECRET.encode(), f"{at}\n{SECRET}".encode(), hashlib.sha256)
            if not _is_signed(request, request.query.get("sign"), digest, at, 1000):
                raise RobotRefusal(310000, "sign not match")
        _take(request, "dingtalk", key, text)
    except RobotRefusal as refusal:
        return web.json_response({"errcode": refusal.errcode, "errmsg": refusal.errmsg})
    return web.json_response({"errcode": 0, "errmsg": "ok"})


async def _feishu(request: web.Request) -> web.Response:
    key = request.match_info["key"]
    try:
        text = await _text(request, "msg_type", ("content", "text"))
        unknown = (19001, "param invalid: incoming webhook access token invalid")
        _check(request, key, unknown, (11232, "frequency limited"))
        if key.startswith("signed"):
            body = await request.json()
            at = str(body.get("timestamp", ""))
            digest = hmac.digest(f"{at}\n{SECRET}".encode(), b"", hashlib.sha256)
            if not _is_signed(request, body.get("sign"), digest, at, 1):
                raise RobotRefusal(19021, "sign match fail or timestamp is not within one hour")
        _take(request, "feishu", key, text)
    except RobotRefusal as refusal:
        return web.json_response({"code": refusal.errcode, "msg": refusal.errmsg, "data": {}})
    return web.json_response({"StatusCode": 0, "StatusMessage": "success", "code": 0, "data": {}})


async def _text(request: web.Request, kind: str, way: tuple[str, str]) -> str:
    """Return a message's text; refuse whatever is no text message."""
    data = await request.read()
    try:
        body: Any = json.loads(data)
        text = body[way[0]][way[1]]
        is_text = body[kind] == "text" and isinstance(text, str) and bool(text)
    except (ValueError, TypeError, KeyError, RecursionError):
        is_text = False
    if not is_text or len(data) > _LARGEST:
        raise RobotRefusal(40035, "invalid parameter")
    return str(text)


def _check(
    request: web.Request, key: str, unknown: tuple[int, str], too_fast: tuple[int, str]
) -> None:
    state = request.app[STATE]
    if state.robots.refusing:
        raise RobotRefusal(state.robots.refusing, "refused by order")
    if not key or key.startswith("wrong"):
        raise RobotRefusal(*unknown)
    recent = state.robots.recent(key, state.world.now())
    if len(recent) >= MOST_A_MINUTE:
        raise RobotRefusal(*too_fast)


def _is_signed(
    request: web.Request, sign: object, digest: bytes, at: str, ticks_per_s: int
) -> bool:
    if not (at.isascii() and at.isdecimal()) or not isinstance(sign, str):
        return False
    age = abs(request.app[STATE].world.now() - int(at) / ticks_per_s)
    return hmac.compare_digest(sign.encode(), base64.b64encode(digest)) and age < _HOUR_S


def _take(request: web.Request, robot: str, key: str, text: str) -> None:
    state: SandboxState = request.app[STATE]
    now = state.world.now()
    state.robots.recent(key, now).append(now)
    state.robots.said.append({"robot": robot, "key": key, "text": text})


async def _said(request: web.Request) -> web.Response:
    """Return the messages that were taken, the oldest first."""
    return web.json_response(list(request.app[STATE].robots.said))


async def _refuse(request: web.Request) -> web.Response:
    """Have every robot refuse with an errcode from now on; 0: none."""
    body = await request.json()
    request.app[STATE].robots.refusing = int(body.get("errcode", 0))
    return web.json_response({})
