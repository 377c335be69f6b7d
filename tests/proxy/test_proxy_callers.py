"""Who gets through the proxy, for which app, and which paths never do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from broker.core.credential import Endpoint
from broker.core.secret import Secret
from broker.core.serving import Served
from broker.web.gate import Client
from broker.web.handles import LONGEST, LOOP_WINDOW_S, LOOPS_AFTER, PREFIX, Handles
from tests.harness.doubles import ACCOUNT, APPID, CANARY, Bench
from tests.harness.proxy_harness import GOOD, ME, Hostile, Proxied, digests, errcode

GET = "/cgi-bin/user/get"
SHOP = replace(ACCOUNT, name="shop", appid="wxshop", secret=Secret(f"{CANARY}-shop"))
CORP = "ww0123456789abcdef"
HR, CRM = (
    replace(
        ACCOUNT,
        name=name,
        appid=CORP,
        secret=Secret(f"{CANARY}-of-{name}"),
        endpoint=Endpoint.WECOM,
    )
    for name in ("hr", "crm")
)
KEYS = {name: f"{CANARY}-key-of-{name}" for name in ("orders", "web", "all", "reader", "crm")}
PROXY = frozenset({"proxy"})
CLIENTS = {
    KEYS["orders"]: Client("orders", PROXY, frozenset({"main"})),
    KEYS["web"]: Client("web", PROXY | {"read"}, frozenset({"shop"})),
    KEYS["all"]: Client("all", PROXY),
    KEYS["reader"]: Client("reader", frozenset({"read", "report"})),
    KEYS["crm"]: Client("crm", PROXY, frozenset({"crm"})),
}


@pytest.fixture
async def local(bench: Bench, wechat: Hostile) -> AsyncIterator[Proxied]:
    """A machine without clients."""
    async with Proxied(bench, wechat).serving(accounts=[ACCOUNT, SHOP]) as broker:
        await broker.look()
        yield broker


@pytest.fixture
async def guarded(bench: Bench, wechat: Hostile) -> AsyncIterator[Proxied]:
    async with Proxied(bench, wechat).serving(CLIENTS, [ACCOUNT, SHOP, HR, CRM]) as broker:
        await broker.look()
        yield broker


def bearer(name: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}", **more}


def token(broker: Proxied, app: str) -> str:
    served = broker.registry.find(app).serve()  # type: ignore[union-attr]
    assert served
    return served.token.value.reveal()


async def handed(broker: Proxied, name: str, appid: str = APPID) -> str:
    """What WeChat's own token path gives a client."""
    asked = {"grant_type": "client_credential", "appid": appid, "secret": KEYS[name]}
    answer = await (await broker.http.get("/cgi-bin/token", params=asked)).json()
    assert set(answer) == {"access_token", "expires_in"}, answer
    assert answer["expires_in"] == 7200 or name == "reader"  # a handle never ages
    return str(answer["access_token"])


# --- by key ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "app", "target", "used"),
    [
        ("orders", "", GET, "main"),
        ("web", "", GET, "shop"),
        ("all", "shop", GET, "shop"),
        ("all", APPID, GET, "main"),
        ("all", "main", GET + "?access_token={shop}", "main"),
        ("all", "", GET + "?access_token={shop}", "shop"),
        ("crm", CORP, GET, "crm"),
        ("orders", "", GET + "?access_token=nonsense", "main"),
    ],
)
async def test_a_key_says_who_and_the_app_follows(
    guarded: Proxied, name: str, app: str, target: str, used: str
) -> None:
    headers = bearer(name, **({"X-Token-Broker-App": app} if app else {}))
    answer = await guarded.ask("GET", target.format(shop=token(guarded, "shop")), headers=headers)
    assert await answer.json() == {"total": 3}
    assert [seen.token for seen in guarded.wechat.seen] == [token(guarded, used)]
    assert guarded.outcomes == [(used, "passed")]
    assert [visitor.name for visitor in guarded.wired.client_stats] == [name]


@pytest.mark.parametrize(
    ("name", "app", "said"),
    [
        ("reader", "main", 40013),
        ("orders", "shop", 40013),
        ("orders", "nobody", 40013),
        ("all", CORP, 40013),
        ("all", "", 41002),
        ("web", "main", 40013),
    ],
)
async def test_who_may_not_is_told_so_in_wechats_numbers(
    guarded: Proxied, name: str, app: str, said: int
) -> None:
    headers = bearer(name, **({"X-Token-Broker-App": app} if app else {}))
    assert await errcode(await guarded.ask("GET", GET, headers=headers)) == said
    assert guarded.wechat.seen == []


