"""/v1: tokens, reports, refreshes, status.

Each handler reads, asks a keeper, and renders; it decides nothing.
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from aiohttp import hdrs, web
from multidict import CIMultiDict

from broker.core.errcodes import TOKEN_REFUSED
from broker.core.serving import Served, Unavailable
from broker.http.problems import ProblemError
from broker.tokens.keeper import Keeper
from broker.web.connection.fast_path import AGAIN, Again
from broker.web.connection.long_poll import Wait
from broker.web.context import EDGE, Edge
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

NOTHING: Final[Mapping[str, str]] = {}


def routes() -> list[web.RouteDef]:
    """Every route of /v1."""
    return [
        web.get("/v1/tokens/{app}", get_token),
        web.post("/v1/tokens/{app}/report", report_token),
        web.post("/v1/tokens/{app}/refresh", refresh_token),
    ]


# --- handlers -------------------------------------------------------------------------------------


async def get_token(request: web.Request) -> web.Response:
    """The token; 304 where the client has it, at once or after `wait` seconds."""
    keeper = keeper_of(request, "read")
    wait, min_ttl = numbers(request, wait=LONGEST_WAIT_S, min_ttl=LONGEST_TTL_S)
    if (
        hdrs.IF_NONE_MATCH in request.headers
        and (version := keeper.credential.version)
        and matches(request, version)
    ):
        answer = (
            await _watch(request, keeper, wait, min_ttl)
            if wait or keeper.serve(min_ttl) is None
            else None
        )
        if answer is None and (held := keeper.serve(min_ttl)) is not None:
            if not wait:
                request[AGAIN] = _again(None, keeper, held, min_ttl)
            return _unchanged(version)
    served = keeper.serve(min_ttl) or await _get(request, keeper, wait, min_ttl)
    if not isinstance(served, Served):
        return unavailable(served)
    if not wait:
        request[AGAIN] = _again(request.app[EDGE], keeper, served, min_ttl)
    return _token(request.app[EDGE], keeper, served)


async def _get(
    request: web.Request, keeper: Keeper, wait: float, min_ttl: float
) -> Served | Unavailable:
    edge = request.app[EDGE]
    getting = keeper.get(min_ttl, max(wait, edge.patience_s))
    if not wait:
        return await getting
    return await edge.response_cache.bounded(request, getting) or await keeper.get(min_ttl, 0)


async def _watch(
    request: web.Request, keeper: Keeper, wait: float, min_ttl: float
) -> Served | Unavailable | None:
    """Watch the version that is in force, and say how whoever asks the same is answered (long_poll.py)."""
    edge, version = request.app[EDGE], keeper.credential.version or ""

    async def over(seconds: float) -> bool:
        await keeper.watch(version, seconds)
        return keeper.credential.version != version or edge.registry.stopping

    def answer() -> web.Response | None:
        served = keeper.serve(min_ttl)
        if served is None or edge.registry.stopping:
            return None
        return (
            _token(edge, keeper, served)
            if served.credential.version != version
            else _unchanged(version)
        )

    # Where the next version may match as well (`*`), one that is handed back would not know what it
    # has waited for
    if wait:
        is_only = all(tag.value == version for tag in request.if_none_match or ())
        edge.response_cache.join(request, Wait(wait, over, answer) if is_only else None)
    watching = keeper.watch(version, edge.response_cache.left(request, wait))
    return await edge.response_cache.bounded(request, watching) or await keeper.watch(version, 0)


async def report_token(request: web.Request) -> web.Response:
    """Take a report; the answer is the token to go on with."""
    keeper = keeper_of(request, "report")
    fields = await fields_of(request, {"version": str, "access_token": str, "errcode": int})
    named = {"version": fields.get("version"), "token": fields.get("access_token")}
    if sum(value is not None for value in named.values()) != 1:
        raise ProblemError(
            422,
            "invalid-body",
            "Give either `version` or `access_token`, of the token that was refused.",
        )
    if fields.get("errcode", 40001) not in TOKEN_REFUSED:
        known = ", ".join(map(str, sorted(TOKEN_REFUSED)))
        raise ProblemError(
            422,
            "not-a-token-error",
            f"`errcode` {fields['errcode']} does not say the token is bad; these do: {known}.",
        )
    answer = await keeper.report(request.app[EDGE].patience_s, **named)
    if isinstance(answer, Unavailable):
        return unavailable(answer)
    outcome, served = answer
    return _token(request.app[EDGE], keeper, served, outcome=outcome.value)


async def refresh_token(request: web.Request) -> web.Response:
    """Spend a token call now.

    `{"force": true}` makes the stable endpoint mint another token, which kills the old one.
    """
    keeper = keeper_of(request, "admin")
    fields = await fields_of(request, {"force": bool}) if request.can_read_body else {}
    answer = await keeper.refresh(request.app[EDGE].patience_s, force=fields.get("force", False))
    return (
        _token(request.app[EDGE], keeper, answer)
        if isinstance(answer, Served)
        else unavailable(answer)
    )


# --- rendering ------------------------------------------------------------------------------------


def _unchanged(version: str) -> web.Response:
    return web.Response(
        status=HTTPStatus.NOT_MODIFIED, headers={**NO_STORE, hdrs.ETAG: f'"{version}"'}
    )


def _token(edge: Edge, keeper: Keeper, served: Served, **more: str) -> web.Response:
    name = keeper.account.name
    key = (
        served.credential,
        served.expires_in,
        served.token_expires_in,
        served.state,
        more.get("outcome"),
    )
    kept = edge.rendered.get(name)
    if kept is None or kept[0] != key:
        kept = edge.rendered[name] = (key, *_rendered(edge, keeper, served, more))
    _, body, headers = kept
    return web.Response(body=body, headers=headers.copy())


def _again(edge: Edge | None, keeper: Keeper, first: Served, min_ttl: float) -> Again:
    """How the same version is handed out again, for as long as it may be; without an edge, as a 304.

    It must not know of the request: that knows of it, and each would be garbage that only a
    collector finds.
    """
    credential = first.credential

    def again() -> tuple[bytes, float] | None:
        served = keeper.serve(min_ttl)
        if served is None or served.credential is not credential:
            return None
        return (_rendered(edge, keeper, served)[0] if edge else b""), served.until

    return again


def _rendered(
    edge: Edge, keeper: Keeper, served: Served, more: Mapping[str, str] = NOTHING
) -> tuple[bytes, CIMultiDict[str]]:
    """Body and headers: the same for everyone who asks within a second."""
    version = served.credential.version
    body = {
        "app": keeper.account.name,
        "appid": keeper.account.appid,
        "access_token": served.token.value.reveal(),
        "expires_in": served.expires_in,
        "expires_at": iso(edge.wall() + served.expires_in),
        "token_expires_in": served.token_expires_in,
        "version": version,
        "state": served.state.value,
        **more,
    }
    headers = {**NO_STORE, hdrs.ETAG: f'"{version}"', hdrs.CONTENT_TYPE: "application/json"}
    return json.dumps(body).encode(), CIMultiDict(headers)


# --- reading --------------------------------------------------------------------------------------
