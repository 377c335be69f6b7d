"""Puts the daemon together. Start-up is a list of contexts, and shutdown is its reverse."""

import asyncio
import math
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, ParamSpec

from aiohttp import web

from broker import __version__
from broker.config.load import ConfigError
from broker.config.notices import Notice, notices
from broker.config.reload import reloading
from broker.config.secret_watch import SecretWatch
from broker.config.settings import Settings
from broker.core.decision import RENEWED_AFTER
from broker.core.errcodes import Advice, Failure
from broker.core.ports import EventSink
from broker.core.secret import Secret
from broker.http.way_out import OutgoingSession
from broker.logins import limits as login_limits
from broker.logins.limits import LoginLimits
from broker.logins.logins import Logins
from broker.notify.notifier import Notifier
from broker.notify.receivers import receivers
from broker.notify.states import TroubleState, states
from broker.sinks.sinks import Sinks
from broker.store import open as stores
from broker.system import early_signals, log
from broker.system.address import is_loopback
from broker.system.clock import SystemClock
from broker.system.sockets import listeners
from broker.system.systemd import NOBODY, Supervisor, WhyUnhealthy
from broker.system.ticker import every
from broker.tokens.dependencies import Dependencies
from broker.tokens.emergency_budget import EmergencyBudget
from broker.tokens.registry import Registry
from broker.tokens.tickets import Tickets
from broker.web.api import openapi
from broker.web.api.compat import Compat
from broker.web.api.handouts import HandoutDesk
from broker.web.api.logins import LoginDesk
from broker.web.api.metrics import Metrics
from broker.web.api.probes import Probes
from broker.web.api.status import StatusReport
from broker.web.api.tickets import TicketDesk
from broker.web.api.tokens import TokenDesk
from broker.web.client_stats import ClientStats
from broker.web.connection.connections import Connections, most_connections
from broker.web.connection.fast_path import ResponseCache
from broker.web.connection.lifecycle import accepting, answering, answers
from broker.web.gate import Client, Gate
from broker.web.handed import Handed
from broker.web.handles import Handles
from broker.web.handouts import Handouts
from broker.web.page.plots import Plots
from broker.web.page.status import StatusPage
from broker.web.params import iso
from broker.web.proxy.callers import Callers
from broker.web.proxy.handler import Proxy
from broker.web.proxy.limits import ProxyLimits
from broker.web.proxy.session import MOST_CONNECTIONS, outgoing
from broker.web.proxy.users import UserCalls
from broker.web.reach import Reach
from broker.web.server import Front, application
from broker.web.shared_pages import SharedPages
from broker.web.words import english
from broker.wechat import WeChat

BOOT_ID: Final = (
    "TOKEN_BROKER_BOOT_ID"  # set by the unit (%b), whose ProcSubset=pid hides what /proc says
)
CALLS_AT_ONCE: Final = 16  # to WeChat, over all apps
PATIENCE_SLACK_S: Final = 2.0  # beyond a call's timeout: a waiter hears of its outcome
SECRET_REFUSED: Final = (Advice.SECRET, Advice.WECOM_SECRET)

P = ParamSpec("P")

Bound = Sequence[tuple[str, socket.socket]]


async def serve(settings: Settings) -> None:
    """Run the daemon until SIGTERM or SIGINT; SIGHUP makes it read its configuration again.

    Raises StoreBusy, StoreRefused, StoreError, ConfigError and OSError (a port that is taken) at
    start-up only.
    """
    supervisor = Supervisor.from_environ()
    stopped, hung_up = asyncio.Event(), asyncio.Event()
    for number, event in {
        signal.SIGTERM: stopped,
        signal.SIGINT: stopped,
        signal.SIGHUP: hung_up,
    }.items():
        asyncio.get_running_loop().add_signal_handler(number, event.set)
    if early_signals.have_come():  # while the configuration was read: it may have changed since
        hung_up.set()
    async with daemon(settings, supervisor, hung_up) as addresses:
        # The contract's line
        serves_on = f"serves on {', '.join(addresses)}"
        print(f"token-broker {__version__} {serves_on}", flush=True)  # noqa: T201
        supervisor.notify("READY=1", f"STATUS={serves_on}")
        await stopped.wait()
        supervisor.notify("STOPPING=1", "STATUS=answers what is under way")


