"""/v1: tokens, reports, refreshes, status. Each handler reads, asks a keeper, and renders; it decides nothing."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from aiohttp import hdrs, web
from multidict import CIMultiDict

from broker.core.credential import Account
from broker.core.errcodes import TOKEN_REFUSED
from broker.core.ports import Node
from broker.core.serving import Served, Unavailable
from broker.keeper import Keeper
from broker.roster import Roster
from broker.web.express import AGAIN, Again, Lane
from broker.web.gate import CLIENT
from broker.web.plot import Plot
from broker.web.problems import problem, unavailable
from broker.web.visitors import Visitors
from broker.web.waiting import Wait

History = Callable[[float, Account], Awaitable[list[dict[str, Any]]]]


async def _no_history(_since: float, _account: Account) -> list[dict[str, Any]]:
    return []


@dataclass(frozen=True, slots=True)
class Edge:
    """What handlers need. `patience_s`: how long a request waits for a refresh under way; `wall`: unix time.

    `history` reads the calls of an account since a wall time; raises StoreError.
    """

    roster: Roster
    patience_s: float
    lane: Lane
    wall: Callable[[], float] = time.time
    visitors: Visitors = field(default_factory=lambda: Visitors(time.monotonic))
    history: History = _no_history
    tickets_of: Callable[[str], Mapping[str, Keeper]] = lambda _: {}  # by type, those an app has now
    nodes: Callable[[], Sequence[Node]] = tuple  # who shares the store
    rendered: dict[str, tuple[object, bytes, CIMultiDict[str]]] = field(default_factory=dict)  # by app, the last answer
    plots: dict[str, tuple[object, Plot]] = field(default_factory=dict)  # by app, the last drawn


EDGE: Final = web.AppKey("edge", Edge)

LONGEST_WAIT_S: Final = 300
NUMBER: Final = re.compile(r"\d{1,20}(?:\.\d{1,400})?(?:[eE][+-]?\d{1,4})?", re.ASCII)
BODY_DEADLINE_S: Final = 10.0
LONGEST_TTL_S: Final = 86400
NOTHING: Final[Mapping[str, str]] = {}
NO_STORE: Final = {hdrs.CACHE_CONTROL: "no-store"}


class Bad(Exception):  # noqa: N818 -- an answer, raised
    """A request that is refused, with the answer."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(code)
        self.response = problem(status, code, detail)


def routes() -> list[web.RouteDef]:
    """Every route of /v1."""
    return [
        web.get("/v1/tokens/{app}", get_token),
        web.post("/v1/tokens/{app}/report", report_token),
        web.post("/v1/tokens/{app}/refresh", refresh_token),
    ]


# --- handlers ---------------------------------------------------------------------------------------------------------


async def get_token(request: web.Request) -> web.Response:
    """The token; 304 where the client has it, at once or after `wait` seconds."""
    keeper = keeper_of(request, "read")
    wait, min_ttl = numbers(request, wait=LONGEST_WAIT_S, min_ttl=LONGEST_TTL_S)
    if hdrs.IF_NONE_MATCH in request.headers and (version := keeper.credential.version) and matches(request, version):
        answer = await _watch(request, keeper, wait, min_ttl) if wait or keeper.serve(min_ttl) is None else None
        if answer is None and (held := keeper.serve(min_ttl)) is not None:
            if not wait:
                request[AGAIN] = _again(None, keeper, held, min_ttl)
            return _unchanged(version)
    served = keeper.serve(min_ttl) or await keeper.get(min_ttl, max(wait, request.app[EDGE].patience_s))
    if not isinstance(served, Served):
        return unavailable(served)
    if not wait:
        request[AGAIN] = _again(request.app[EDGE], keeper, served, min_ttl)
    return _token(request.app[EDGE], keeper, served)


async def _watch(request: web.Request, keeper: Keeper, wait: float, min_ttl: float) -> Served | Unavailable | None:
    """Watch the version that is in force, and say how whoever asks the same is answered (waiting.py)."""
    edge, version = request.app[EDGE], keeper.credential.version or ""

    async def over(seconds: float) -> bool:
        await keeper.watch(version, seconds)
        return keeper.credential.version != version or edge.roster.stopping

    def answer() -> web.Response | None:
        served = keeper.serve(min_ttl)
        if served is None or edge.roster.stopping:
            return None
        return _token(edge, keeper, served) if served.credential.version != version else _unchanged(version)

    if wait:  # where the next version may match as well (`*`), one that is handed back would not know what it has waited for
        is_only = all(tag.value == version for tag in request.if_none_match or ())
        edge.lane.park(request, Wait(wait, over, answer) if is_only else None)
    return await keeper.watch(version, edge.lane.left(request, wait))


async def report_token(request: web.Request) -> web.Response:
    """Take a report; the answer is the token to go on with."""
    keeper = keeper_of(request, "report")
    fields = await fields_of(request, {"version": str, "access_token": str, "errcode": int})
    named = {"version": fields.get("version"), "token": fields.get("access_token")}
    if sum(value is not None for value in named.values()) != 1:
        raise Bad(422, "invalid-body", "Give either `version` or `access_token`, of the token that was refused.")
    if fields.get("errcode", 40001) not in TOKEN_REFUSED:
        known = ", ".join(map(str, sorted(TOKEN_REFUSED)))
        raise Bad(422, "not-a-token-error", f"`errcode` {fields['errcode']} does not say the token is bad; these do: {known}.")
    answer = await keeper.report(request.app[EDGE].patience_s, **named)
    if isinstance(answer, Unavailable):
        return unavailable(answer)
    outcome, served = answer
    return _token(request.app[EDGE], keeper, served, outcome=outcome.value)


