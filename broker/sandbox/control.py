"""The control routes under /sandbox: what was seen, and what is to go wrong.

Nothing of this is WeChat's.
"""

import dataclasses
import json
import math
from typing import Any

from aiohttp import ClientError, web

from .answers import WeChatRefusal
from .authorize import default_phone
from .calls import Traffic
from .events import EventOrder, pushed, signed
from .faults import Fault, InvalidOrderError, catalogue, parse
from .followers import openid
from .state import STATE, SandboxState
from .users import MINIPROGRAM, USERINFO, WEB, SimulatedUser
from .world import CLASSIC, STABLE, SimulatedAccount

_MOST_FOLLOWERS = 1_000_000
_ROUTES = {
    "GET /sandbox": "this description and the state",
    "GET /sandbox/calls?since=N": (
        "the token calls whose n is greater; outcome is null while in flight"
    ),
    "POST /sandbox/faults": (
        'order a fault: {"kind", "times", "appid", "path", …}; taken in order, one per call'
    ),
    "DELETE /sandbox/faults?appid=": "forget the faults: all, or those that name the appid",
    "POST /sandbox/issue": '{"appid"}: a second issuer calls the classic endpoint',
    "POST /sandbox/kill": '{"appid"}: every token there is answers 40001 from now on',
    "POST /sandbox/secret": '{"appid", "secret"}: the AppSecret is another one from now on',
    "POST /sandbox/advance": '{"seconds"}: let that much time pass',
    "POST /sandbox/followers": (
        '{"appid", "followers", "withhold"}: how many, and whether all withhold their avatars'
    ),
    "POST /sandbox/code": (
        '{"appid", "kind": "miniprogram" or "web", "openid", "unionid", "scope", "snapshot",'
        ' "blocked"}: a login code for that user, as their phone would get it'
    ),
    "POST /sandbox/phone": (
        '{"appid", "openid", "unionid", "snapshot", "silent"}: who opens the authorise page from'
        " now on; without an openid the first follower who withholds"
    ),
    "POST /sandbox/picture": '{"appid", "openid"}: that user has another avatar, the old one dies',
    "POST /sandbox/event": (
        '{"appid", "event", "openid", "url", "token", "message_key", "revoke_info", "created_at",'
        ' "format": "xml" or "json"}: push an event; with a message_key it is encrypted'
    ),
    "GET /sandbox/robots": "what the robots of 企业微信, 钉钉 and 飞书 were sent",
    "POST /sandbox/robots": '{"errcode"}: every robot refuses with it from now on; 0: none',
    "POST /sandbox/hold": '{"appid"}: token calls wait from now on',
    "POST /sandbox/release": '{"appid"}: … until now',
}
_CODE_FIELDS: dict[str, Any] = {
    "kind": MINIPROGRAM,
    "openid": None,
    "unionid": None,
    "scope": "snsapi_base",
    "snapshot": False,
    "blocked": False,
}


_PHONE_FIELDS: dict[str, Any] = {
    "openid": None,
    "unionid": None,
    "snapshot": False,
    "silent": False,
}
_EVENT_FIELDS: dict[str, Any] = {
    "event": None,
    "openid": None,
    "url": None,
    "token": None,
    "message_key": None,
    "revoke_info": None,
    "created_at": 0,
    "format": "xml",
}


def add_routes(app: web.Application) -> None:
    """Mount the control routes; anything else under /sandbox is a 404."""
    app.router.add_get("/sandbox", _describe)
    app.router.add_get("/sandbox/calls", _calls)
    app.router.add_post("/sandbox/faults", _order)
    app.router.add_delete("/sandbox/faults", _clear)
    acts = (_issue, _kill, _secret, _advance, _followers, _code, _hold, _release)
    for act in (*acts, _phone, _picture, _event):
        app.router.add_post(f"/sandbox/{act.__name__[1:]}", act)
    app.router.add_route("*", "/sandbox", _nothing)
    app.router.add_route("*", "/sandbox/{rest:.*}", _nothing)


async def _describe(request: web.Request) -> web.Response:
    state = request.app[STATE]
    accounts = state.world.accounts.values()
    return web.json_response(
        {
            "options": dataclasses.asdict(state.world.options),
            "now": state.world.now(),
            "token_calls": state.calls.count(),
            "login_calls": dict(state.login_calls),
            "accounts": {account.appid: _account(state, account) for account in accounts},
            "faults": state.faults.queued(),
            "media": state.media.described(),
            "messages": list(state.messages),
            "routes": _ROUTES,
            "kinds": catalogue(),
        }
    )


