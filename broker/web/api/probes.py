"""Is it alive, is it ready, how is it: for systemd, load balancers, people and Prometheus.

None of them calls WeChat.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from aiohttp import hdrs, web
from prometheus_client import CONTENT_TYPE_LATEST

from broker.core.credential import NEVER
from broker.tokens.keeper import Keeper
from broker.web.api.metrics import METRICS
from broker.web.connection.fast_path import AGAIN
from broker.web.context import EDGE, Edge
from broker.web.gate import open_to_browsers
from broker.web.params import NO_STORE

HEALTH: Final = "application/health+json"
GOOD: Final = b'{"status": "pass"}'


def routes() -> list[web.RouteDef]:
    """Every probe."""
    return [
        web.get("/livez", livez),
        web.get("/readyz", readyz),
        web.get("/health", health),
        web.get("/metrics", metrics),
    ]


@open_to_browsers
async def livez(request: web.Request) -> web.Response:
    """200 while the schedule ticks: a restart may help where this fails, and nowhere else."""
    registry = request.app[EDGE].registry
    return _repeatable(
        request,
        lambda: ("" if registry.ticking else "the schedule has stopped", registry.ticking_until),
    )


@open_to_browsers
async def readyz(request: web.Request) -> web.Response:
    """200 while every app has a token to hand out and the daemon is not stopping."""
    registry = request.app[EDGE].registry

    def look() -> tuple[str, float]:
        served = {keeper.account.name: keeper.serve() for keeper in registry}
        missing = [name for name, answer in served.items() if answer is None]
        why_not = (
            "stopping"
            if registry.stopping
            else f"no token for: {', '.join(missing)}"
            if missing
            else ""
        )
        return why_not, min((answer.until for answer in served.values() if answer), default=NEVER)

    return _repeatable(request, look)


@open_to_browsers
async def health(request: web.Request) -> web.Response:
    """`pass`, `warn` (works, but somebody should look) or `fail`, with the reasons by app."""
    registry = request.app[EDGE].registry
    checks = {f"token:{keeper.account.name}": [_check(keeper)] for keeper in registry}
    checks |= _logins(request.app[EDGE])
    found = {check[0]["status"] for check in checks.values()} | {
        "pass" if registry.ticking and not registry.stopping else "fail"
    }
    worst = next(status for status in ("fail", "warn", "pass") if status in found)
    return _answer(worst, checks=checks)


@open_to_browsers
async def metrics(request: web.Request) -> web.Response:
    """Prometheus text."""
    request.app[EDGE].response_cache.account()
    body = await asyncio.to_thread(request.app[METRICS].text)
    return web.Response(body=body, headers={**NO_STORE, hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST})


def _repeatable(request: web.Request, look: Callable[[], tuple[str, float]]) -> web.Response:
    """Answer by what a look finds: why not, or nothing; and until when that is so.

    It may be looked again (fast_path.py).
    """
    now = request.app[EDGE].response_cache.now

    def again() -> tuple[bytes, float] | None:
        why_not, until = look()
        return None if why_not else (GOOD, min(until, now() + 1))

    request[AGAIN] = again
    why_not, _ = look()
    return _answer("fail", output=why_not) if why_not else _answer("pass")


def _check(keeper: Keeper) -> dict[str, Any]:
    served, credential = keeper.serve(), keeper.credential
    worries = [
        f"last token call failed: {credential.failure.reason}" if credential.failure else "",
        f"the store: {keeper.store_error}" if keeper.store_error else "",
        "the token is in doubt" if credential.suspicion else "",
        (
            "somebody else calls the token endpoint with this secret"
            if credential.second_issuer.suspected
            else ""
        ),
    ]
    status = "fail" if served is None else "warn" if any(worries) else "pass"
    observed = {"observedValue": served.token_expires_in if served else 0, "observedUnit": "s"}
    return {
        "componentType": "component",
        "status": status,
        **observed,
        "output": "; ".join(filter(None, worries)),
    }


def _logins(edge: Edge) -> dict[str, list[dict[str, Any]]]:
    """The apps whose logins WeChat refuses for the sake of the app: somebody should look."""
    return {
        f"logins:{app}": [
            {
                "componentType": "component",
                "status": "warn",
                "output": f"WeChat refuses logins: {news.reason}",
            }
        ]
        for app, news in (edge.logins.news() if edge.logins is not None else {}).items()
    }


def _answer(status: str, **more: Any) -> web.Response:
    body: dict[str, Any] = {"status": status}
    body |= {key: value for key, value in more.items() if value}
    code = 503 if status == "fail" else 200
    return web.json_response(body, status=code, content_type=HEALTH, headers=NO_STORE)
