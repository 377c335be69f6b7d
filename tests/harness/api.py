"""The application over keepers on a manual clock, and a client that speaks to it."""

from collections.abc import Sequence
from typing import Any

from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from broker.core.credential import Account
from broker.tokens.registry import Registry
from broker.tokens.tickets import Tickets
from broker.web.api.compat import Compat
from broker.web.connection.connections import Connections
from broker.web.connection.fast_path import ResponseCache
from broker.web.gate import Gate
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
        self.http: TestClient[Any, Any]

    async def start(
        self, gate: Gate, accounts: Sequence[Account] = (ACCOUNT,), *, drop_in: bool = False
    ) -> None:
        self.gate = gate
        tools = await self.bench.dependencies()
        self.registry = Registry(list(accounts), tools)
        await self.registry.start()
        clock, store = self.bench.clock, await self.bench.open()
        lane = ResponseCache(Connections(100, clock.now))
        self.tickets = Tickets(self.registry, tools, self.bench.wechat)
        self.wired = Wired(
            self.registry,
            clock,
            lane,
            gate,
            self.tickets,
            store.history,
            crashes=self.crashes,
        )
        compat = Compat(gate, self.registry, self.tickets, PATIENCE_S, clock.now)
        app = self.wired.application(compat.routes() if drop_in else [])
        self.http = TestClient(TestServer(app))
        await self.http.start_server()

    async def look(self) -> None:
        self.registry.tick()
        await self.registry.drain()

    async def get(self, path: str, **headers: str) -> ClientResponse:
        return await self.http.get(path, headers={**ME, **headers})

    async def post(self, path: str, body: object, **headers: str) -> ClientResponse:
        return await self.http.post(path, json=body, headers={**ME, **headers})
