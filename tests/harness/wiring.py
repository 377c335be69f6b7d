"""The web application as `broker/app.py` wires it, over a test's registry, clock and gate."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from broker.config.notices import Notice
from broker.core.credential import Account
from broker.core.handouts import Handout
from broker.core.ports import Clock, Node
from broker.logins.logins import Logins
from broker.tokens.registry import Registry
from broker.tokens.tickets import Tickets
from broker.web.api import openapi
from broker.web.api.handouts import HandoutDesk
from broker.web.api.logins import LoginDesk
from broker.web.api.metrics import Metrics
from broker.web.api.probes import Probes
from broker.web.api.status import StatusReport
from broker.web.api.tickets import TicketDesk
from broker.web.api.tokens import TokenDesk
from broker.web.client_stats import ClientStats
from broker.web.connection.fast_path import ResponseCache
from broker.web.gate import Gate
from broker.web.handouts import Handouts
from broker.web.page.plots import History, Plots
from broker.web.page.status import StatusPage
from broker.web.reach import Reach
from broker.web.server import Front, application
from broker.web.shared_pages import SharedPages

PATIENCE_S = 5.0


async def _no_calls(_since: float, _account: Account) -> list[dict[str, Any]]:
    return []


class NoHandouts:
    """A store for tests that do not look at hand-outs."""

    async def add_handouts(self, _handouts: Sequence[Handout]) -> None:
        return

    async def drop_handouts(self, before: float, most: int) -> None:
        assert most > 0 <= before

    async def handouts(self, _account: str, _most: int) -> list[Handout]:
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
    handouts: Handouts | None = None
    reach: Reach = field(default_factory=Reach)
    notices: list[Notice] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.client_stats = ClientStats(self.clock.now)
        # Nothing is kept: tests change something and look again at once.
        self.pages = SharedPages(longest_s=0.0)
        tickets_of = self.tickets.of if self.tickets else lambda _: {}
        login_record = self.logins.record if self.logins else lambda _: None
        self.report = StatusReport(
            self.registry,
            self.clock,
            self.pages,
            tickets_of,
            lambda: self.nodes,
            login_record,
            self.reach,
        )
        self.report.notices = self.notices
        self.metrics.show(self.report)

    async def _calls(self, since: float, account: Account) -> list[dict[str, Any]]:
        return await self.history(since, account)

    def application(self, more: Iterable[web.RouteDef] = ()) -> web.Application:
        """Everything but compat and proxy, which are `more`."""
        registry, wall = self.registry, self.clock.wall
        handouts = self.handouts or Handouts(NoHandouts(), self.clock.now, wall)
        self.page = StatusPage(
            self.report,
            Plots(self._calls, self.clock),
            self.client_stats,
            self.response_cache,
            self.pages,
            handouts,
        )
        news = () if self.logins is None else (self.logins.news,)
        routes = [
            *TokenDesk(registry, self.response_cache, PATIENCE_S, wall).routes(),
            *self.report.routes(),
            *HandoutDesk(registry, handouts, self.response_cache).routes(),
            *Probes(registry, self.metrics, self.response_cache, self.pages, *news).routes(),
            *self.page.routes(),
            *openapi.routes(),
        ]
        if self.tickets is not None:
            routes += TicketDesk(
                registry, self.tickets, self.response_cache, PATIENCE_S, wall
            ).routes()
        if self.logins is not None:
            routes += LoginDesk(self.logins, self.gate, compat=self.compat).routes()
        self.front = Front(
            self.gate,
            registry,
            self.response_cache,
            self.client_stats,
            handouts,
            self.metrics,
            lambda where, error: self.crashes.append((where, error)),
        )
        return application(self.front, [*routes, *more])
