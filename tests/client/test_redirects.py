"""What the adapters do where an answer sends the request to another host.

The token goes to the origin of the first request only, and a refusal is worth one more try only
where it came from there (SCENARIOS.md 61).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import httpx
import pytest
import requests
import wechatpy
from aiohttp import web
from aiohttp.test_utils import TestServer

from broker.client import AsyncTokenClient, TokenClient
from broker.client.adapters import aiohttp_middleware, httpx_auth, requests_auth
from broker.client.sdks import WechatpySession, werobot_client
from tests.harness.doubles import CANARY

TOKEN = f"{CANARY}-token"
REFUSED = {"errcode": 40001, "errmsg": "invalid credential"}
GOOD = {"errcode": 0, "total": 24}


class Tokens(TokenClient):
    """A client that always has the same token, and counts the reports."""

    reports = 0

    def get(self, min_ttl: float = 0) -> str:
        assert min_ttl == 0
        return TOKEN

    def refused(self, token: str, errcode: int) -> bool:
        assert (token, errcode) == (TOKEN, 40001)
        self.reports += 1
        return True


class AsyncTokens(AsyncTokenClient):
    """The same for asyncio."""

    reports = 0

    async def get(self, min_ttl: float = 0) -> str:
        assert min_ttl == 0
        return TOKEN

    async def refused(self, token: str, errcode: int) -> bool:
        assert (token, errcode) == (TOKEN, 40001)
        self.reports += 1
        return True


@dataclass
class Site:
    """An HTTP server that plays its answers in turn, the last one again and again.

    An answer is a JSON value, or the URL to redirect to.
    """

    answers: list[Any] = field(default_factory=lambda: [GOOD])
    asked: list[str] = field(default_factory=list)  # whole heads: request line and headers
    base: str = ""

    async def answer(self, request: web.Request) -> web.Response:
        headers = "".join(f"\n{name}: {value}" for name, value in request.headers.items())
        self.asked.append(f"{request.method} {request.path_qs}{headers}")
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, str):
            return web.Response(status=302, headers={"Location": answer})
        return web.json_response(answer)

    def tokens(self) -> list[bool]:
        """Of each request: whether it had the token anywhere in its head."""
        return [TOKEN in head for head in self.asked]


@dataclass
class Street:
    """Three sites of different origins: the first is where a request is meant to go."""

    wechat: Site
    other: Site
    third: Site


@pytest.fixture
async def street() -> AsyncIterator[Street]:
    sites, servers = [], []
    for _ in range(3):
        site, app = Site(), web.Application()
        app.router.add_route("*", "/{path:.*}", site.answer)
        server = TestServer(app)
        await server.start_server()
        site.base = str(server.make_url("")).rstrip("/")
        sites.append(site)
        servers.append(server)
    yield Street(*sites)
    for server in servers:
        await server.close()


@dataclass
class Adapter:
    """How a library asks with the adapter, and the client behind it."""

    ask: Callable[[str], Awaitable[object]]
    tokens: Tokens | AsyncTokens


async def with_aiohttp() -> AsyncIterator[Adapter]:
    tokens = AsyncTokens()
    async with aiohttp.ClientSession(middlewares=[aiohttp_middleware(tokens)]) as session:

        async def ask(url: str) -> object:
            async with session.get(url) as answer:
                return await answer.json()

        yield Adapter(ask, tokens)


async def with_async_httpx() -> AsyncIterator[Adapter]:
    tokens = AsyncTokens()
    async with httpx.AsyncClient(auth=httpx_auth(tokens), follow_redirects=True) as session:

        async def ask(url: str) -> object:
            return (await session.get(url)).json()

        yield Adapter(ask, tokens)


def in_a_thread(
    call: Callable[[Tokens, str], object],
) -> Callable[[], AsyncIterator[Adapter]]:
    async def adapter() -> AsyncIterator[Adapter]:
        tokens = Tokens()
        yield Adapter(lambda url: asyncio.to_thread(call, tokens, url), tokens)

    return adapter


def with_requests(tokens: Tokens, url: str) -> object:
    return requests.get(url, auth=requests_auth(tokens), timeout=10).json()


def with_httpx(tokens: Tokens, url: str) -> object:
    return httpx.get(url, auth=httpx_auth(tokens), follow_redirects=True).json()


def with_wechatpy(tokens: Tokens, url: str) -> object:
    client = wechatpy.WeChatClient("wx1", None, session=WechatpySession(tokens), auto_retry=False)
    client._http.auth = requests_auth(tokens)
    try:
        return client.get(url)
    except wechatpy.WeChatClientException as error:
        return {"errcode": error.errcode}


def with_werobot(tokens: Tokens, url: str) -> object:
    client = werobot_client(tokens)
    try:
        return client.get(url)
    except Exception as error:  # noqa: BLE001 -- its exception has nothing but a text
        return {"errcode": int(str(error).partition(":")[0])}


ADAPTERS = {
    "aiohttp": with_aiohttp,
    "async httpx": with_async_httpx,
    "requests": in_a_thread(with_requests),
    "httpx": in_a_thread(with_httpx),
    "wechatpy": in_a_thread(with_wechatpy),
    "werobot": in_a_thread(with_werobot),
}


@pytest.fixture(params=ADAPTERS)
async def adapter(request: pytest.FixtureRequest) -> AsyncIterator[Adapter]:
    async for it in ADAPTERS[request.param]():
        yield it


def errcode(answer: object) -> int:
    assert isinstance(answer, dict)
    return int(answer["errcode"])


async def test_a_redirect_to_other_hosts_carries_no_token(street: Street, adapter: Adapter) -> None:
    street.wechat.answers = [f"{street.other.base}/one?x=1"]
    street.other.answers = [f"{street.third.base}/two"]
    assert errcode(await adapter.ask(f"{street.wechat.base}/cgi-bin/user/get")) == 0
    assert street.wechat.tokens() == [True]
    assert street.other.tokens() == street.third.tokens() == [False]


async def test_what_another_host_answers_is_no_refusal(street: Street, adapter: Adapter) -> None:
    street.wechat.answers = [f"{street.other.base}/one"]
    street.other.answers = [REFUSED]
    assert errcode(await adapter.ask(f"{street.wechat.base}/cgi-bin/user/get")) == 40001
    assert (len(street.wechat.asked), street.other.tokens()) == (1, [False])
    assert adapter.tokens.reports == 0


async def test_a_refusal_is_worth_one_more_try(street: Street, adapter: Adapter) -> None:
    street.wechat.answers = [REFUSED]
    assert errcode(await adapter.ask(f"{street.wechat.base}/cgi-bin/user/get")) == 40001
    assert street.wechat.tokens() == [True, True]
    assert adapter.tokens.reports == 1


async def test_a_second_try_that_is_sent_elsewhere_takes_no_token_along(
    street: Street, adapter: Adapter
) -> None:
    street.wechat.answers = [REFUSED, f"{street.other.base}/one"]
    street.other.answers = [REFUSED]
    assert errcode(await adapter.ask(f"{street.wechat.base}/cgi-bin/user/get")) == 40001
    assert street.wechat.tokens() == [True, True]
    assert street.other.tokens() == [False]
    assert adapter.tokens.reports == 1


async def test_a_detour_that_comes_back_is_tried_once_more_at_most(
    street: Street, adapter: Adapter
) -> None:
    street.wechat.answers = [REFUSED, f"{street.other.base}/one", REFUSED]
    street.other.answers = [f"{street.wechat.base}/back"]
    assert errcode(await adapter.ask(f"{street.wechat.base}/cgi-bin/user/get")) == 40001
    assert len(street.wechat.asked) == 3
    assert street.other.tokens() == [False]
    assert adapter.tokens.reports == 1


async def test_after_a_redirect_the_next_request_has_the_token_again(
    street: Street, adapter: Adapter
) -> None:
    street.wechat.answers = [f"{street.other.base}/one"]
    await adapter.ask(f"{street.wechat.base}/cgi-bin/user/get")
    street.wechat.answers = [GOOD]
    await adapter.ask(f"{street.wechat.base}/cgi-bin/user/get")
    await adapter.ask(f"{street.third.base}/cgi-bin/user/get")
    assert (street.wechat.tokens(), street.third.tokens()) == ([True, True], [True])


async def test_an_answer_with_an_odd_length_is_handed_on(street: Street, adapter: Adapter) -> None:
    """An answer that is too long to be an error, or says nothing of its length, is not judged."""
    street.wechat.answers = [{**REFUSED, "more": "x" * 100_000}]
    assert errcode(await adapter.ask(f"{street.wechat.base}/cgi-bin/user/get")) == 40001
    assert (len(street.wechat.asked), adapter.tokens.reports) == (1, 0)