@asynccontextmanager
async def daemon(
    settings: Settings, supervisor: Supervisor = NOBODY, hung_up: asyncio.Event | None = None
) -> AsyncIterator[Sequence[str]]:
    """Run the daemon while the context lasts; yield its addresses.

    It reads its configuration again each time `hung_up` is set.
    """
    clock, metrics = SystemClock(os.environ.get(BOOT_ID)), Metrics()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        store = await enter(stores.store(settings.store, clock))
        # Before the first look: a daemon that cannot serve must not spend a call.
        bound = await enter(listeners(settings.server.listen, supervisor.sockets))
        gate = Gate({}, [])
        admit(gate, settings, bound)
        wechat = settings.wechat
        upstream = await enter(
            WeChat.connect(wechat.api_base, wechat.timeout, wechat.wecom_base, wechat.way_out)
        )
        counts = Counts(metrics, ClientStats(clock.now), Handouts(store, clock.now, clock.wall))
        response_cache = response_cache_for(settings, counts, clock)
        watch = SecretWatch(settings)
        dependencies = Dependencies(
            store=store,
            upstream=upstream,
            clock=clock,
            policy=settings.policy,
            slots=asyncio.Semaphore(CALLS_AT_ONCE),
            emit=_emit(metrics, watch),
            call_timeout_s=wechat.timeout,
            emergency_budget=EmergencyBudget(_runtime_directory()),
            on_change=response_cache.drop,
        )
        registry = Registry(list(settings.apps.values()), dependencies)
        await registry.start()
        tickets = Tickets(registry, dependencies, upstream)
        logins = logins_over(upstream, settings, dependencies, metrics, watch)
        sinks, notifier = await enter(reaching(settings, store, registry, clock))
        store.watch(
            together(registry.on_store_changed, tickets.on_store_changed), registry.versions
        )
        parts = Parts(
            settings=settings,
            bound=bound,
            store=store,
            clock=clock,
            upstream=upstream,
            gate=gate,
            counts=counts,
            response_cache=response_cache,
            registry=registry,
            tickets=tickets,
            logins=logins,
            sinks=sinks,
            notifier=notifier,
            watch=watch,
            notices=notices(settings),
        )
        routes = await enter(routes_of(parts))
        await enter(counts.handouts.kept(response_cache.account))
        runner = await enter(answering(application(front_of(parts), routes)))
        # Those who wait for a call under way are answered by its end.
        for kept in (registry, tickets):
            stack.push_async_callback(kept.drain)
        ticks = await enter(Ticks.running(settings.policy.tick, parts.look))
        sockets = [sock for _, sock in bound]
        await enter(accepting(runner, sockets, response_cache))
        await enter(watch.watching(parts.take_secret))
        reload = Reload(parts, ticks)
        await enter(reloading(settings, hung_up or asyncio.Event(), reload.apply, supervisor))
        # A Unix socket if there is one: strangers cannot crowd it.
        nearest = min(sockets, key=lambda sock: sock.family != socket.AF_UNIX)
        await enter(supervisor.watched(wellness(registry, nearest), _say_how_we_are))
        stack.callback(together(registry.stop, tickets.stop, logins.stop))
        yield [address for address, _ in bound]


