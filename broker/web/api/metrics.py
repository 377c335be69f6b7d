"""What Prometheus sees.

Labels are names from configurations, lanes, outcomes, errcodes: bounded, never a request's words.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import count
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
from broker.tokens.keeper import Keeper
from broker.web.api.status import nodes
from broker.web.context import Edge


class Metrics(Collector):
    """Counters that events move, and gauges read from the keepers at each scrape."""

    def __init__(self) -> None:
        # A second series beside every counter, which nobody reads
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.edge: Edge | None = None
        app = ["app"]
        self._requests: dict[tuple[web.AbstractResource | None, int], int] = defaultdict(
            int
        )  # bare numbers: each request pays for this
        self._calls = Counter(
            "token_broker_token_calls",
            "Calls to WeChat's token endpoint.",
            ["app", "lane", "outcome"],
            registry=self.registry,
        )
        self._checks = Counter(
            "token_broker_verifications",
            "Verifications of a held token.",
            ["app", "verdict"],
            registry=self.registry,
        )
        self._proxied = Counter(
            "token_broker_proxied_requests",
            "Calls passed on to WeChat, or not.",
            ["app", "outcome"],
            registry=self.registry,
        )
        self._refusals = Counter(
            "token_broker_proxy_refusals",
            "Refusals of the proxy's own, by the number the service sees.",
            ["errcode"],
            registry=self.registry,
        )
        self._logins = Counter(
            "token_broker_logins",
            "Logins: codes exchanged, or not.",
            ["app", "kind", "outcome"],
            registry=self.registry,
        )
        self._crashes = Counter(
            "token_broker_crashes",
            "Bugs survived; please report them.",
            app,
            registry=self.registry,
        )
        self.registry.register(self)

    def emit(self, event: str, app: str, **facts: object) -> None:
        """Count an event of a keeper's."""
        if event in {"refreshed", "refresh-failed", "lease-lost"}:
            outcome = "lease-lost" if event == "lease-lost" else facts.get("outcome", "minted")
            self._calls.labels(app, facts["lane"], outcome).inc()
        elif event == "checked":
            self._checks.labels(app, facts["verdict"]).inc()
        elif event == "crashed":
            self._crashes.labels(app).inc()

    def proxied(self, app: str, outcome: str) -> None:
        """Count a call of the proxy's."""
        self._proxied.labels(app, outcome).inc()

    def login(self, app: str, kind: str, outcome: str) -> None:
        """Count a login that was tried."""
        self._logins.labels(app, kind, outcome).inc()

    def refused(self, errcode: int) -> None:
        """Count a refusal of the proxy's own, whoever it was that asked."""
        self._refusals.labels(errcode).inc()

    def request(self, resource: web.AbstractResource | None, status: int, number: int = 1) -> None:
        """Count answered requests to a route, or to none."""
        self._requests[resource, status] += number

    def collect(self) -> Iterable[Metric]:
        """What is not about an app."""
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
        if self.edge is None:
            return
        ticking = GaugeMetricFamily("token_broker_ticking", "1 while the schedule is alive.")
        ticking.add_metric([], self.edge.registry.ticking)
        yield ticking
        seen = GaugeMetricFamily(
            "token_broker_node_seen_ago_seconds",
            "Time since a broker that shares the store said that it lives.",
            labels=["node"],
        )
        for node in nodes(self.edge):
            seen.add_metric([node["node"]], node["seen_ago"])
        yield seen

    def text(self) -> bytes:
        """Everything, in Prometheus's text format.

        May run on another thread: what it reads is replaced, never changed.
        """
        return generate_latest(self.registry) + "".join(self._gauges()).encode()

    def _gauges(self) -> Iterable[str]:
        """A family per gauge.

        Written here: of a thousand apps, the library would take a tenth of a second for it.
        """
        if (edge := self.edge) is None:
            return
        tokens = {f'app="{keeper.account.name}"': _readings(keeper) for keeper in edge.registry}
        tickets = {
            f'app="{keeper.account.name}",type="{kind}"': _ticket_readings(ticket)
            for keeper in edge.registry
            for kind, ticket in edge.tickets_of(keeper.account.name).items()
        }
        yield from _families(GAUGES, tokens)
        yield from _families(TICKET_GAUGES, tickets)


def route_name(resource: web.AbstractResource | None) -> str:
    """A route's pattern: bounded in number, where paths are not."""
    return resource.canonical if resource is not None else "none"


Gauges = Mapping[
    str, tuple[str, tuple[str, ...]]
]  # what each means, and its labels besides the app's
ALONE: Final = ("",)
GAUGES: Final[Gauges] = {  # in the order of `_readings`
    "token_broker_token_usable": ("1 while a token can be handed out.", ALONE),
    "token_broker_token_expires_in_seconds": ("Time the token may still be handed out.", ALONE),
    "token_broker_next_refresh_in_seconds": (
        "Time to the next token call, as things stand.",
        ALONE,
    ),
    "token_broker_token_suspect": ("1 while the token is in doubt.", ALONE),
    "token_broker_quota_limit": ("Token calls allowed per day.", ALONE),
    "token_broker_quota_used": (
        "Token calls spent, per Beijing day and over 24 hours.",
        (',window="today"', ',window="24h"'),
    ),
    "token_broker_failures_in_a_row": ("Failed token calls since the last good one.", ALONE),
    "token_broker_second_issuer_signs": ("Tokens that died before their time.", ALONE),
    "token_broker_second_issuer_suspected": (
        "1 when somebody else seems to call the token endpoint.",
        ALONE,
    ),
    "token_broker_store_ok": ("1 while the store takes writes.", ALONE),
}
TICKET_GAUGES: Final[
    Gauges
] = {  # in the order of `_ticket_readings`; of those that are asked for, by type
    "token_broker_ticket_usable": ("1 while a ticket can be handed out.", ALONE),
    "token_broker_ticket_expires_in_seconds": (
        "Time the ticket may still be handed out.",
        ALONE,
    ),
    "token_broker_ticket_failures_in_a_row": (
        "Failed fetches of the ticket since the last good one.",
        ALONE,
    ),
}


def _ticket_readings(keeper: Keeper) -> tuple[float, ...]:
    served = keeper.serve()
    return served is not None, served.token_expires_in if served else 0, keeper.credential.failures


def _families(gauges: Gauges, readings: Mapping[str, tuple[float, ...]]) -> Iterable[str]:
    column = count()
    for name, (text, more) in gauges.items():
        yield f"# HELP {name} {text}\n# TYPE {name} gauge\n"
        for label in more:
            at = next(column)
            yield from (
                f"{name}{{{labels}{label}}} {float(values[at])}\n"
                for labels, values in readings.items()
            )


def _readings(keeper: Keeper) -> tuple[float, ...]:
    served, spent, credential = keeper.serve(), keeper.usage(), keeper.credential
    return (
        served is not None,
        served.token_expires_in if served else 0,
        keeper.next_call_in(),
        credential.suspicion is not None,
        spent.limit,
        spent.today,
        spent.last_24h,
        credential.failures,
        credential.second_issuer.count,
        credential.second_issuer.suspected,
        keeper.store_error is None,
    )


METRICS: Final = web.AppKey("metrics", Metrics)
