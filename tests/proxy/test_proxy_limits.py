"""How many calls may be under way: of a client, of an app, and how the pool is shared."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from broker.config.schema import ProxyTable
from broker.core.secret import Secret
from broker.web.gate import Client
from broker.web.proxy.limits import Busy, ProxyLimits
from broker.web.proxy.session import MOST_CONNECTIONS
from tests.harness.doubles import ACCOUNT, CANARY, Bench
from tests.harness.proxy_harness import GOOD, Hostile, Proxied, errcode, until

GET = "/cgi-bin/user/get"
SLOW = "/cgi-bin/media/upload"
PROXY = frozenset({"proxy"})
KEYS = {name: f"{CANARY}-key-of-{name}" for name in ("greedy", "modest")}
APPS = [
    replace(ACCOUNT, name=name, appid=f"wx{name}", secret=Secret(f"{CANARY}-{name}"))
    for name in ("one", "two", "three", "four")
]


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def limits(**table: Any) -> ProxyLimits:
    return ProxyLimits(ProxyTable(rate=1000, burst=1000, **table), lambda: 0.0)


def enter(limits: ProxyLimits, held: ExitStack, client: str, app: str, most: int) -> int:
    """Begin calls until one is refused; return how many there are."""
    for count in range(most):
        try:
            held.enter_context(limits.passing(Client(client, PROXY), app))
        except Busy:
            return count
    return most


def test_a_client_has_so_many_calls_under_way_whatever_apps_they_are_for(held: ExitStack) -> None:
    bounds = limits(client_concurrency=48)
    assert sum(enter(bounds, held, "greedy", app.name, 64) for app in APPS) == 48
    assert [enter(bounds, held, "modest", app.name, 12) for app in APPS] == [12] * 4


def test_of_one_app_a_client_leaves_others_room(held: ExitStack) -> None:
    bounds = limits()
    assert enter(bounds, held, "greedy", "one", 1000) < ProxyTable().max_concurrency
    assert enter(bounds, held, "modest", "one", 8) == 8


def test_apps_that_take_all_they_can_get_leave_each_other_a_share(held: ExitStack) -> None:
    bounds = limits(client_concurrency=200)
    shares = [enter(bounds, held, f"of {app}", f"app {app}", 200) for app in range(6)]
    assert shares[:3] == [64, 64, 64]
    assert all(share > 0 for share in shares)
    assert sum(shares) < MOST_CONNECTIONS


def test_one_app_never_takes_more_than_half_of_all(held: ExitStack) -> None:
    bounds = limits(max_concurrency=200, client_concurrency=200)
    assert enter(bounds, held, "greedy", "one", 1000) == MOST_CONNECTIONS / 2


def test_places_are_given_back() -> None:
    bounds = limits(client_concurrency=3)
    for _ in range(5):
        with ExitStack() as held:
            assert enter(bounds, held, "greedy", "one", 10) == 3


async def test_slow_calls_of_one_client_starve_nobody(bench: Bench, wechat: Hostile) -> None:
    gate = asyncio.Event()

    async def slow(*call: Any) -> None:
        await gate.wait()
        await GOOD(*call)

    wechat.answers[SLOW] = slow
    clients = {key: Client(name, PROXY) for name, key in KEYS.items()}

    async def ask(broker: Proxied, name: str, app: str, path: str) -> int:
        headers = {"Authorization": f"Bearer {KEYS[name]}", "X-Token-Broker-App": app}
        answer = await broker.ask("GET", path, headers=headers)
        return 0 if await answer.read() == b'{"total": 3}' else await errcode(answer)

    async with Proxied(bench, wechat).serving(clients, APPS, rate=1000, burst=1000) as broker:
        await broker.look()
        asking = [
            asyncio.create_task(ask(broker, "greedy", app.name, SLOW))
            for app in APPS
            for _ in range(24)
        ]
        await until(lambda: len(wechat.seen) + len(broker.outcomes) == 96)
        assert [await ask(broker, "modest", app.name, GET) for app in APPS] == [0] * 4
        gate.set()
        found = await asyncio.gather(*asking)
        assert found.count(0) == ProxyTable().client_concurrency
        assert set(found) == {0, 45011}
