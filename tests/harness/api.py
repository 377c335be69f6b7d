"""The application over keepers on a manual clock, and a client that speaks to it."""

from collections.abc import Sequence
from typing import Any

from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from broker.config.schema import LoginsTable
from broker.core.credential import Account, Endpoint
from broker.logins.limits import LoginLimits
from broker.logins.logins import CodeExchanger, Logins
from broker.tokens.registry import Registry
from broker.tokens.tickets import Tickets
from broker.web.api.compat import Compat
from broker.web.api.logins import LoginDesk
from broker.web.api.metrics import Metrics
from broker.web.api.tickets import TicketDesk
from broker.web.client_stats import ClientStats
from broker.web.connection.connections import Connections
from broker.web.connection.fast_path import ResponseCache
from broker.web.context import Edge
from broker.web.gate import Gate
from broker.web.server import application
from tests.harness.doubles import ACCOUNT, Bench

ME = {"X-Token-Broker": "1"}


class Daemon:
    """The application over one app's keeper, and a client."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.crashes: list[tuple[str, Exception]] = []
        self.registry: Registry
        self.tickets: Tickets
        self.exchanger: CodeExchanger = bench.wechat
        self.logins: Logins
        self.login_limits: dict[str, Any] = {}
        self.refused_secrets: list[str] = []
        self.http: TestClient[Any, Any]

    async def start(
        self, gate: Gate, accounts: Sequence[Account] = (ACCOUNT,), *, drop_in: bool = False
    ) -> None:
        tools = await self.bench.dependencies()
        metrics = Metrics()
        self.registry = Registry(
            [one for one in accounts if one.endpoint is not Endpoint.NONE], tools
        )
        await self.registry.start()
        clock, store = self.bench.clock, await self.bench.open()
        lane = ResponseCache(Connections(100, clock.now))
        self.tickets = Tickets(self.registry, tools, self.bench.wechat)
        client_stats = ClientStats(clock.now)
        limits = LoginLimits(LoginsTable(**self.login_limits), clock.now)
        self.logins = logins = Logins(
            self.exchanger, limits, clock, tools.emit, metrics.login, self.refused_secrets.append
        )
        logins.admit(accounts)
        self.edge = metrics.edge = edge = Edge(
            self.registry,
            5.0,
            lane,
            clock.wall,
            client_stats,
            store.history,
            self.tickets.of,
            logins=logins,
        )
        more = TicketDesk(self.tickets).routes() + (
            Compat(gate, self.tickets).routes() if drop_in else []
        )
        more += LoginDesk(logins, gate, compat=drop_in).routes()
        app = application(
            edge, gate, metrics, lambda where, error: self.crashes.append((where, error)), more
        )
        self.http = TestClient(TestServer(app))
        await self.http.start_server()

    async def look(self) -> None:
        self.registry.tick()
        await self.registry.drain()

    async def get(self, path: str, **headers: str) -> ClientResponse:
        return await self.http.get(path, headers={**ME, **headers})

    async def post(self, path: str, body: object, **headers: str) -> ClientResponse:
        return await self.http.post(path, json=body, headers={**ME, **headers})
