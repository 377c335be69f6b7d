"""/v1/status: how everything stands, without a token or a secret.

The command and the page show the same.
"""

import asyncio
import json
import time
from typing import Any, Final

from aiohttp import web

from broker import __version__
from broker.core.quota import Usage
from broker.tokens.keeper import Keeper
from broker.web.context import EDGE, Edge
from broker.web.gate import open_to_browsers
from broker.web.params import NO_STORE, iso
from broker.web.words import english


def routes() -> list[web.RouteDef]:
    """Its one route."""
    return [web.get("/v1/status", get_status)]


@open_to_browsers
async def get_status(request: web.Request) -> web.Response:
    """Every app without its token."""
    # On a thread: of a thousand apps it takes longer than anybody should have to wait for the loop.
    body = await asyncio.to_thread(lambda: json.dumps(status(request.app[EDGE])))
    return web.json_response(text=body, headers=NO_STORE)


STARTED: Final = time.monotonic()


def uptime() -> int:
    """Whole seconds since the start."""
    return int(time.monotonic() - STARTED)


def status(edge: Edge) -> dict[str, Any]:
    """What /v1/status, the command and the page show. No token, no secret."""
    return {
        "version": __version__,
        "uptime": uptime(),
        "stopping": edge.registry.stopping,
        "apps": [app_status(edge, keeper) for keeper in edge.registry],
        "nodes": nodes(edge),
    }


def nodes(edge: Edge) -> list[dict[str, Any]]:
    """Who shares the store, and how long ago, in seconds by the store's own clock: nobody's wall is compared with it."""
    known = edge.nodes()
    now = max(
        (node.seen_at for node in known), default=0.0
    )  # we ourselves are among them, and say so every few seconds
    return [
        {
            "node": node.name,
            "seen_ago": round(now - node.seen_at),
            "notified_ago": (
                None if node.notified_at is None else max(0, round(now - node.notified_at))
            ),
            "versions": {
                keeper.account.name: node.versions.get(keeper.account.id)
                for keeper in edge.registry
            },
        }
        for node in known
    ]


def app_status(edge: Edge, keeper: Keeper) -> dict[str, Any]:
    """One app, without its token."""
    second_issuer, spent = keeper.credential.second_issuer, keeper.usage()
    return {
        "app": keeper.account.name,
        "appid": keeper.account.appid,
        "endpoint": keeper.account.endpoint.value,
        **_held(keeper, spent),
        "quota": {
            "limit": spent.limit,
            "used_today": spent.today,
            "used_24h": spent.last_24h,
            "remaining": spent.remaining,
        },
        "second_issuer": {
            "suspected": second_issuer.suspected,
            "since": None if second_issuer.since is None else iso(second_issuer.since),
            "count": second_issuer.count,
        },
        "store_error": keeper.store_error,
        "tickets": {
            kind: _held(ticket, ticket.usage(), english.TICKET)
            for kind, ticket in edge.tickets_of(keeper.account.name).items()
        },
    }


def _held(keeper: Keeper, spent: Usage, thing: str = english.FAILURES.token) -> dict[str, Any]:
    """Describe a token, or a ticket."""
    credential, served = keeper.credential, keeper.serve()
    failure = credential.failure
    return {
        "state": served.state.value if served else "unavailable",
        "version": credential.version,
        "expires_in": served.expires_in if served else 0,
        "token_expires_in": served.token_expires_in if served else 0,
        "next_refresh_in": max(0, round(keeper.next_call_in())),
        "last_error": (
            failure
            and {
                "class": failure.kind.value,
                "errcode": failure.errcode,
                "reason": english.FAILURES.reason(failure),
                "advice": english.FAILURES.advice_beside(failure, spent, thing),
                "ip": failure.ip,
                "rid": failure.rid,
                "at": iso(failure.wall),
            }
        ),
    }