async def refresh_token(request: web.Request) -> web.Response:
    """Spend a token call now. `{"force": true}` makes the stable endpoint mint another token, which kills the old one."""
    keeper = keeper_of(request, "admin")
    fields = await fields_of(request, {"force": bool}) if request.can_read_body else {}
    answer = await keeper.refresh(request.app[EDGE].patience_s, force=fields.get("force", False))
    return _token(request.app[EDGE], keeper, answer) if isinstance(answer, Served) else unavailable(answer)


def iso(wall: float) -> str:
    """Unix time for people: UTC, whole seconds, rounded down."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall))


# --- rendering --------------------------------------------------------------------------------------------------------


def _unchanged(version: str) -> web.Response:
    return web.Response(status=HTTPStatus.NOT_MODIFIED, headers={**NO_STORE, hdrs.ETAG: f'"{version}"'})


def _token(edge: Edge, keeper: Keeper, served: Served, **more: str) -> web.Response:
    name = keeper.account.name
    key = (served.credential, served.expires_in, served.state, more.get("outcome"))
    kept = edge.rendered.get(name)
    if kept is None or kept[0] != key:
        kept = edge.rendered[name] = (key, *_rendered(edge, keeper, served, more))
    _, body, headers = kept
    return web.Response(body=body, headers=headers.copy())


def _again(edge: Edge | None, keeper: Keeper, first: Served, min_ttl: float) -> Again:
    """How the same version is handed out again, for as long as it may be; without an edge, as a 304.

    It must not know of the request: that knows of it, and each would be garbage that only a collector finds.
    """
    credential = first.credential

    def again() -> tuple[bytes, float] | None:
        served = keeper.serve(min_ttl)
        if served is None or served.credential is not credential:
            return None
        return (_rendered(edge, keeper, served)[0] if edge else b""), served.until

    return again


def _rendered(edge: Edge, keeper: Keeper, served: Served, more: Mapping[str, str] = NOTHING) -> tuple[bytes, CIMultiDict[str]]:
    """Body and headers: the same for everyone who asks within a second."""
    version = served.credential.version
    body = {
        "app": keeper.account.name,
        "appid": keeper.account.appid,
        "access_token": served.token.value.reveal(),
        "expires_in": served.expires_in,
        "expires_at": iso(edge.wall() + served.expires_in),
        "version": version,
        "state": served.state.value,
        **more,
    }
    headers = {**NO_STORE, hdrs.ETAG: f'"{version}"', hdrs.CONTENT_TYPE: "application/json"}
    return json.dumps(body).encode(), CIMultiDict(headers)


# --- reading ----------------------------------------------------------------------------------------------------------


def keeper_of(request: web.Request, scope: str) -> Keeper:
    """The app's keeper, for a client that may; raises Bad. Who may not learns nothing of which apps there are."""
    client, app = request[CLIENT], request.match_info["app"]
    if scope not in client.scopes:
        raise Bad(403, "insufficient-scope", f"This client lacks the scope `{scope}`.")
    keeper = request.app[EDGE].roster.find(app)
    if not client.may_use(keeper.account.name if keeper else app):
        raise Bad(403, "insufficient-scope", "This client may not use that app.")
    if keeper is None:
        raise Bad(404, "unknown-app", "No app has this name or AppID; GET /v1/status lists them.")
    return keeper


def matches(request: web.Request, version: str) -> bool:
    """Whether the client says that it has this version."""
    tags = request.if_none_match or ()
    return any(tag.value in {version, "*"} for tag in tags)


def numbers(request: web.Request, **most: float) -> list[float]:
    """Query parameters as numbers, 0 where absent; raises Bad for any other parameter, and for values out of range."""
    if not request.query_string:
        return [0.0] * len(most)
    for name in request.query:
        if name not in most:
            raise Bad(400, "invalid-parameter", f"Unknown query parameter; there are: {', '.join(most)}.")
        if len(request.query.getall(name)) > 1:
            raise Bad(400, "invalid-parameter", f"`{name}` is given twice.")
    return [_number(name, request.query.get(name, "0"), limit) for name, limit in most.items()]


def _number(name: str, value: str, limit: float) -> float:
    if not (NUMBER.fullmatch(value) and float(value) <= limit):
        raise Bad(400, "invalid-parameter", f"`{name}` is a number of seconds from 0 to {limit:g}.")
    return float(value)


async def fields_of(request: web.Request, known: dict[str, type]) -> dict[str, Any]:
    """A JSON object's fields; raises Bad that says where it is wrong."""
    if request.content_type != "application/json":
        raise Bad(415, "unsupported-media-type", "Send the body as `Content-Type: application/json`.")
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            body = json.loads(await request.read())
    except TimeoutError:
        raise Bad(408, "request-timeout", f"The body did not come within {BODY_DEADLINE_S:g} s.") from None
    except ConnectionError:
        raise Bad(400, "invalid-json", "The body ended early.") from None
    except ValueError as error:
        where = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise Bad(400, "invalid-json", f"The body is not JSON{where}.") from None
    except RecursionError:
        raise Bad(400, "invalid-json", "The body is nested too deeply.") from None
    if not isinstance(body, dict):
        raise Bad(422, "invalid-body", "The body must be a JSON object.")
    wrong = [f"`{name}` must be {_TYPES[kind]}" for name, kind in known.items() if name in body and type(body[name]) is not kind]
    if len(unknown := body.keys() - known.keys()):
        wrong.append(f"{len(unknown)} unknown field(s); there are: {', '.join(known)}")
    if wrong:
        raise Bad(422, "invalid-body", "; ".join(wrong) + ".")
    return body


_TYPES: Final = {str: "a string", int: "an integer", bool: "true or false"}