async def test_a_wrong_key_is_the_gates_refusal_in_wechats_number(guarded: Proxied) -> None:
    for wrong in ("Bearer wrong", "Basic abc", "Bearer"):
        answer = await guarded.ask("GET", GET, headers={"Authorization": wrong})
        assert await errcode(answer) == 40001
    assert guarded.wechat.seen == []


@pytest.mark.parametrize(
    "foreign",
    [
        {"Host": "evil.example"},
        {"Origin": "https://evil.example"},
    ],
)
async def test_the_gate_stands_before_it(guarded: Proxied, foreign: dict[str, str]) -> None:
    answer = await guarded.ask("GET", GET, headers=bearer("orders", **foreign))
    assert await errcode(answer) == 48001
    assert guarded.wechat.seen == []


@pytest.mark.parametrize(
    "target", [GET, GET + "?access_token=nonsense", GET + "?access_token={real}"]
)
async def test_over_tcp_neither_nothing_nor_a_real_token_says_who_it_is(
    guarded: Proxied, target: str
) -> None:
    asked = target.format(real=token(guarded, "main"))
    assert await errcode(await guarded.ask("GET", asked, headers=ME)) == (
        40001 if "?" in target else 41001
    )
    assert guarded.wechat.seen == []


# --- by handle ------------------------------------------------------------------------------------


async def test_a_client_of_the_proxy_is_handed_a_handle_and_calls_with_it(guarded: Proxied) -> None:
    handle = await handed(guarded, "orders")
    assert handle != token(guarded, "main")
    assert handle.startswith(PREFIX)
    assert len(handle) <= LONGEST
    assert handle.replace("-", "").replace("_", "").isalnum()
    answer = await guarded.ask("GET", f"{GET}?a=1&access_token={handle}&b=2")
    assert await answer.json() == {"total": 3}
    assert guarded.wechat.seen[0].target == f"{GET}?a=1&access_token={token(guarded, 'main')}&b=2"


async def test_longest_names_fit(guarded: Proxied) -> None:
    name = "n" * 64
    guarded.gate.admit(digests({"k": Client(name, PROXY)}), [])
    keeper = guarded.registry.find("main")
    assert keeper
    handle = Handles(guarded.gate, guarded.registry, guarded.bench.clock.now).of(
        Client(name, PROXY), keeper
    )
    assert handle
    assert len(handle) + 4 * 60 // 3 <= LONGEST


async def test_who_may_only_read_gets_the_token(guarded: Proxied) -> None:
    assert await handed(guarded, "reader") == token(guarded, "main")


async def test_wecoms_path_gives_a_handle_too(guarded: Proxied) -> None:
    answer = await guarded.http.get(
        "/cgi-bin/gettoken", params={"corpid": CORP, "corpsecret": KEYS["crm"]}
    )
    handle = (await answer.json())["access_token"]
    assert (await guarded.ask("GET", f"{GET}?access_token={handle}")).status == 200
    assert guarded.wechat.seen[0].token == token(guarded, "crm")


async def test_a_ticket_is_given_for_a_handle(guarded: Proxied) -> None:
    params = {"access_token": await handed(guarded, "orders"), "type": "jsapi"}
    answer = await guarded.http.get("/cgi-bin/ticket/getticket", params=params)
    assert (await answer.json())["ticket"] == f"{CANARY}-jsapi-k1"


async def test_a_handle_outlives_a_restart_and_dies_with_its_key_its_right_or_the_apps_secret(
    bench: Bench, wechat: Hostile
) -> None:
    orders = Client("orders", PROXY, frozenset({"main", "shop"}))
    key = KEYS["orders"]

    async def used(handle: str, clients: dict[str, Client], *accounts: Any) -> int:
        async with Proxied(bench, wechat).serving(clients, accounts or [ACCOUNT, SHOP]) as broker:
            await broker.look()
            answer = await (await broker.ask("GET", f"{GET}?access_token={handle}")).json()
            return int(answer.get("errcode", 0))

    async with Proxied(bench, wechat).serving({key: orders}, [ACCOUNT, SHOP]) as first:
        await first.look()
        handle = await handed(first, "orders")
    assert await used(handle, {key: orders}) == 0
    assert await used(handle, {"another key": orders}) == 40001
    assert await used(handle, {key: replace(orders, name="other")}) == 40001
    assert await used(handle, {key: replace(orders, apps=frozenset({"shop"}))}) == 40001
    assert await used(handle, {key: replace(orders, scopes=frozenset({"read"}))}) == 40001
    assert (
        await used(handle, {key: orders}, replace(ACCOUNT, secret=Secret("another secret")), SHOP)
        == 40001
    )
    assert await used(handle, {key: orders}, SHOP) == 40001


