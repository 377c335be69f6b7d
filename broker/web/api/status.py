"""/v1/status: how everything stands, without a token or a secret.

The command and the page show the same.
"""

import asyncio
import json
import time
from typing import Any, Final

from aiohttp import web

from broker import __version__
from broker.core.credential import Account
from broker.core.errcodes import Failure, Kind
from broker.core.quota import Usage
from broker.logins.record import LoginRecord
from broker.tokens.keeper import Keeper
from broker.web.context import EDGE, Edge
from broker.web.gate import open_to_browsers
from broker.web.params import NO_STORE, iso


def routes() -> list[web.RouteDef]:
    """Its one route."""
    return [web.get("/v1/status", get_status)]


@open_to_browsers
async def get_status(request: web.Request) -> web.Response:
    """Every app without its token."""
    # On a thread: of a thousand apps it takes longer than anybody should have to wait for the loop.
    body = await asyncio.to_thread(lambda: json.dumps(status(request.app[EDGE])))
    return web.json_response(text=body, headers=NO_STORE)


LOGIN_ONLY: Final = "login-only"  # the state of an app that keeps no token
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
        "apps": [
            *(app_status(edge, keeper) for keeper in edge.registry),
            *(without_token_status(edge, account) for account in without_token(edge)),
        ],
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
            kind: _held(ticket, ticket.usage())
            for kind, ticket in edge.tickets_of(keeper.account.name).items()
        },
        "logins": logins_status(edge, keeper.account.name),
    }


def without_token(edge: Edge) -> list[Account]:
    """The apps that keep no token and only log in."""
    return edge.logins.without_token() if edge.logins is not None else []


def without_token_status(edge: Edge, account: Account) -> dict[str, Any]:
    """One of those apps: what is said of a token is said of none."""
    return {
        "app": account.name,
        "appid": account.appid,
        "endpoint": account.endpoint.value,
        "state": LOGIN_ONLY,
        "version": None,
        "expires_in": 0,
        "next_refresh_in": 0,
        "last_error": None,
        "quota": {"limit": 0, "used_today": 0, "used_24h": 0, "remaining": 0},
        "second_issuer": {"suspected": False, "since": None, "count": 0},
        "store_error": None,
        "tickets": {},
        "logins": logins_status(edge, account.name),
    }


def logins_status(edge: Edge, app: str) -> dict[str, Any]:
    """How an app's logins have gone since the start; `news` is what a person must see to."""
    record = (edge.logins.record(app) if edge.logins is not None else None) or LoginRecord()
    return {
        "outcomes": record.by_outcome(),
        "last_at": None if record.last_at is None else iso(record.last_at),
        "last_failure": record.failure
        and {
            "kind": record.failed_kind,
            "errcode": record.failure.errcode,
            "reason": record.failure.reason,
            "at": iso(record.failure.wall),
        },
        "news": record.news and _error(record.news),
    }


def _held(keeper: Keeper, spent: Usage) -> dict[str, Any]:
    """How a token, or a ticket, stands."""
    credential, served = keeper.credential, keeper.serve()
    failure = credential.failure
    return {
        "state": served.state.value if served else "unavailable",
        "version": credential.version,
        "expires_in": served.expires_in if served else 0,
        "token_expires_in": served.token_expires_in if served else 0,
        "next_refresh_in": max(0, round(keeper.next_call_in())),
        "last_error": failure and _error(failure, _drift(failure, spent)),
    }


def _error(failure: Failure, more: str = "") -> dict[str, Any]:
    """What went wrong and what to do about it, for people."""
    return {
        "class": failure.kind.value,
        "errcode": failure.errcode,
        "reason": failure.reason,
        "advice": failure.advice + more,
        "ip": failure.ip,
        "rid": failure.rid,
        "at": iso(failure.wall),
    }


def _drift(failure: Failure, spent: Usage) -> str:
    """How far WeChat's count is ahead of ours, where it says that the quota is spent."""
    if failure.kind is not Kind.QUOTA or not spent.remaining:
        return ""
    return (
        f" The ledger knows of {spent.last_24h}: WeChat counts at least {spent.remaining} calls"
        " that this broker did not make."
    )
