"""`/livez`, `/readyz`, `/health` and `/metrics`: for systemd, load balancers, people, Prometheus.

None of them calls WeChat, and each answers whatever Host is asked for.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from broker.core.credential import NEVER
from broker.core.errcodes import Failure
from broker.http.problems import problem
from broker.tokens.keeper import Keeper
from broker.tokens.registry import Registry
from broker.web.api.metrics import Metrics
from broker.web.connection.fast_path import AGAIN, ResponseCache
from broker.web.gate import open_to_probes
from broker.web.params import NO_STORE
from broker.web.shared_pages import SharedPage, SharedPages, shared_page
from broker.web.words import english

HEALTH: Final = "application/health+json"
GOOD: Final = b'{"status": "pass"}'


class Probes:
    """The handlers. `logins_news` returns, by app, why WeChat refuses its logins."""

    def __init__(
        self,
        registry: Registry,
        metrics: Metrics,
        response_cache: ResponseCache,
        pages: SharedPages,
        logins_news: Callable[[], Mapping[str, Failure]] = dict,
    ) -> None:
        self._registry = registry
        self._metrics = metrics
        self._response_cache = response_cache
        self._pages = pages
        self._logins_news = logins_news

    def routes(self) -> list[web.RouteDef]:
        """Return a route per probe."""
        return [
            web.get("/livez", self.livez),
            web.get("/readyz", self.readyz),
            web.get("/health", self.health),
            web.get("/metrics", self.metrics),
        ]

    @open_to_probes
    async def livez(self, request: web.Request) -> web.Response:
        """Answer 200 while the schedule ticks. A restart helps only where this fails."""
        registry = self._registry

        def look() -> tuple[str, float]:
            return "" if registry.ticking else "the schedule has stopped", registry.ticking_until

        return self._repeatable(request, look)

    @open_to_probes
    async def readyz(self, request: web.Request) -> web.Response:
        """Answer 200 while every app has a token and the daemon is not stopping.

        With `?app=NAME` only that app counts, named by name or AppID.
        """
        registry, app = self._registry, request.query.get("app")
        if app is not None and registry.is_login_only(app):
            return self._repeatable(
                request, lambda: ("stopping" if registry.stopping else "", math.inf)
            )
        if app is not None and registry.find(app) is None:
            return problem(404, "unknown-app", "No app has this name or AppID.")

        def look() -> tuple[str, float]:
            one = registry.find(app) if app is not None else None
            keepers = registry if app is None else [one] if one is not None else []
            served = {keeper.account.name: keeper.serve() for keeper in keepers}
            missing = [name for name, answer in served.items() if answer is None]
            until = min((answer.until for answer in served.values() if answer), default=NEVER)
            if registry.stopping:
                return "stopping", until
            return f"no token for: {', '.join(missing)}" if missing else "", until

        return self._repeatable(request, look)

    @open_to_probes
    async def health(self, request: web.Request) -> web.Response:
        """Answer `pass`, `warn` (it works, but somebody should look) or `fail`, with reasons."""
        return (await self._pages.get("health", self._health_page)).response(request)

    @open_to_probes
    async def metrics(self, request: web.Request) -> web.Response:
        """Answer in Prometheus's text format."""
        return (await self._pages.get("metrics", self._metrics_page)).response(request)

    async def _health_page(self) -> SharedPage:
        def make() -> SharedPage:
            registry = self._registry
            checks = {
                f"token:{keeper.account.name}": [_check(keeper)] for keeper in tuple(registry)
            }
            checks |= {f"logins:{app}": [_news(news)] for app, news in self._logins_news().items()}
            found = {check[0]["status"] for check in checks.values()}
            if not registry.ticking or registry.stopping:
                found.add("fail")
            worst = next((one for one in ("fail", "warn") if one in found), "pass")
            code, body = _answer(worst, checks=checks)
            return shared_page(body, f"{HEALTH}; charset=utf-8", NO_STORE, code)

        return await self._pages.on_thread(make)

    async def _metrics_page(self) -> SharedPage:
        self._response_cache.account()
        return await self._pages.on_thread(
            lambda: shared_page(self._metrics.text(), CONTENT_TYPE_LATEST, NO_STORE)
        )

    def _repeatable(
        self, request: web.Request, look: Callable[[], tuple[str, float]]
    ) -> web.Response:
        """Answer with what `look` returns, and let the response cache look again (fast_path.py).

        `look` returns why the probe fails, empty if it does not, and until when (steady time) that
        is true.
        """
        now = self._response_cache.now

        def again() -> tuple[bytes, float] | None:
            why_not, until = look()
            return None if why_not else (GOOD, min(until, now() + 1))

        request[AGAIN] = again
        why_not, _ = look()
        status, body = _answer("fail", output=why_not) if why_not else _answer("pass")
        return web.Response(
            body=body, status=status, content_type=HEALTH, charset="utf-8", headers=NO_STORE
        )


def _check(keeper: Keeper) -> dict[str, Any]:
    served, credential = keeper.serve(), keeper.credential
    failure = credential.failure
    worries = [
        f"last token call failed: {english.FAILURES.reason(failure)}" if failure else "",
        f"the store: {keeper.store_error}" if keeper.store_error else "",
        "the token is in doubt" if credential.suspicion else "",
        (
            "somebody else calls the token endpoint with this secret"
            if credential.second_issuer.suspected
            else ""
        ),
    ]
    return {
        "componentType": "component",
        "status": "fail" if served is None else "warn" if any(worries) else "pass",
        "observedValue": served.token_expires_in if served else 0,
        "observedUnit": "s",
        "output": "; ".join(filter(None, worries)),
    }


def _news(failure: Failure) -> dict[str, Any]:
    return {
        "componentType": "component",
        "status": "warn",
        "output": f"WeChat refuses logins: {english.FAILURES.reason(failure)}",
    }


def _answer(status: str, **more: Any) -> tuple[int, bytes]:
    """Return the HTTP status and the body; what is empty in `more` is left out."""
    body = {"status": status} | {key: value for key, value in more.items() if value}
    return (503 if status == "fail" else 200), json.dumps(body).encode()