@dataclass(frozen=True, slots=True)
class Counts:
    """Who counts what was answered: in all, for each client, and which token was handed to whom."""

    metrics: Metrics
    client_stats: ClientStats
    handouts: Handouts

    def on_answered(
        self,
        resource: web.AbstractResource | None,
        client: Client | None,
        handed: Handed | None,
        status: int,
        number: int,
        last: float,
    ) -> None:
        """Count answers that the response cache gave."""
        self.metrics.request(resource, status, number)
        if client is not None:
            self.client_stats.record(client.name, number, last)
            if handed is not None:
                self.handouts.record(client.name, handed, status, number, last)


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a running daemon that routes and a reload need."""

    settings: Settings
    bound: Bound
    store: stores.FullStore
    clock: SystemClock
    upstream: WeChat
    gate: Gate
    counts: Counts
    response_cache: ResponseCache
    registry: Registry
    tickets: Tickets
    logins: Logins
    sinks: Sinks
    notifier: Notifier
    watch: SecretWatch
    notices: list[Notice]

    def look(self) -> None:
        """Have all keepers look whether something is due."""
        self.registry.tick()
        self.tickets.tick()

    def take_secret(self, app: str, secret: Secret) -> None:
        """Go by another secret of an app, for logins and tokens."""
        account, keeper = self.logins.find(app), self.registry.find(app)
        if account is not None:
            self.logins.use(replace(account, secret=secret))
        if keeper is not None:
            keeper.change_secret(secret)


def response_cache_for(settings: Settings, counts: Counts, clock: SystemClock) -> ResponseCache:
    """Return the response cache, which also bounds how many connections there may be."""
    out = login_limits.MOST_AT_ONCE + (MOST_CONNECTIONS if settings.proxy.enabled else 0)
    return ResponseCache(
        Connections(most_connections(out), clock.now),
        counts.on_answered,
        enabled=settings.server.express_lane,
    )


def front_of(parts: Parts) -> Front:
    """Return what every request passes before a handler."""
    return Front(
        parts.gate,
        parts.registry,
        parts.response_cache,
        parts.counts.client_stats,
        parts.counts.handouts,
        parts.counts.metrics,
        log.crash,
    )


@asynccontextmanager
async def routes_of(parts: Parts) -> AsyncIterator[list[web.RouteDef]]:
    """Yield all routes. They are good while the context lasts."""
    settings, gate, registry = parts.settings, parts.gate, parts.registry
    cache, clock, counts = parts.response_cache, parts.clock, parts.counts
    patience_s, pages = patience(settings), SharedPages()
    report = StatusReport(
        registry,
        clock,
        pages,
        parts.tickets.of,
        lambda: parts.store.nodes,
        parts.logins.record,
        Reach(parts.notifier.status, parts.sinks.status),
    )
    report.notices = parts.notices
    counts.metrics.show(report)
    plots = Plots(parts.store.history, clock)
    page = StatusPage(report, plots, counts.client_stats, cache, pages, counts.handouts)
    routes = [
        *TokenDesk(registry, cache, patience_s, clock.wall).routes(),
        *TicketDesk(registry, parts.tickets, parts.response_cache, patience_s, clock.wall).routes(),
        *report.routes(),
        *HandoutDesk(registry, counts.handouts, cache).routes(),
        *Probes(registry, counts.metrics, cache, pages, parts.logins.news).routes(),
        *page.routes(),
        *LoginDesk(parts.logins, gate, compat=settings.compat).routes(),
        *openapi.routes(),
    ]
    handles = Handles(gate, registry, clock.now) if settings.proxy.enabled else None
    if settings.compat:
        compat = Compat(gate, registry, parts.tickets, patience_s, clock.now, handles)
        routes += compat.routes()
    async with AsyncExitStack() as stack:
        if handles is not None:
            way_out = outgoing(settings.proxy.connect_timeout, settings.wechat.way_out)
            out = await stack.enter_async_context(way_out)
            # After the routes of Compat, whose paths the proxy never passes on.
            routes += proxied(parts, handles, out)
        await stack.enter_async_context(page.prepared())
        yield routes


def proxied(parts: Parts, handles: Handles, out: OutgoingSession) -> list[web.RouteDef]:
    """Return the proxy's routes, which come after all others."""
    settings, gate, metrics = parts.settings.proxy, parts.gate, parts.counts.metrics
    callers = Callers(gate, parts.registry, handles)
    limits = ProxyLimits(settings, parts.clock.now)
    proxy = Proxy(
        settings, callers, limits, out, parts.upstream.base, metrics, patience(parts.settings)
    )
    users = UserCalls(gate, limits, out, parts.upstream.wechat_base, metrics)
    return [*users.routes(), *proxy.routes()]


# --- reload ---------------------------------------------------------------------------------------


class Ticks:
    """Has the keepers look every few seconds; how often can be changed."""

    def __init__(self, stack: AsyncExitStack, look: Callable[[], None]) -> None:
        self._stack, self._look = stack, look
        self._interval_s = math.nan

    @classmethod
    @asynccontextmanager
    async def running(cls, interval_s: float, look: Callable[[], None]) -> AsyncIterator["Ticks"]:
        """Look at once, and then every so many seconds until the context ends."""
        async with AsyncExitStack() as stack:
            ticks = cls(stack, look)
            await ticks.apply(interval_s)
            yield ticks

    async def apply(self, interval_s: float) -> None:
        """Look every so many seconds from now on."""
        if interval_s != self._interval_s:
            self._interval_s = interval_s
            await self._stack.aclose()
            await self._stack.enter_async_context(every(interval_s, self._look))


@dataclass(frozen=True, slots=True)
class Reload:
    """Applies new settings to a running daemon."""

    parts: Parts
    ticks: Ticks

    async def apply(self, read: Settings) -> list[str]:
        """Apply what can be applied. Return the keys that could not be, each with the reason.

        Raises ConfigError, and changes nothing, if anybody from anywhere would be let in, or if
        people cannot be notified in the new way.
        """
        parts, accounts = self.parts, list(read.apps.values())
        check_admission(read, parts.bound)
        told = receivers(read.notify)
        failed = await parts.registry.apply_accounts(accounts)
        # From here to the gate nothing is awaited that waits, so nobody is let in for an app that
        # is not there yet, nor answered about one that is gone.
        await parts.tickets.apply_accounts(accounts)
        parts.logins.admit(accounts)
        parts.watch.follow(read)
        parts.registry.apply_policy(read.policy)
        parts.tickets.apply_policy(read.policy)
        parts.notices[:] = notices(
            replace(read, compat=parts.settings.compat, wechat=parts.settings.wechat)
        )
        admit(parts.gate, read, parts.bound)  # and look anew at everyone who waits
        parts.notifier.apply(read.notify, told)
        await parts.sinks.apply(read.sinks)
        await self.ticks.apply(read.policy.tick)
        if waiting := parts.registry.being_replaced():
            log.tell("apps-being-replaced", apps=waiting)
        return [f"apps.{name} (the store: {error})" for name, error in failed.items()]


