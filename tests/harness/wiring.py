"""The web application as `broker/app.py` wires it, over a test's registry, clock and gate."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from broker.core.credential import Account
from broker.core.ports import Clock, Node
from broker.logins.logins import Logins
from broker.tokens.registry import Registry
from broker.tokens.tickets import Tickets
from broker.web.api import openapi
from broker.web.api.logins import LoginDesk
from broker.web.api.metrics import Metrics
from broker.web.api.probes import Probes
from broker.web.api.status import StatusReport
from broker.web.api.tickets import TicketDesk
from broker.web.api.tokens import TokenDesk
from broker.web.client_stats import ClientStats
from broker.web.connection.fast_path import ResponseCache
from broker.web.gate import Gate
from broker.web.page.plots import History, Plots
from broker.web.page.status import StatusPage
from broker.web.server import Front, application
from broker.web.shared_pages import SharedPages

PATIENCE_S = 5.0


async def _no_calls(_since: float, _account: Account) -> list[dict[str, Any]]:
    return []


@dataclass
class Wired:
    """What a test may replace (`history`, `nodes`) or look at while the application runs."""

    registry: Registry
    clock: Clock
    response_cache: ResponseCache
    gate: Gate
    tickets: Tickets | None = None
    history: History = _no_calls
    metrics: Metrics = field(default_factory=Metrics)
    nodes: tuple[Node, ...] = ()
    crashes: list[tuple[str, Exception]] = field(default_factory=list)
    logins: Logins | None = None
    compat: bool = False

    def __post_init__(self) -> None:
        self.client_stats = ClientStats(self.clock.now)
        # Nothing is kept: tests change something and look again at once.
        self.pages = SharedPages(longest_s=0.0)
        self.report = StatusReport(
            self.registry,
            self.clock,
            self.pages,
            self.tickets.of if self.tickets else lambda _: {},
            lambda: self.nodes,
            self.logins.record if self.logins else lambda _: None,
        )
        self.metrics.show(self.report)

    async def _calls(self, since: float, account: Account) -> list[dict[str, Any]]:
        return await self.history(since, account)

    def application(self, more: Iterable[web.RouteDef] = ()) -> web.Application:
        """Everything but compat and proxy, which are `more`."""
        registry, wall = self.registry, self.clock.wall
        page = StatusPage(
            self.report,
            Plots(self._calls, self.clock),
            self.client_stats,
            self.response_cache,
            self.pages,
        )
        news = () if self.logins is None else (self.logins.news,)
        routes = [
            *TokenDesk(registry, self.response_cache, PATIENCE_S, wall).routes(),
            *self.report.routes(),
            *Probes(registry, self.metrics, self.response_cache, self.pages, *news).routes(),
            *page.routes(),
            *openapi.routes(),
        ]
        if self.tickets is not None:
            routes += TicketDesk(registry, self.tickets, PATIENCE_S, wall).routes()
        if self.logins is not None:
            routes += LoginDesk(self.logins, self.gate, compat=self.compat).routes()
        front = Front(
            self.gate,
            registry,
            self.response_cache,
            self.client_stats,
            self.metrics,
            lambda where, error: self.crashes.append((where, error)),
        )
        return application(front, [*routes, *more])