async def test_a_handle_cannot_be_bent_to_another_app_or_client(guarded: Proxied) -> None:
    handle = await handed(guarded, "orders")
    others = Handles(guarded.gate, guarded.registry, guarded.bench.clock.now)
    shops = others.of(CLIENTS[KEYS["all"]], guarded.registry.find("shop"))  # type: ignore[arg-type]
    assert shops
    mac = len(PREFIX) + 40
    for bent in (
        handle[:mac] + shops[mac:],
        shops[:mac] + handle[mac:],
        handle[:-4],
        handle + "AAAA",
        PREFIX,
        PREFIX + "é",
        "\ud800",
    ):
        assert others.open(bent) is None
    assert (
        await errcode(await guarded.ask("GET", f"{GET}?access_token={handle[:mac] + shops[mac:]}"))
        == 40001
    )
    assert (
        await errcode(
            await guarded.ask(
                "GET", f"{GET}?access_token={handle}", headers={"X-Token-Broker-App": "shop"}
            )
        )
        == 40013
    )


async def ask_again(broker: Proxied, name: str) -> dict[str, Any]:
    """What WeChat's own token path says, and then a call with what it gave."""
    asked = {"grant_type": "client_credential", "appid": APPID, "secret": KEYS[name]}
    answer: dict[str, Any] = await (await broker.http.get("/cgi-bin/token", params=asked)).json()
    if "access_token" in answer:
        await (await broker.ask("GET", f"{GET}?access_token={answer['access_token']}")).read()
    return answer


async def test_who_asks_again_and_again_since_wechat_refuses_its_calls_is_stopped(
    guarded: Proxied,
) -> None:
    guarded.wechat.dead = {token(guarded, "main")}  # for this interface; WeChat says it lives
    answers = [await ask_again(guarded, "orders") for _ in range(LOOPS_AFTER + 2)]
    answer = answers.pop()
    assert answer["errcode"] == 45011
    assert all("access_token" in earlier for earlier in answers)
    assert "refuses" in answer["errmsg"]
    assert guarded.bench.wechat.calls == 4  # one for each app, none for the loop
    assert "access_token" in await ask_again(guarded, "all")  # another client
    guarded.bench.clock.pass_(LOOP_WINDOW_S + 1)
    assert "access_token" in await ask_again(guarded, "orders")


async def test_another_token_ends_a_loop(guarded: Proxied) -> None:
    guarded.wechat.dead = {token(guarded, "main")}
    while "errcode" not in await ask_again(guarded, "orders"):
        pass
    keeper = guarded.registry.find("main")
    assert keeper
    guarded.bench.clock.pass_(31)
    assert isinstance(await keeper.refresh(5), Served)
    for _ in range(LOOPS_AFTER + 10):
        assert "access_token" in await ask_again(guarded, "orders")


async def test_a_handle_may_be_asked_for_without_end_while_its_calls_pass(guarded: Proxied) -> None:
    await ask_again(guarded, "orders")
    for _ in range(3 * LOOPS_AFTER):
        assert (await handed(guarded, "orders")).startswith(PREFIX)


# --- on this machine ------------------------------------------------------------------------------


async def test_a_program_of_this_machine_names_the_app_or_shows_its_token(local: Proxied) -> None:
    for target, headers in [
        (GET, {**ME, "X-Token-Broker-App": "shop"}),
        (f"{GET}?access_token={token(local, 'shop')}", {}),
        (f"{GET}?access_token={token(local, 'shop')}", ME),
    ]:
        assert (await local.ask("GET", target, headers=headers)).status == 200
        assert local.wechat.seen.pop().token == token(local, "shop")
    assert await errcode(await local.ask("GET", GET, headers=ME)) == 41002
    assert await errcode(await local.ask("GET", GET)) == 41001
    assert await errcode(await local.ask("GET", f"{GET}?access_token=x")) == 40001
    assert await errcode(await local.ask("GET", GET, headers={"X-Token-Broker": "0"})) == 48001


