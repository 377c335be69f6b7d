"""The companion with a daemon and a sandbox, each on a real socket, in one event loop."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from broker.app import daemon
from broker.avatars import CompanionOptions, create_app
from broker.config.load import load
from broker.sandbox import SandboxOptions
from broker.sandbox import create_app as create_sandbox
from tests.harness.doubles import APPID, CANARY, ManualClock

USER_GET, BATCHGET = "/cgi-bin/user/get", "/cgi-bin/user/info/batchget"
TTL = 600


class Wire:
    """What the sandbox was asked, by path. While `gate` is cleared its answers wait."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def middleware(self) -> Any:
        @web.middleware
        async def count(request: web.Request, handler: Any) -> Any:
            self.calls[request.path] += 1
            if request.path.startswith("/cgi-bin/user/"):
                await self.gate.wait()
            return await handler(request)

        return count


class Scene:
    """A sandbox, a daemon and a companion, each on a socket of its own."""

    def __init__(self, home: Path, http: aiohttp.ClientSession) -> None:
        self.home, self.http = home, http
        self.clock, self.wire = ManualClock(), Wire()
        self.told: list[tuple[str, dict[str, object]]] = []
        self.daemon = AsyncExitStack()
        self.sandbox = self.base = self.broker = ""
        self.arrived: Counter[str] = Counter()
        self.app: web.Application

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        """Ask the companion: status and JSON, or text."""
        response = await self.ask(path, **headers)
        body = await response.read()
        return response.status, (
            await response.json() if "json" in response.content_type else body.decode()
        )

    async def ask(self, path: str, **headers: str) -> aiohttp.ClientResponse:
        """Ask the companion, and read the answer."""
        response = await self.http.get(self.base + path, headers=headers, allow_redirects=False)
        await response.read()
        return response

    async def control(self, path: str, body: object = None) -> Any:
        """Tell the sandbox, or ask it."""
        method = "GET" if body is None else "POST"
        async with self.http.request(
            method, f"{self.sandbox}/sandbox{path}", json=body
        ) as response:
            assert response.status < 300, await response.text()
            return await response.json()

    async def fault(
        self, path: str, kind: str = "errcode", times: int | None = 1, **params: object
    ) -> None:
        """Order a fault for a data API."""
        await self.control("/faults", {"kind": kind, "path": path, "times": times, **params})

    async def listed(self) -> int:
        """How often followers were listed, by the platform's own count."""
        account = (await self.control(""))["accounts"][APPID]
        return int(account["quota_used"]["user/get"])

    async def openids(self, limit: int = 24) -> list[str]:
        return [
            one["openid"] for one in (await self.get(f"/v1/avatars?limit={limit}"))[1]["avatars"]
        ]

    async def start_daemon(self) -> None:
        addresses = await self.daemon.enter_async_context(
            daemon(load(self.home / "config.toml", {}))
        )
        self.broker = addresses[0]


@asynccontextmanager
async def scene(
    home: Path, sandbox: SandboxOptions | None = None, *, away: bool = False, **options: Any
) -> AsyncIterator[Scene]:
    """Everything running; with `away` the daemon is not."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        )
        there = Scene(home, http)
        platform = create_sandbox(sandbox or SandboxOptions())
        platform.middlewares.append(there.wire.middleware)
        there.sandbox = await _serving(stack, platform)
        (home / "config.toml").write_text(
            f'[server]\nlisten = ["127.0.0.1:0"]\n[store]\nurl = "sqlite://{home}/broker.db"\n'
            f'[wechat]\napi_base = "{there.sandbox}"\n[policy]\nmin_gap = 0.01\nverify_gap = 0.01\n'
            f'[apps.main]\nappid = "{APPID}"\nsecret_file = "./main.secret"\n'
        )
        (home / "main.secret").write_text(f"{CANARY}-secret")
        (home / "main.secret").chmod(0o600)
        await stack.enter_async_context(there.daemon)
        if away:
            there.broker = "http://127.0.0.1:9"
        else:
            await there.start_daemon()
        given = {
            "broker": there.broker,
            "api_base": there.sandbox,
            "cache_ttl_s": TTL,
            "timeout_s": 5,
            **options,
        }
        if callable(given.get("consent")):  # the sandbox's address had to be known first
            given["consent"] = given["consent"](there.sandbox)
        app = there.app = create_app(
            CompanionOptions(**given),
            there.clock.now,
            there.clock.wall,
            lambda event, **facts: there.told.append((event, facts)),
        )
        app.middlewares.append(_arrivals(there.arrived))
        there.base = await _serving(stack, app)
        yield there


async def _serving(stack: AsyncExitStack, app: web.Application) -> str:
    server = TestServer(app)
    await server.start_server(access_log=None)
    stack.push_async_callback(server.close)
    return str(server.make_url("")).rstrip("/")


def _arrivals(arrived: Counter[str]) -> Any:
    @web.middleware
    async def note(request: web.Request, handler: Any) -> Any:
        arrived[request.path] += 1
        return await handler(request)

    return note
