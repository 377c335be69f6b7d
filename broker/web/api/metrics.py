"""`/metrics`: what Prometheus sees.

Labels are names from configurations, lanes, outcomes and errcodes. They are bounded in number, and
nothing that stands in a request is among them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from aiohttp import web
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Metric,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from broker import __version__
from broker.core.quota import Usage
from broker.tokens.keeper import Keeper
from broker.web.api.status import StatusReport


class Metrics(Collector):
    """The counters, which events move."""

    def __init__(self) -> None:
        # prometheus_client makes a second series beside every counter, which nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        # Plain numbers and not a Counter: each request pays for this.
        self._requests: dict[tuple[web.AbstractResource | None, int], int] = defaultdict(int)
        self._calls = self._counter(
            "token_calls", "Calls to WeChat's token endpoint.", "app", "lane", "outcome"
        )
        self._checks = self._counter(
            "verifications", "Verifications of a held token.", "app", "verdict"
        )
        self._proxied = self._counter(
            "proxied_requests", "Calls passed on to WeChat, or not.", "app", "outcome"
        )
        # Finding a counter by its labels takes longer than the count itself.
        self._proxied_by: dict[tuple[str, str], Counter] = {}
        self._refusals = self._counter(
            "proxy_refusals",
            "Refusals of the proxy's own, by the number the service sees.",
            "errcode",
        )
        self._logins = self._counter(
            "logins", "Logins: codes exchanged, or not.", "app", "kind", "outcome"
        )
        self._crashes = self._counter("crashes", "Bugs survived; please report them.", "app")
        self.registry.register(self)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"token_broker_{name}", text, labels, registry=self.registry)

    def emit(self, event: str, app: str, **facts: object) -> None:
        """Count an event of a keeper; an :class:`broker.core.ports.EventSink`."""
        if event in {"refreshed", "refresh-failed", "lease-lost"}:
            outcome = "lease-lost" if event == "lease-lost" else facts.get("outcome", "minted")
            self._calls.labels(app, facts["lane"], outcome).inc()
        elif event == "checked":
            self._checks.labels(app, facts["verdict"]).inc()
        elif event == "crashed":
            self._crashes.labels(app).inc()

    def proxied(self, app: str, outcome: str) -> None:
        """Count a call that came to the proxy."""
        found = self._proxied_by.get((app, outcome))
        if found is None:
            found = self._proxied_by[app, outcome] = self._proxied.labels(app, outcome)
        found.inc()

    def login(self, app: str, kind: str, outcome: str) -> None:
        """Count a login that was tried."""
        self._logins.labels(app, kind, outcome).inc()

    def refused(self, errcode: int) -> None:
        """Count a refusal of the proxy's own, whoever asked."""
        self._refusals.labels(errcode).inc()

    def request(self, resource: web.AbstractResource | None, status: int, number: int = 1) -> None:
        """Count answered requests to a route; `resource` is None for those to no route."""
        self._requests[resource, status] += number

    def show(self, report: StatusReport) -> None:
        """Show the state of all apps as well, as gauges that are read at each scrape."""
        self.registry.register(StateCollector(report))

    def collect(self) -> Iterable[Metric]:
        """Yield the version and the requests."""
        build = GaugeMetricFamily(
            "token_broker_build_info", "The version that runs.", labels=["version"]
        )
        build.add_metric([__version__], 1)
        yield build
        requests = CounterMetricFamily(
            "token_broker_http_requests", "Requests answered.", labels=["route", "status"]
        )
        for (resource, status), number in list(self._requests.items()):
            requests.add_metric([route_name(resource), str(status)], number)
        yield requests

    def text(self) -> bytes:
        """Return everything in Prometheus's text format. May run on any thread."""
        return generate_latest(self.registry)


def route_name(resource: web.AbstractResource | None) -> str:
    """Return a route's pattern: patterns are bounded in number, paths are not."""
    return resource.canonical if resource is not None else "none"


def _expires_in(keeper: Keeper) -> int:
    served = keeper.serve()
    return served.token_expires_in if served else 0


Reading = Callable[[Keeper, Usage], float]