def _account(state: SandboxState, account: SimulatedAccount) -> dict[str, Any]:
    now, traffic = state.world.now(), state.calls.traffic(account.appid)
    used = {
        CLASSIC: account.calls.used(now),
        STABLE: account.stable_calls.used(now),
        "force_refresh": account.forced.used(now),
        "user/get": account.user_get.used(now),
    }
    return _traffic(traffic, now) | {
        "quota_used": used,
        "live_tokens": sum(token.errcode(now) == 0 for token in account.tokens()),
        "followers": account.followers,
        "withhold": account.withhold,
        "held": state.gate.event(account.appid) is not None,
        "faults": sum(fault["appid"] in {None, account.appid} for fault in state.faults.queued()),
    }


def _traffic(traffic: Traffic, now: float) -> dict[str, Any]:
    calls = {
        name: {"today": traffic.today[name].used(now), "total": total}
        for name, total in traffic.total.items()
    }
    return {"calls": calls, "in_flight": traffic.in_flight, "max_in_flight": traffic.max_in_flight}


async def _calls(request: web.Request) -> web.Response:
    since = request.query.get("since", "0")
    # - fits 64 bits
    if not (since.isascii() and since.isdigit() and len(since) < 19):  # noqa: PLR2004
        raise _problem(400, "since: must be a whole number")
    return web.json_response(request.app[STATE].calls.since(int(since)))


async def _order(request: web.Request) -> web.Response:
    try:
        fault: Fault = parse(await _json(request))
        request.app[STATE].faults.order(fault)
    except InvalidOrderError as error:
        raise _problem(400, str(error)) from error
    return web.json_response(vars(fault), status=201)


async def _clear(request: web.Request) -> web.Response:
    return web.json_response(
        {"deleted": request.app[STATE].faults.clear(request.query.get("appid"))}
    )


async def _issue(request: web.Request) -> web.Response:
    """Call the classic endpoint as another program that knows the secret.

    Neither the gate nor a fault stops it.
    """
    state = request.app[STATE]
    account = _the_account(state, await _body(request, "appid"))
    with state.calls.arriving(account.appid, CLASSIC, by="second-issuer") as call:
        try:
            account.spend(CLASSIC, state.world.now())
        except WeChatRefusal as refusal:
            call.outcome = refusal.errcode
        else:
            call.outcome = 0
            call.granted(state.world.classic(account).token, minted=True)
    return web.json_response(dataclasses.asdict(call))


async def _kill(request: web.Request) -> web.Response:
    state = request.app[STATE]
    state.world.kill(_the_account(state, await _body(request, "appid")))
    return web.json_response({})


async def _secret(request: web.Request) -> web.Response:
    body = await _body(request, "appid", optional=("secret",))
    if not isinstance(body.get("secret"), str) or not body["secret"]:
        raise _problem(400, "secret: must be a text")
    _the_account(request.app[STATE], body).reset_secret(body["secret"])
    return web.json_response({})


async def _advance(request: web.Request) -> web.Response:
    state, seconds = request.app[STATE], (await _body(request, "seconds"))["seconds"]
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float)
        or not 0 <= seconds < math.inf
    ):
        raise _problem(400, "seconds: must be a number from 0")
    state.world.advance(seconds)
    return web.json_response({"now": state.world.now()})


async def _followers(request: web.Request) -> web.Response:
    state, body = (
        request.app[STATE],
        await _body(request, "appid", optional=("followers", "withhold")),
    )
    account = _the_account(state, body)
    count, withhold = (
        body.get("followers", account.followers),
        body.get("withhold", account.withhold),
    )
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= _MOST_FOLLOWERS:
        raise _problem(400, f"followers: must be a whole number, 0…{_MOST_FOLLOWERS}")
    if not isinstance(withhold, bool):
        raise _problem(400, "withhold: must be true or false")
    account.followers, account.withhold = count, withhold
    return web.json_response({"followers": count, "withhold": withhold})


