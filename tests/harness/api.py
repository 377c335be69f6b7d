"""The application over keepers on a manual clock, and a client that speaks to it."""

import json
from collections.abc import Sequence
from typing import Any

from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from broker.config.schema import LoginsTable
from broker.core.credential import Account
from broker.logins.limits import LoginLimits
from broker.logins.logins import CodeExchanger, Logins
from broker.tokens.registry import Registry
from broker.tokens.tickets import Tickets
from broker.web.api.compat import Compat
from broker.web.api.metrics import Metrics
from broker.web.connection.connections import Connections
from broker.web.connection.fast_path import ResponseCache
from broker.web.gate import Gate
from broker.web.handouts import Handouts
from broker.web.reach import Reach
from tests.harness.doubles import ACCOUNT, Bench
from tests.harness.wiring import PATIENCE_S, Wired

ME = {"X-Token-Broker": "1"}


class Daemon:
    """The application over one app's keeper, and a client."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.crashes: list[tuple[str, Exception]] = []
        self.gate: Gate
        self.registry: Registry
        self.tickets: Tickets
        self.exchanger: CodeExchanger = bench.wechat
        self.logins: Logins
        self.login_limits: dict[str, Any] = {}
        self.refused_secrets: list[str] = []
        self.http: TestClient[Any, Any]

    async def start(
        self,
        gate: Gate,
        accounts: Sequence[Account] = (ACCOUNT,),
        *,
        drop_in: bool = False,
        reach: Reach | None = None,
    ) -> None:
        self.gate = gate
        tools = await self.bench.dependencies()
        self.registry = Registry(list(accounts), tools)
        await self.registry.start()
        clock, store = self.bench.clock, await self.bench.open()
        lane = ResponseCache(Connections(100, clock.now))
        self.tickets = Tickets(self.registry, tools, self.bench.wechat)
        metrics, limits = Metrics(), LoginLimits(LoginsTable(**self.login_limits), clock.now)
        self.logins = Logins(
            self.exchanger, limits, clock, tools.emit, metrics.login, self.refused_secrets.append
        )
        self.logins.admit(accounts)
        self.wired = Wired(
            self.registry,
            clock,
            lane,
            gate,
            self.tickets,
            store.history,
            metrics,
            crashes=self.crashes,
            logins=self.logins,
            compat=drop_in,
            handouts=Handouts(store, clock.now, clock.wall),
            reach=reach or Reach(),
        )
        self.compat = Compat(gate, self.registry, self.tickets, PATIENCE_S, clock.now)
        app = self.wired.application(self.compat.routes() if drop_in else [])
        self.http = TestClient(TestServer(app))
        await self.http.start_server()

    async def look(self) -> None:
        self.registry.tick()
        await self.registry.drain()

    async def get(self, path: str, **headers: str) -> ClientResponse:
        return await self.http.get(path, headers={**ME, **headers})

    async def post(self, path: str, body: object, **headers: str) -> ClientResponse:
        return await self.http.post(path, json=body, headers={**ME, **headers})


async def problem(response: ClientResponse) -> tuple[int, str]:
    """Status and code, after checking what every problem owes."""
    body = json.loads(await response.text())
    assert response.content_type == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    assert body["status"] == response.status
    assert {"type", "title", "detail", "code"} <= body.keys()
    assert ("retry_after" in body) == ("Retry-After" in response.headers)
    assert body.get("retry_after", 0) == int(response.headers.get("Retry-After", 0))
    return response.status, body["code"]