async def test_without_clients_wechats_path_gives_the_token_itself(local: Proxied) -> None:
    asked = {"grant_type": "client_credential", "appid": APPID, "secret": "any"}
    answer = await (await local.http.get("/cgi-bin/token", params=asked)).json()
    assert answer["access_token"] == token(local, "main")


async def test_a_peer_on_the_unix_socket_needs_no_key(guarded: Proxied, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        runner = guarded.http.server.runner
        assert isinstance(runner, web.AppRunner)
        await web.UnixSite(runner, str(tmp_path / "s")).start()
        connector = aiohttp.UnixConnector(str(tmp_path / "s"))
        session = await stack.enter_async_context(
            aiohttp.ClientSession("http://localhost", connector=connector)
        )
        real = token(guarded, "main")
        for target, headers in [
            (GET, {**ME, "X-Token-Broker-App": "main"}),
            (f"{GET}?access_token={real}", {}),
        ]:
            async with session.get(target, headers=headers) as answer:
                assert await answer.json() == {"total": 3}
        assert [seen.token for seen in guarded.wechat.seen] == [real] * 2


# --- paths ----------------------------------------------------------------------------------------

TRICKS = [
    "/cgi-bin/token",
    "//cgi-bin/token",
    "///cgi-bin//token",
    "/cgi-bin/%74oken",
    "/cgi-bin/%2574oken",
    "/%63gi-bin/token",
    "/cgi-bin/./token",
    "/cgi-bin/x/../token",
    "/cgi-bin/x/%2e%2e/token",
    "/cgi-bin/x/..%2ftoken",
    "/cgi-bin%2ftoken",
    "/cgi-bin%2Ftoken",
    "/cgi-bin/%2ftoken",
    "/cgi-bin/;/token",
    "/cgi-bin/token;x",
    "/cgi-bin;x/token",
    "/cgi-bin/token/",
    "/cgi-bin/token//",
    "/cgi-bin/token/x",
    "/cgi-bin/token.",
    "/cgi-bin/token.json",
    "/cgi-bin/Token",
    "/CGI-BIN/token",
    "/cgi-bin/TOKEN",
    "/cgi-bin/token%00",
    "/cgi-bin/token%20",
    "/cgi-bin/token%0a",
    "/cgi-bin/t\\oken",
    "/cgi-bin\\token",
    "/cgi-bin/\\token",
    "/cgi-bin/tok%C3%A9n",
    "/cgi-bin/token?",
    "/cgi-bin/token#x",
    "/wxa/../cgi-bin/token",
    "/wxa/%2e%2e/cgi-bin/token",
    "/cgi-bin/stable_token",
    "/cgi-bin/stable_token/",
    "/cgi-bin/gettoken",
    "/cgi-bin/GetToken",
    "/cgi-bin/ticket/getticket",
    "/cgi-bin/ticket//getticket",
    "/cgi-bin/ticket/./getticket",
    "http://api.weixin.qq.com/cgi-bin/token",
    "/v1/../cgi-bin/token",
]


@pytest.mark.parametrize("drop_in", [True, False])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "HEAD"])
async def test_no_trick_makes_a_token_call(
    bench: Bench,
    wechat: Hostile,
    method: str,
    drop_in: bool,  # noqa: FBT001
) -> None:
    async with Proxied(bench, wechat).serving(drop_in=drop_in) as broker:
        await broker.look()
        for trick in TRICKS:
            said = await broker.raw(
                f"{method} {trick} HTTP/1.1\r\nHost: localhost\r\nX-Token-Broker: 1\r\nConnection:"
                " close\r\n\r\n"
            )
            status, _, body = said.partition(b"\r\n\r\n")
            assert not status or status.split()[1] in {b"200", b"400", b"404", b"405"}, (
                trick,
                said,
            )
            assert b'{"total": 3}' not in body, trick
            assert wechat.seen == [], trick


