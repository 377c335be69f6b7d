"""Is it alive, is it ready, how is it: for systemd, load balancers, people and Prometheus. None of them calls WeChat."""

import asyncio
from typing import Any, Final

from aiohttp import hdrs, web
from prometheus_client import CONTENT_TYPE_LATEST

from broker.keeper import Keeper
from broker.web.api import EDGE, NO_STORE
from broker.web.express import UNTIL
from broker.web.gate import open_to_browsers
from broker.web.metrics import METRICS

HEALTH: Final = "application/health+json"


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
    roster = request.app[EDGE].roster
    ticking, request[UNTIL] = roster.ticking, min(request.app[EDGE].lane.now() + 1, roster.ticking_until)
    return _answer("pass" if ticking else "fail", output="" if ticking else "the schedule has stopped")


@open_to_browsers
async def readyz(request: web.Request) -> web.Response:
    """200 while every app has a token to hand out and the daemon is not stopping."""
    roster = request.app[EDGE].roster
    served = {keeper.account.name: keeper.serve() for keeper in roster}
    missing = [name for name, answer in served.items() if answer is None]
    request[UNTIL] = min([request.app[EDGE].lane.now() + 1, *(answer.until for answer in served.values() if answer)])
    if roster.stopping:
        return _answer("fail", output="stopping")
    return _answer("fail" if missing else "pass", output=f"no token for: {', '.join(missing)}" if missing else "")


@open_to_browsers
async def health(request: web.Request) -> web.Response:
    """`pass`, `warn` (works, but somebody should look) or `fail`, with the reasons by app."""
    roster = request.app[EDGE].roster
    checks = {f"token:{keeper.account.name}": [_check(keeper)] for keeper in roster}
    found = {check[0]["status"] for check in checks.values()} | {"pass" if roster.ticking and not roster.stopping else "fail"}
    worst = next(status for status in ("fail", "warn", "pass") if status in found)
    return _answer(worst, checks=checks)


@open_to_browsers
async def metrics(request: web.Request) -> web.Response:
    """Prometheus text."""
    request.app[EDGE].lane.account()
    body = await asyncio.to_thread(request.app[METRICS].text)
    return web.Response(body=body, headers={**NO_STORE, hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST})


def _check(keeper: Keeper) -> dict[str, Any]:
    served, credential = keeper.serve(), keeper.credential
    worries = [
        f"last token call failed: {credential.failure.reason}" if credential.failure else "",
        f"the store: {keeper.store_error}" if keeper.store_error else "",
        "the token is in doubt" if credential.suspicion else "",
        "somebody else calls the token endpoint with this secret" if credential.rivalry.suspected else "",
    ]
    status = "fail" if served is None else "warn" if any(worries) else "pass"
    observed = {"observedValue": served.expires_in if served else 0, "observedUnit": "s"}
    return {"componentType": "component", "status": status, **observed, "output": "; ".join(filter(None, worries))}


def _answer(status: str, **more: Any) -> web.Response:
    body: dict[str, Any] = {"status": status}
    body |= {key: value for key, value in more.items() if value}
    code = 503 if status == "fail" else 200
    return web.json_response(body, status=code, content_type=HEALTH, headers=NO_STORE)
