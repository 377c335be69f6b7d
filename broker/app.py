"""The wiring: what is plugged into what. Start-up is a list of contexts, shutdown its reverse."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, ParamSpec

from aiohttp import web

from broker import __version__
from broker.config.load import ConfigError, load
from broker.config.reload import reloading
from broker.config.settings import Settings
from broker.core.credential import Account, Endpoint
from broker.core.decision import RENEWED_AFTER
from broker.core.ports import EventSink
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
from broker.web.connection.cached_response import OnAnswered
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
async def daemon(  # noqa: PLR0915 -- start-up is one list, from top to bottom
    settings: Settings, supervisor: Supervisor = NOBODY, hung_up: asyncio.Event | None = None
) -> AsyncIterator[Sequence[str]]:
    """The running daemon, as its addresses.

    It reads its configuration again each time `hung_up` is set.
    """
    metrics, clock, wechat = Metrics(), SystemClock(os.environ.get(BOOT_ID)), settings.wechat
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(stores.store(settings.store, clock))
        # Before the first look: a daemon that cannot serve must not spend a call.
        bound = await stack.enter_async_context(
            listeners(settings.server.listen, supervisor.sockets)
        )
        gate = Gate({}, [])
        admit(gate, settings, bound)
        upstream = await stack.enter_async_context(
            WeChat.connect(wechat.api_base, wechat.timeout, wechat.wecom_base, wechat.way_out)
        )
        client_stats, handouts = ClientStats(clock.now), Handouts(store, clock.now, clock.wall)
        most = most_connections(
            login_limits.MOST_AT_ONCE + (MOST_CONNECTIONS if settings.proxy.enabled else 0)
        )
        response_cache = ResponseCache(
            Connections(most, clock.now),
            _count(metrics, client_stats, handouts),
            enabled=settings.server.express_lane,
        )
        dependencies = Dependencies(
            store=store,
            upstream=upstream,
            clock=clock,
            policy=settings.policy,
            slots=asyncio.Semaphore(CALLS_AT_ONCE),
            emit=_emit(metrics),
            call_timeout_s=settings.wechat.timeout,
            emergency_budget=EmergencyBudget(_runtime_directory()),
            on_change=response_cache.drop,
        )
        registry = Registry(list(settings.apps.values()), dependencies)
        await registry.start()
        tickets = Tickets(registry, dependencies, upstream)
        logins = logins_over(upstream, settings, dependencies, metrics, registry)
        sinks, notifier = await stack.enter_async_context(
            reaching(settings, store, registry, clock)
        )
        store.watch(
            together(registry.on_store_changed, tickets.on_store_changed), registry.versions
        )
        patience_s, pages = patience(settings), SharedPages()
        handles = Handles(gate, registry) if settings.proxy.enabled else None
        report = StatusReport(
            registry,
            clock,
            pages,
            tickets.of,
            lambda: store.nodes,
            logins.record,
            Reach(notifier.status, sinks.status),
        )
        metrics.show(report)
        routes = [
            *TokenDesk(registry, response_cache, patience_s, clock.wall).routes(),
            *TicketDesk(registry, tickets, patience_s, clock.wall).routes(),
            *report.routes(),
            *HandoutDesk(registry, handouts, response_cache).routes(),
            *Probes(registry, metrics, response_cache, pages, logins.news).routes(),
            *StatusPage(
                report, Plots(store.history, clock), client_stats, response_cache, pages, handouts
            ).routes(),
            *LoginDesk(logins, gate, compat=settings.compat).routes(),
            *openapi.routes(),
            *(
                Compat(gate, registry, tickets, patience_s, clock.now, handles).routes()
                if settings.compat
                else ()
            ),
        ]
        if handles is not None:  # after the routes of Compat, whose paths the proxy never passes on
            out = await stack.enter_async_context(
                outgoing(settings.proxy.connect_timeout, wechat.way_out)
            )
            routes += proxied(settings, gate, registry, handles, out, upstream, metrics, clock)
        await stack.enter_async_context(handouts.kept(response_cache.account))
        front = Front(gate, registry, response_cache, client_stats, handouts, metrics, log.crash)
        runner = await stack.enter_async_context(answering(application(front, routes)))
        for kept in (
            registry,
            tickets,
        ):  # those who wait for a call under way are answered by its end
            stack.push_async_callback(kept.drain)
        look = together(registry.tick, tickets.tick)
        ticks = await stack.enter_async_context(AsyncExitStack())
        await ticks.enter_async_context(every(settings.policy.tick, look))
        await stack.enter_async_context(
            accepting(runner, [sock for _, sock in bound], response_cache)
        )

        async def apply(read: Settings) -> None:
            told = receivers(read.notify)
            admit(gate, read, bound)
            logins.admit(read.apps.values())
            notifier.apply(read.notify, told)
            await sinks.apply(read.sinks)
            pace = dependencies.policy.tick
            response_cache.admit_anew()
            together(registry.apply_policy, tickets.apply_policy)(read.policy)
            if read.policy.tick != pace:
                await ticks.aclose()
                await ticks.enter_async_context(every(read.policy.tick, look))

        await stack.enter_async_context(
            reloading(settings, hung_up or asyncio.Event(), apply, supervisor)
        )
        # A Unix socket if there is one: strangers cannot crowd it.
        nearest = min((sock for _, sock in bound), key=lambda sock: sock.family != socket.AF_UNIX)
        await stack.enter_async_context(
            supervisor.watched(wellness(registry, nearest), _say_how_we_are)
        )
        stack.callback(together(registry.stop, tickets.stop, logins.stop))
        yield [address for address, _ in bound]


def logins_over(
    upstream: WeChat,
    settings: Settings,
    dependencies: Dependencies,
    metrics: Metrics,
    registry: Registry,
) -> Logins:
    """Every app's logins. A secret that WeChat refuses there is read again, for tokens too."""

    async def take_secret(account: Account) -> None:
        logins.use(account)
        keeper = registry.find(account.name)
        if keeper is not None and keeper.account.secret != account.secret:
            await keeper.change_secret(account.secret)

    clock = dependencies.clock
    logins = Logins(
        upstream,
        LoginLimits(settings.logins, clock.now),
        clock,
        dependencies.emit,
        metrics.login,
        secret_rereader(settings.path, take_secret),
    )
    logins.admit(settings.apps.values())
    return logins