async def test_plain_paths_pass_with_any_number_of_slashes_before_them(local: Proxied) -> None:
    paths = [
        "/cgi-bin/user/get",
        "//cgi-bin/user/get",
        "/wxa/getwxacodeunlimit",
        "/card/create",
        "/datacube/getusersummary",
    ]
    paths += [
        "/customservice/kfaccount/add",
        "/cgi-bin/token_x",
        "/cgi-bin/ticket/x",
        "/cgi-bin/user/token",
    ]
    for path in paths:
        assert (
            await local.ask("GET", path, headers={**ME, "X-Token-Broker-App": "main"})
        ).status == 200
        assert local.wechat.seen.pop().target.partition("?")[0] == "/" + path.lstrip("/")


@pytest.mark.parametrize(
    "path",
    [
        "/sns/x",
        "/sns/userinfo/x",
        "/sns/UserInfo",
        "/sns/jscode2session",
        "/sns/oauth2/access_token",
    ],
)
async def test_of_sns_only_users_tokens_pass_and_others_are_not_there(
    local: Proxied, path: str
) -> None:
    answer = await local.ask("GET", f"{path}?access_token=x&secret=k", headers=ME)
    assert await errcode(answer) == 48001
    assert "/sns/userinfo" in await answer.text()
    assert (await local.ask("GET", "/other/x", headers=ME)).status == 404
    assert (await local.ask("OPTIONS", GET, headers=ME)).status == 405
    assert local.wechat.seen == []


async def test_two_tokens_are_none(local: Proxied) -> None:
    answer = await local.ask("GET", f"{GET}?access_token=a&access%5ftoken=b", headers=ME)
    assert await errcode(answer) == 47001


@pytest.mark.parametrize(
    "odd",
    [
        "access%255Ftoken", "ACCESS_TOKEN", "accessToken", "access.token", "access+token",
        "+access_token", "access_token%00", "access_token[]", "access_token%5B0%5D",
        "b=2;access_token", ";access_token", "amp;access_token", "b?access_token",
    ],
)  # fmt: skip
async def test_what_only_some_would_take_for_the_token_goes_nowhere(
    guarded: Proxied, odd: str
) -> None:
    handle = await handed(guarded, "orders")
    for query in (
        f"{odd}={handle}",
        f"access_token;{odd}",
        f"a=1&{odd}={handle}",
        f"access_token={handle}&{odd}={handle}",
    ):
        answer = await guarded.ask("GET", f"{GET}?{query}", headers=bearer("orders"))
        assert await errcode(answer) == 47001, query
        assert "access_token" in await answer.text()
    assert guarded.wechat.seen == []


async def test_what_nobody_would_take_for_the_token_goes_on(guarded: Proxied) -> None:
    query = (
        "component_access_token=1&xaccess_token=2&url=https%3A%2F%2Fx%2F%3Faccess_token%3D3"
        "&access_tokens=4&a=access_token"
    )
    assert (await guarded.ask("GET", f"{GET}?{query}", headers=bearer("orders"))).status == 200
    assert guarded.wechat.seen[0].target == f"{GET}?{query}&access_token={token(guarded, 'main')}"


async def test_the_metrics_have_no_word_of_a_clients_choice(guarded: Proxied) -> None:
    await guarded.ask("GET", "/cgi-bin/chosen", headers=bearer("orders"))
    await guarded.ask(
        "GET", "/cgi-bin/chosen", headers=bearer("all", **{"X-Token-Broker-App": "chosen"})
    )
    told = (
        await (await guarded.http.get("/metrics", headers={"Accept-Encoding": "identity"})).read()
    ).decode()
    assert 'token_broker_proxied_requests_total{app="main",outcome="passed"} 1.0' in told
    assert 'token_broker_proxy_refusals_total{errcode="40013"} 1.0' in told
    assert "chosen" not in told


async def test_a_call_under_way_is_not_answered_to_who_may_not_call_any_more(
    guarded: Proxied,
) -> None:
    called, may_go = asyncio.Event(), asyncio.Event()

    async def slow(*call: Any) -> None:
        called.set()
        await may_go.wait()
        await GOOD(*call)

    guarded.wechat.answers |= {"/cgi-bin/slow": slow}
    asking = asyncio.create_task(guarded.ask("GET", "/cgi-bin/slow", headers=bearer("orders")))
    await asyncio.wait_for(called.wait(), 10)
    guarded.gate.admit(digests({"k": Client("other", PROXY)}), [])
    may_go.set()
    assert await errcode(await asking) == 40001
