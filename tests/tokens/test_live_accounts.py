"""Apps come, go, and change their names, secrets, quotas and endpoints while the daemon runs."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from broker.core.credential import Account, Endpoint, Policy
from broker.core.errcodes import Failure, FailureCode, Kind
from broker.core.ports import StoreError
from broker.core.secret import Secret
from broker.core.serving import Code, Served, Unavailable
from broker.tokens.keeper import Keeper
from broker.tokens.registry import Registry
from broker.tokens.tickets import Tickets
from broker.tokens.upkeep import identity
from tests.harness.doubles import ACCOUNT, APPID, CANARY, Bench, stable, value_of

SHOP = Account("shop", "wxshop", Secret(f"{CANARY}-shop"))
REFUSED = Failure(Kind.CONFIGURATION, FailureCode.ERRCODE, 40125)


@pytest.fixture
async def registry(bench: Bench) -> AsyncIterator[Registry]:
    """`main` with a token."""
    registry = Registry([ACCOUNT], await bench.dependencies())
    await registry.start()
    await look(registry)
    yield registry
    bench.wechat.gate.set()
    registry.stop()
    await registry.drain()


async def look(registry: Registry) -> None:
    """One tick, and the end of what it started."""
    registry.tick()
    await registry.drain()


def keeper_of(registry: Registry, name: str) -> Keeper:
    keeper = registry.find(name)
    assert keeper is not None
    return keeper


async def test_a_renamed_app_keeps_its_token_and_its_old_name_is_unknown(
    registry: Registry, bench: Bench
) -> None:
    before = keeper_of(registry, "main")
    held = value_of(before)
    assert await registry.apply_accounts([replace(ACCOUNT, name="site")]) == {}
    await look(registry)
    assert value_of(keeper_of(registry, "site")) == value_of(keeper_of(registry, APPID)) == held
    assert registry.find("main") is None
    gone = await before.get(patience_s=5)
    assert isinstance(gone, Unavailable)
    assert gone.code is Code.UNKNOWN_APP
    bench.clock.pass_(4000)
    await look(registry)
    assert value_of(keeper_of(registry, "site")) == f"{CANARY}-site-t2"


@pytest.mark.parametrize(
    "successor", [stable(), Account("main", "wxother", Secret(f"{CANARY}-other"))]
)
async def test_the_token_of_before_is_served_until_its_successor_has_one(
    registry: Registry, bench: Bench, successor: Account
) -> None:
    keeper = keeper_of(registry, "main")
    held, version = value_of(keeper), keeper.credential.version or ""
    bench.wechat.gate.clear()
    await registry.apply_accounts([successor])
    registry.tick()
    assert registry.being_replaced() == ["main"]
    assert value_of(keeper) == held
    assert registry.find(successor.appid) is (keeper if successor.appid == APPID else None)
    watching = asyncio.create_task(keeper.watch(version, 60))
    await asyncio.sleep(0)
    bench.wechat.gate.set()
    answer = await watching
    assert isinstance(answer, Served)
    assert answer.credential.version != version
    assert keeper_of(registry, "main").account == successor
    assert registry.find(successor.appid) is keeper_of(registry, "main")
    assert registry.find(APPID) is (keeper if successor.appid == APPID else None)
    assert registry.being_replaced() == []
    assert bench.wechat.calls == 2
    assert len(bench.told("app-replaced")) == 1


async def test_a_successor_that_wechat_refuses_takes_nothing_away(
    registry: Registry, bench: Bench
) -> None:
    bench.wechat.answers.append(REFUSED)
    await registry.apply_accounts([stable()])
    await look(registry)
    assert value_of(keeper_of(registry, "main")) == f"{CANARY}-main-t1"
    bench.clock.pass_(60)
    await registry.apply_accounts([replace(stable(), secret=Secret("right"))])
    await look(registry)
    assert keeper_of(registry, "main").account.endpoint is Endpoint.STABLE
    assert bench.wechat.secrets[-1] == Secret("right")


async def test_a_change_that_is_taken_back_before_its_time_leaves_all_as_it_was(
    registry: Registry, bench: Bench
) -> None:
    bench.wechat.answers.append(REFUSED)
    await registry.apply_accounts([stable()])
    await look(registry)
    await registry.apply_accounts([ACCOUNT])
    bench.clock.pass_(3000)
    await look(registry)
    assert value_of(keeper_of(registry, "main")) == f"{CANARY}-main-t1"
    assert registry.being_replaced() == []
    assert bench.wechat.calls == 2


async def test_two_apps_can_exchange_their_names(registry: Registry, bench: Bench) -> None:
    await registry.apply_accounts([ACCOUNT, SHOP])
    await look(registry)
    main, shop = value_of(keeper_of(registry, "main")), value_of(keeper_of(registry, "shop"))
    await registry.apply_accounts([replace(ACCOUNT, name="shop"), replace(SHOP, name="main")])
    assert value_of(keeper_of(registry, "shop")) == main
    assert value_of(keeper_of(registry, "main")) == shop
    assert keeper_of(registry, "main").account.appid == "wxshop"
    assert bench.wechat.calls == 2


async def test_who_waits_for_an_app_that_is_removed_hears_that_it_is_gone(
    registry: Registry, bench: Bench
) -> None:
    await registry.apply_accounts([ACCOUNT, SHOP])
    await look(registry)
    shop = keeper_of(registry, "shop")
    watching = asyncio.create_task(shop.watch(shop.credential.version or "", 3600))
    await asyncio.sleep(0)
    await registry.apply_accounts([ACCOUNT])
    async with asyncio.timeout(10):
        answer = await watching
    assert isinstance(answer, Unavailable)
    assert answer.code is Code.UNKNOWN_APP
    assert shop.serve() is None
    bench.clock.pass_(7000)
    await look(registry)
    assert bench.wechat.secrets.count(SHOP.secret) == 1


async def test_an_app_that_comes_back_in_the_middle_of_its_call_makes_no_other(
    registry: Registry, bench: Bench
) -> None:
    bench.wechat.gate.clear()
    await registry.apply_accounts([ACCOUNT, SHOP])
    bench.wechat.arrived.clear()
    registry.tick()
    await bench.wechat.arrived.wait()
    await registry.apply_accounts([ACCOUNT])
    again = asyncio.create_task(registry.apply_accounts([ACCOUNT, SHOP]))
    await asyncio.sleep(0)
    bench.wechat.gate.set()
    await again
    await look(registry)
    assert value_of(keeper_of(registry, "shop")) == f"{CANARY}-shop-t2"
    assert bench.wechat.calls == 2
    assert not bench.told("abandoned-call-closed")


async def test_a_larger_quota_ends_the_refusal_of_the_smaller_one(bench: Bench) -> None:
    registry = Registry([replace(ACCOUNT, daily_quota=1)], await bench.dependencies())
    await registry.start()
    await look(registry)
    bench.clock.pass_(7300)
    await look(registry)
    assert (bench.wechat.calls, len(bench.told("quota-spent"))) == (1, 1)
    await registry.apply_accounts([ACCOUNT])
    await look(registry)
    assert bench.wechat.calls == 2
    assert keeper_of(registry, "main").usage().limit == 2000


async def test_an_app_that_keeps_no_token_any_more_goes_and_may_come_back(
    registry: Registry,
) -> None:
    await registry.apply_accounts([replace(ACCOUNT, endpoint=Endpoint.NONE)])
    assert registry.find("main") is None
    assert registry.is_login_only("main")
    await registry.apply_accounts([ACCOUNT])
    assert value_of(keeper_of(registry, "main")) == f"{CANARY}-main-t1"


async def test_what_the_store_does_not_give_is_named_and_the_rest_is_applied(
    registry: Registry, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await bench.open()
    load = store.load

    async def broken(account: Account) -> object:
        if account.appid == SHOP.appid or account.endpoint is Endpoint.STABLE:
            raise StoreError("disk I/O error")
        return await load(account)

    monkeypatch.setattr(store, "load", broken)
    third = replace(SHOP, name="third", appid="wx3")
    failed = await registry.apply_accounts([stable(), SHOP, third])
    await look(registry)
    assert {name: str(error) for name, error in failed.items()} == {
        "main": "disk I/O error",
        "shop": "disk I/O error",
    }
    assert value_of(keeper_of(registry, "main")) == f"{CANARY}-main-t1"
    assert registry.find("shop") is None
    assert value_of(keeper_of(registry, "third")) == f"{CANARY}-third-t2"


async def test_tickets_go_with_their_app_and_stay_under_another_name(
    registry: Registry, bench: Bench
) -> None:
    tickets = Tickets(registry, await bench.dependencies(), bench.wechat)
    kept = await tickets.keeper(ACCOUNT, "jsapi")
    assert kept is not None
    answer = await kept.get(patience_s=5)
    assert isinstance(answer, Served)
    site = replace(ACCOUNT, name="site")
    await registry.apply_accounts([site])
    await tickets.apply_accounts([site])
    renamed = tickets.of("site")["jsapi"]
    assert renamed.serve() is not None
    assert kept.serve() is None
    tickets.tick()
    await registry.apply_accounts([SHOP])
    await tickets.apply_accounts([SHOP])
    assert renamed.serve() is None
    tickets.tick()
    await tickets.drain()
    assert len(bench.wechat.tickets) == 1


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_changes_a_name_that_stays_never_stops_serving(
    bench: Bench, seed: int
) -> None:
    """Names, accounts, endpoints and secrets at random; WeChat is away now and then."""
    draw = random.Random(seed)
    registry = Registry([], await bench.dependencies())
    await registry.start()
    for step in range(40):
        appids = draw.sample(["wx1", "wx2", "wx3", "wx4"], 3)
        accounts = [
            Account(name, appid, Secret(f"{appid}-{draw.randrange(2)}"), endpoint)
            for name, appid in zip(("a", "b", "c"), appids, strict=True)
            for endpoint in [draw.choice([Endpoint.TOKEN, Endpoint.STABLE, Endpoint.NONE])]
        ]
        accounts = draw.sample(accounts, draw.randint(1, 3))
        served = {one.account.name: identity(one.account) for one in registry if one.serve()}
        await registry.apply_accounts(accounts)
        kept = [one for one in accounts if one.endpoint is not Endpoint.NONE]
        assert {keeper.account.name for keeper in registry} == {one.name for one in kept}
        names = {identity(one): one.name for one in kept}
        for one in kept:
            # A name loses its token only if that account has gone to another name.
            if one.name in served and names.get(served[one.name], one.name) == one.name:
                assert keeper_of(registry, one.name).serve(), (seed, step, one.name)
        if draw.random() < 0.3:
            bench.wechat.answers.append(REFUSED)
        await look(registry)
        bench.wechat.answers.clear()
        bench.clock.pass_(draw.choice([1, 40, 700]))
        await look(registry)
    bench.clock.pass_(700)
    await registry.apply_accounts([ACCOUNT, SHOP])
    registry.apply_policy(Policy())
    await look(registry)
    await look(registry)
    assert all(keeper.serve() for keeper in registry)
    assert len(registry) == 2
    assert not bench.told("crashed")