GAUGES: Final[Mapping[str, tuple[str, Reading]]] = {
    "token_broker_token_usable": (
        "1 while a token can be handed out.",
        lambda keeper, _: keeper.serve() is not None,
    ),
    "token_broker_token_expires_in_seconds": (
        "Time the token may still be handed out.",
        lambda keeper, _: _expires_in(keeper),
    ),
    "token_broker_next_refresh_in_seconds": (
        "Time to the next token call, as things stand.",
        lambda keeper, _: keeper.next_call_in(),
    ),
    "token_broker_token_suspect": (
        "1 while the token is in doubt.",
        lambda keeper, _: keeper.credential.suspicion is not None,
    ),
    "token_broker_quota_limit": (
        "Token calls allowed per day.",
        lambda _, spent: spent.limit,
    ),
    "token_broker_failures_in_a_row": (
        "Failed token calls since the last good one.",
        lambda keeper, _: keeper.credential.failures,
    ),
    "token_broker_second_issuer_signs": (
        "Tokens that died before their time.",
        lambda keeper, _: keeper.credential.second_issuer.count,
    ),
    "token_broker_second_issuer_suspected": (
        "1 when somebody else seems to call the token endpoint.",
        lambda keeper, _: keeper.credential.second_issuer.suspected,
    ),
    "token_broker_store_ok": (
        "1 while the store takes writes.",
        lambda keeper, _: keeper.store_error is None,
    ),
}
TICKET_GAUGES: Final[Mapping[str, tuple[str, Callable[[Keeper], float]]]] = {
    "token_broker_ticket_usable": (
        "1 while a ticket can be handed out.",
        lambda keeper: keeper.serve() is not None,
    ),
    "token_broker_ticket_expires_in_seconds": (
        "Time the ticket may still be handed out.",
        _expires_in,
    ),
    "token_broker_ticket_failures_in_a_row": (
        "Failed fetches of the ticket since the last good one.",
        lambda keeper: keeper.credential.failures,
    ),
}


class StateCollector(Collector):
    """The gauges: the state of apps and tickets, of the schedule, and of who shares the store."""

    def __init__(self, report: StatusReport) -> None:
        self._report = report

    def collect(self) -> Iterable[Metric]:
        """Yield a family per gauge."""
        ticking = GaugeMetricFamily("token_broker_ticking", "1 while the schedule is alive.")
        ticking.add_metric([], self._report.registry.ticking)
        yield ticking
        seen = GaugeMetricFamily(
            "token_broker_node_seen_ago_seconds",
            "Time since a broker that shares the store said that it lives.",
            labels=["node"],
        )
        for node in self._report.nodes():
            seen.add_metric([node["node"]], node["seen_ago"])
        yield seen
        yield from self._of_apps()
        yield from self._of_tickets()
        yield from self._of_sinks()
        yield from self._of_receivers()

    def _of_sinks(self) -> Iterable[Metric]:
        behind = GaugeMetricFamily(
            "token_broker_sink_behind",
            "1 while a sink does not hold the token in force.",
            labels=["app", "sink"],
        )
        for keeper in self._report.keepers():
            for sink in self._report.reach.sinks_of(keeper.account.name):
                labels = [keeper.account.name, sink["sink"]]
                behind.add_metric(labels, sink["trouble"] is not None)
        yield behind

    def _of_receivers(self) -> Iterable[Metric]:
        sent = CounterMetricFamily(
            "token_broker_notifications",
            "Notifications that a receiver took, or that were given up.",
            labels=["receiver", "outcome"],
        )
        failing = GaugeMetricFamily(
            "token_broker_receiver_failing",
            "1 while a receiver of notifications did not take the last one.",
            labels=["receiver"],
        )
        for one in self._report.reach.notifications()["receivers"]:
            sent.add_metric([one["receiver"], "sent"], one["sent"])
            sent.add_metric([one["receiver"], "lost"], one["lost"])
            failing.add_metric([one["receiver"]], one["trouble"] is not None)
        yield sent
        yield failing

    def _of_apps(self) -> Iterable[Metric]:
        apps = [(keeper, keeper.usage()) for keeper in self._report.keepers()]
        for name, (text, reading) in GAUGES.items():
            family = GaugeMetricFamily(name, text, labels=["app"])
            for keeper, spent in apps:
                family.add_metric([keeper.account.name], reading(keeper, spent))
            yield family
        used = GaugeMetricFamily(
            "token_broker_quota_used",
            "Token calls spent, per Beijing day and over 24 hours.",
            labels=["app", "window"],
        )
        for keeper, spent in apps:
            used.add_metric([keeper.account.name, "today"], spent.today)
            used.add_metric([keeper.account.name, "24h"], spent.last_24h)
        yield used

    def _of_tickets(self) -> Iterable[Metric]:
        tickets = [
            ([keeper.account.name, kind], ticket)
            for keeper in self._report.keepers()
            for kind, ticket in self._report.tickets_of(keeper.account.name).items()
        ]
        for name, (text, reading) in TICKET_GAUGES.items():
            family = GaugeMetricFamily(name, text, labels=["app", "type"])
            for labels, ticket in tickets:
                family.add_metric(labels, reading(ticket))
            yield family
