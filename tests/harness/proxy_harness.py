"""A broker that proxies, and a WeChat on a real socket.

That WeChat records each request byte by byte, and answers as it is told.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from broker.config.schema import ProxyTable as Table
from broker.core.credential import Account
from broker.tokens.registry import Registry
from broker.tokens.tickets import Tickets
from broker.web.api.compat import Compat
from broker.web.api.metrics import Metrics
from broker.web.connection.connections import Connections
from broker.web.connection.fast_path import ResponseCache
from broker.web.gate import Client, Gate
from broker.web.handles import Handles
from broker.web.proxy.callers import Callers
from broker.web.proxy.handler import Proxy
from broker.web.proxy.limits import ProxyLimits
from broker.web.proxy.session import outgoing
from broker.web.proxy.users import UserCalls
from tests.harness.doubles import ACCOUNT, Bench
from tests.harness.wiring import PATIENCE_S, Wired

ME = {"X-Token-Broker": "1"}


@dataclass
class Seen:
    """A request as it came over the wire."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def all(self, name: str) -> list[str]:
        return [value for known, value in self.headers if known.lower() == name.lower()]

    @property
    def token(self) -> str:
        return URL(self.target, encoded=True).query.get("access_token", "")


Answer = Callable[[Seen, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def says(body: bytes | dict[str, Any], *headers: str, status: str = "200 OK") -> Answer:
    """Answer with a length."""
    said = json.dumps(body).encode() if isinstance(body, dict) else body

    async def answer(
        _seen: Seen, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(said)}", *headers]
        writer.write("\r\n".join([*lines, "", ""]).encode() + said)

    return answer


def raw(*pieces: bytes, close: bool = True) -> Answer:
    """Answer with these bytes."""

    async def answer(
        _seen: Seen, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        if close:
            writer.close()

    return answer


GOOD = says({"total": 3}, "Content-Type: application/json")


@dataclass
class Hostile:
    """WeChat's data interfaces.

    `answers` go by path and come first. Tokens in `dead` are refused. All else gets `otherwise`.
    """

    seen: list[Seen] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    otherwise: Answer = GOOD
    dead: set[str] = field(default_factory=set)
    refusal: bytes = (
        b'{"errcode":40001,"errmsg":"invalid credential rid: 65ecc868-261f3825-3e9c4795"}'
    )
    connections: int = 0
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    reads_bodies: bool = True
    port: int = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Hostile"]:
        tasks: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task
            tasks.add(task)
            self.connections += 1
            try:
                while await self._one(reader, writer):
                    pass
            except (ConnectionError, asyncio.IncompleteReadError):
                self.hung_up.set()
            finally:
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode(errors="surrogateescape").rstrip("\r\n").split("\r\n")
        method, target, _ = first.split(" ")
        headers = [
            (name, value.strip()) for name, _, value in (line.partition(":") for line in lines)
        ]
        seen = Seen(method, target, headers)
        self.seen.append(seen)
        if self.reads_bodies:
            seen.body = await _body(seen, reader)
        answer = self.answers.get(target.partition("?")[0])
        if answer is None:
            answer = (
                says(self.refusal, "Content-Type: text/plain")
                if seen.token in self.dead
                else self.otherwise
            )
        await answer(seen, reader, writer)
        await writer.drain()
        return not writer.is_closing()


async def _body(seen: Seen, reader: asyncio.StreamReader) -> bytes:
    if length := seen.all("Content-Length"):
        return await reader.readexactly(int(length[0]))
    body = b""
    while seen.all("Transfer-Encoding") == ["chunked"]:
        size = int(await reader.readline(), 16)
        body += (await reader.readexactly(size + 2))[:-2]
        if not size:
            break
    return body


class Proxied:
    """The application with the proxy, on a manual clock and a scripted token endpoint.

    Its calls go to the hostile WeChat.
    """

    def __init__(self, bench: Bench, wechat: Hostile) -> None:
        self.bench, self.wechat = bench, wechat
        self.crashes: list[tuple[str, Exception]] = []
        self.outcomes: list[tuple[str, str]] = []
        self.metrics = Metrics()
        self.gate: Gate
        self.registry: Registry
        self.tickets: Tickets
        self.limits: ProxyLimits
        self.http: TestClient[Any, Any]

    @asynccontextmanager
    async def serving(
        self,
        clients: Mapping[str, Client] | None = None,
        accounts: Sequence[Account] = (ACCOUNT,),
        *,
        drop_in: bool = True,
        **table: Any,
    ) -> AsyncIterator["Proxied"]:
        """`clients` by key; `table`: what is configured otherwise than by default."""
        tools = await self.bench.dependencies()
        metrics, clock, store = self.metrics, self.bench.clock, await self.bench.open()
        registry = self.registry = Registry(list(accounts), tools)
        await registry.start()
        self.gate = gate = Gate(digests(clients or {}), [])
        self.tickets = tickets = Tickets(registry, tools, self.bench.wechat)
        self.wired = Wired(
            registry,
            clock,
            ResponseCache(Connections(100, clock.now)),
            gate,
            tickets,
            store.history,
            metrics,
            crashes=self.crashes,
        )
        settings, handles = Table(enabled=True, **table), Handles(gate, registry, clock.now)

        async with outgoing(settings.connect_timeout) as out:
            callers = Callers(gate, registry, handles)
            limits = self.limits = ProxyLimits(settings, clock.now)
            base = URL(f"http://127.0.0.1:{self.wechat.port}")
            more = []
            if drop_in:
                more += Compat(gate, registry, tickets, PATIENCE_S, clock.now, handles).routes()
            more += UserCalls(gate, limits, out, base, self).routes()
            more += Proxy(settings, callers, limits, out, lambda _: base, self, PATIENCE_S).routes()
            app = self.wired.application(more)
            self.http = TestClient(TestServer(app), auto_decompress=False)
            await self.http.start_server()
            try:
                yield self
            finally:
                await self.http.close()
        assert self.crashes == []

    def proxied(self, app: str, outcome: str) -> None:
        """A :class:`broker.web.proxy.handler.ProxyCounters`."""
        self.metrics.proxied(app, outcome)
        self.outcomes.append((app, outcome))

    def refused(self, errcode: int) -> None:
        """See `proxied`."""
        self.metrics.refused(errcode)

    async def look(self) -> None:
        self.registry.tick()
        await self.registry.drain()

    async def get(self, target: str, **headers: str) -> ClientResponse:
        """Ask for a target, byte by byte as it stands there."""
        return await self.ask("GET", target, headers={**ME, **headers})

    async def ask(self, method: str, target: str, **request: Any) -> ClientResponse:
        url = URL(str(self.http.make_url("/")).rstrip("/") + target, encoded=True)
        answer: ClientResponse = await self.http.session.request(
            method, url, allow_redirects=False, **request
        )
        return answer

    async def raw(self, head: str) -> bytes:
        """Send bytes; what comes back until the connection ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.http.port)
        writer.write(head.encode())
        said = await reader.read()
        writer.close()
        return said


def digests(clients: Mapping[str, Client]) -> dict[str, Client]:
    return {hashlib.sha256(key.encode()).hexdigest(): client for key, client in clients.items()}


async def errcode(answer: ClientResponse) -> int:
    """The errcode of a refusal of ours, after checking what each owes."""
    body = json.loads(await answer.read())
    assert (answer.status, answer.content_type) == (200, "application/json"), body
    assert answer.headers["Cache-Control"] == "no-store"
    assert isinstance(body["errmsg"], str)
    return int(body["errcode"])


async def until(true: Callable[[], object]) -> None:
    """Let others run until it is so, at most 10 seconds."""
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)