def secret_rereader(
    path: Path | None, use: Callable[[Account], Awaitable[None]]
) -> Callable[[str], None]:
    """Return what reads an app's secret again, on a task of its own, and has `use` take it."""
    reading: set[asyncio.Task[None]] = set()

    async def reread(app: str) -> None:
        try:
            # On a thread: a file that is slow to read must not hold up those who ask.
            account = (await asyncio.to_thread(load, path)).apps.get(app)
        except ConfigError as error:
            log.tell("reload-refused", errors=error.errors)
            return
        if account is not None:
            await use(account)

    def begin(app: str) -> None:
        task = asyncio.create_task(reread(app), name=f"read the secret of {app} again")
        reading.add(task)
        task.add_done_callback(reading.discard)

    return begin


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


def proxied(  # noqa: PLR0913, PLR0917 -- the wiring knows everybody
    settings: Settings,
    gate: Gate,
    registry: Registry,
    handles: Handles,
    out: OutgoingSession,
    upstream: WeChat,
    metrics: Metrics,
    clock: SystemClock,
) -> list[web.RouteDef]:
    """Return the proxy's routes, which come after all others."""
    callers = Callers(gate, registry, handles)
    limits = ProxyLimits(settings.proxy, clock.now)
    proxy = Proxy(settings.proxy, callers, limits, out, upstream.base, metrics, patience(settings))
    users = UserCalls(gate, limits, out, upstream.wechat_base, metrics)
    return [*users.routes(), *proxy.routes()]


def together(*each: Callable[P, object]) -> Callable[P, None]:
    """What calls each of them in turn."""

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        for one in each:
            one(*args, **kwargs)

    return call


def patience(settings: Settings) -> float:
    """Return the seconds a request waits for a refresh.

    They cover a call, and the time in which WeCom's last token is no longer served (min_serve).
    """
    gaps = [
        settings.policy.min_serve + RENEWED_AFTER
        for app in settings.apps.values()
        if app.endpoint is Endpoint.WECOM
    ]
    return max([settings.wechat.timeout, *gaps]) + PATIENCE_SLACK_S


def admit(gate: Gate, settings: Settings, bound: Bound) -> None:
    """Let in whom the configuration names.

    Raises ConfigError, and changes nothing, where that is anybody from anywhere.
    """
    hosts = [sock.getsockname()[0] for _, sock in bound if sock.family != socket.AF_UNIX]
    if not settings.clients and not all(map(is_loopback, hosts)):
        why = "needed, since a socket listens beyond loopback: anybody who reaches it gets tokens"
        raise ConfigError([f"clients: {why}"])
    keys = {
        client.key_sha256: Client(client.name, client.scopes, client.apps)
        for client in settings.clients.values()
    }
    named = [address.host for address in settings.server.listen if address.kind == "tcp"]
    allowed = [*hosts, *named, *settings.server.allowed_hosts]
    gate.admit(keys, allowed, settings.server.trusted_proxies)


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


def _count(metrics: Metrics, client_stats: ClientStats, handouts: Handouts) -> OnAnswered:
    """Who counts the answers that the response cache gave."""

    def count(
        resource: web.AbstractResource | None,
        client: Client | None,
        handed: Handed | None,
        status: int,
        number: int,
        last: float,
    ) -> None:
        metrics.request(resource, status, number)
        if client is not None:
            client_stats.record(client.name, number, last)
            if handed is not None:
                handouts.record(client.name, handed, status, number, last)

    return count


def _emit(metrics: Metrics) -> EventSink:
    def both(event: str, app: str, **facts: object) -> None:
        metrics.emit(event, app, **facts)
        log.emit(event, app, **english.event_facts(facts))

    return both