# --- parts ----------------------------------------------------------------------------------------


def logins_over(
    upstream: WeChat,
    settings: Settings,
    dependencies: Dependencies,
    metrics: Metrics,
    watch: SecretWatch,
) -> Logins:
    """Return every app's logins. A secret file is read again when WeChat refuses its secret."""
    clock = dependencies.clock
    logins = Logins(
        upstream,
        LoginLimits(settings.logins, clock.now),
        clock,
        dependencies.emit,
        metrics.login,
        watch.doubt,
    )
    logins.admit(settings.apps.values())
    return logins


@asynccontextmanager
async def reaching(
    settings: Settings, store: stores.FullStore, registry: Registry, clock: SystemClock
) -> AsyncIterator[tuple[Sinks, Notifier]]:
    """Write tokens to sinks and notify people while the context lasts. Raises ConfigError."""
    sinks = Sinks(registry.find, clock.wall, clock.now, iso)

    def look() -> set[TroubleState]:
        return states(registry, store.nodes, store.last_error, sinks.behind, node=store.node)

    notifier = Notifier(
        store, look, clock.wall, clock.now, lambda: None if store.sole_owner else store.node
    )
    told = receivers(settings.notify)
    async with sinks.running():
        await sinks.apply(settings.sinks)
        notifier.apply(settings.notify, told)
        async with notifier.running():
            yield sinks, notifier


def together(*each: Callable[P, object]) -> Callable[P, None]:
    """What calls each of them in turn."""

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        for one in each:
            one(*args, **kwargs)

    return call


def patience(settings: Settings) -> float:
    """Return how many seconds a request waits for a refresh.

    They cover a call to WeChat, and the time in which the last token of a WeCom app is not served
    any more (min_serve): a reload may add such an app.
    """
    gap = settings.policy.min_serve + RENEWED_AFTER
    return max(settings.wechat.timeout, gap) + PATIENCE_SLACK_S


def check_admission(settings: Settings, bound: Bound) -> None:
    """Raise ConfigError if these settings would let in anybody from anywhere."""
    if not settings.clients and not all(map(is_loopback, _hosts(bound))):
        why = "needed, since a socket listens beyond loopback: anybody who reaches it gets tokens"
        raise ConfigError([f"clients: {why}"])


def admit(gate: Gate, settings: Settings, bound: Bound) -> None:
    """Let in whom the settings name. Raises ConfigError like :func:`check_admission`."""
    check_admission(settings, bound)
    keys = {
        client.key_sha256: Client(client.name, client.scopes, client.apps)
        for client in settings.clients.values()
    }
    named = [address.host for address in settings.server.listen if address.kind == "tcp"]
    allowed = [*_hosts(bound), *named, *settings.server.allowed_hosts]
    gate.admit(keys, allowed, settings.server.trusted_proxies)


def _hosts(bound: Bound) -> list[str]:
    """Return the IP addresses that are listened on."""
    return [sock.getsockname()[0] for _, sock in bound if sock.family != socket.AF_UNIX]


def wellness(registry: Registry, listener: socket.socket) -> WhyUnhealthy:
    """What the watchdog asks: do we look, and are we heard? The answer is why not, or nothing."""

    async def well() -> str:
        if not registry.ticking:
            return "the schedule has stopped"
        return "" if await answers(listener) else "our own listener does not answer"

    return well


def _say_how_we_are(why_not: str) -> None:
    log.tell("not-well", why=why_not) if why_not else log.tell("well-again")


def _runtime_directory() -> Path | None:
    """Return a directory that needs no disk, or None.

    It is systemd's for this service, or else the user's.
    """
    named = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0] or os.environ.get(
        "XDG_RUNTIME_DIR", ""
    )
    return Path(named) if named else None


def _emit(metrics: Metrics, watch: SecretWatch) -> EventSink:
    """Return a sink that tells metrics and log, and the watch when WeChat refuses a secret."""

    def emit(event: str, app: str, **facts: object) -> None:
        metrics.emit(event, app, **facts)
        log.emit(event, app, **english.event_facts(facts))
        failure = facts.get("failure")
        if isinstance(failure, Failure) and failure.advice in SECRET_REFUSED:
            watch.doubt(app)

    return emit