async def _code(request: web.Request) -> web.Response:
    """Give a code. Without an openid it is the first follower's."""
    state = request.app[STATE]
    body = await _body(request, "appid", optional=tuple(_CODE_FIELDS))
    account = _the_account(state, body)
    said = _checked(body, {**_CODE_FIELDS, "openid": openid(account.appid, 0)})
    for name, known in (("kind", (MINIPROGRAM, WEB)), ("scope", ("snsapi_base", USERINFO))):
        if said[name] not in known:
            raise _problem(400, f"{name}: must be {' or '.join(known)}")
    user = SimulatedUser(
        account.appid, said["openid"], said["unionid"], said["snapshot"], said["scope"]
    )
    return web.json_response(
        {"code": state.users.code(user, said["kind"], blocked=said["blocked"])}, status=201
    )


async def _phone(request: web.Request) -> web.Response:
    state = request.app[STATE]
    body = await _body(request, "appid", optional=tuple(_PHONE_FIELDS))
    account = _the_account(state, body)
    said = _checked(body, _PHONE_FIELDS)
    phone = default_phone(account)
    state.phones[account.appid] = dataclasses.replace(
        phone, **said | {"openid": said["openid"] or phone.openid}
    )
    return web.json_response(dataclasses.asdict(state.phones[account.appid]))


async def _picture(request: web.Request) -> web.Response:
    state, body = request.app[STATE], await _body(request, "appid", optional=("openid",))
    account = _the_account(state, body)
    state.portraits.change(_checked(body, {"openid": None})["openid"] or openid(account.appid, 0))
    return web.json_response({})


async def _event(request: web.Request) -> web.Response:
    """Push an event to a message URL, and answer with what that answered."""
    state = request.app[STATE]
    body = await _body(request, "appid", optional=tuple(_EVENT_FIELDS))
    account = _the_account(state, body)
    said = _checked(body, _EVENT_FIELDS)
    for name in ("event", "url", "token"):
        if not said[name]:
            raise _problem(400, f"{name}: must be a text")
    if said["format"] not in ("xml", "json"):
        raise _problem(400, "format: must be xml or json")
    now = state.world.now()
    order = EventOrder(
        account.appid,
        said["event"],
        said["openid"] or openid(account.appid, 0),
        said["revoke_info"] or "",
        said["created_at"] or int(now),
    )
    message = signed(order, said["token"], said["message_key"], said["format"], int(now))
    try:
        return web.json_response(await pushed(said["url"], message))
    except (OSError, ValueError, ClientError) as error:
        raise _problem(400, f"url: {type(error).__name__}") from error


def _checked(body: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields with their defaults; each is of its default's kind, None means a text."""
    said = fields | {name: value for name, value in body.items() if name in fields}
    for name, default in fields.items():
        kind = str if default is None else type(default)
        if not isinstance(said[name], kind) and not (default is None and said[name] is None):
            meant = {bool: "true or false", int: "a whole number"}.get(kind, "a text")
            raise _problem(400, f"{name}: must be {meant}")
    return said


async def _hold(request: web.Request) -> web.Response:
    state = request.app[STATE]
    state.gate.hold(_the_account(state, await _body(request, "appid")).appid)
    return web.json_response({})


async def _release(request: web.Request) -> web.Response:
    state = request.app[STATE]
    state.gate.release(_the_account(state, await _body(request, "appid")).appid)
    return web.json_response({})


async def _nothing(_request: web.Request) -> web.Response:
    raise _problem(404, "no such control route; GET /sandbox lists them")


def _the_account(state: SandboxState, body: dict[str, Any]) -> SimulatedAccount:
    try:
        return state.world.account(str(body["appid"]))
    except WeChatRefusal as refusal:
        raise _problem(400, "appid: must be wx and 1 to 62 of 0-9 A-Z a-z _ -") from refusal


async def _body(
    request: web.Request, required: str, optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    body = await _json(request)
    if required not in body:
        raise _problem(400, f"{required}: is missing")
    for name in body:
        if name not in {required, *optional}:
            raise _problem(400, f"{name}: unknown field")
    return body


async def _json(request: web.Request) -> dict[str, Any]:
    try:
        read = json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise _problem(400, "the body must be JSON") from error
    if not isinstance(read, dict):
        raise _problem(400, "the body must be a JSON object")
    return read


def _problem(status: int, detail: str) -> web.HTTPException:
    kind = {400: web.HTTPBadRequest, 404: web.HTTPNotFound}[status]
    text = json.dumps({"title": kind.__name__, "status": status, "detail": detail})
    return kind(text=text, content_type="application/problem+json")
