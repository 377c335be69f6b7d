"""What we rely on of aiohttp's inside. Another minor version is admitted when this has passed."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from broker.http.no_retry import session_without_retries
from broker.web.connection.aiohttp_internals import (
    GuardedSite,
    QuietRequestHandler,
    is_answering,
    new_handler,
)

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Site:
    """An application behind a GuardedSite, and the handlers that were made for it."""

    def __init__(self) -> None:
        self.handlers: list[asyncio.Protocol] = []
        self.entered, self.go_on = asyncio.Event(), asyncio.Event()
        self.connections: list[object] = []
        self.port = 0

    async def handle(self, request: web.Request) -> web.Response:
        self.connections.append(getattr(request.protocol, "connection", None))
        self.entered.set()
        await self.go_on.wait()
        return web.Response(text="ok")

    async def fail(self, _request: web.Request) -> web.Response:
        raise ZeroDivisionError("with a secret")

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Site"]:
        app = web.Application()
        app.add_routes([web.get("/", self.handle), web.get("/fail", self.fail)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]

            def guard(make: Callable[[object], asyncio.Protocol]) -> asyncio.Protocol:
                handler = make(self)
                self.handlers.append(handler)
                return handler

            await GuardedSite(runner, sock, guard).start()
            try:
                yield self
            finally:
                await runner.cleanup()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with Site().serving() as site:
        yield site


async def answered(site: Site, chunk: bytes) -> bytes:
    """Everything that is answered until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(chunk)
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


# --- the server -----------------------------------------------------------------------------------


async def test_a_handler_says_whether_it_is_answering(site: Site) -> None:
    assert "_request_in_progress" in RequestHandler.__slots__
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    for _ in range(2):
        writer.write(GET)
        await asyncio.wait_for(site.entered.wait(), 10)
        (handler,) = site.handlers
        assert is_answering(handler)
        site.go_on.set()
        assert await asyncio.wait_for(reader.readuntil(b"ok"), 10)
        assert not is_answering(handler), "the answer has been written"
        site.entered.clear()
        site.go_on.clear()
    writer.close()


async def test_a_request_knows_the_connection_that_it_came_on(site: Site) -> None:
    site.go_on.set()
    await answered(site, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert site.connections == [site]


async def test_a_handler_is_what_the_server_itself_would_make() -> None:
    async def handle(_request: web.BaseRequest) -> web.StreamResponse:
        raise AssertionError

    server = web.Server(handle, keepalive_timeout=17)
    ours, theirs = new_handler(server, None), server()
    slots = [
        name
        for name in RequestHandler.__slots__
        if isinstance(getattr(ours, name), (int, float, bool, str))
    ]
    assert "_keepalive_timeout" in slots
    assert [getattr(ours, name) for name in slots] == [getattr(theirs, name) for name in slots]
    assert ours.keepalive_timeout == 17


@pytest.mark.parametrize(
    ("chunk", "status", "code"),
    [
        (b"GET / HTTP/1.1\r\nA secret\r\n\r\n", 400, "malformed-request"),
        (b"GET / HTTP/9.9.secret\r\n\r\n", 400, "malformed-request"),
        (b"GET /fail HTTP/1.1\r\nHost: localhost\r\n\r\n", 500, "internal-error"),
        (b"GET /x HTTP/1.1\r\nHost: localhost\r\nExpect: secret\r\n\r\n", 417, "http-error"),
        (b"GET /x HTTP/1.1\r\nHost: localhost\r\nExpect: secret\xff\r\n\r\n", 417, "http-error"),
    ],
)
async def test_what_aiohttp_answers_by_itself_is_a_problem_that_quotes_nothing(
    site: Site, chunk: bytes, status: int, code: str
) -> None:
    answer = await answered(site, chunk)
    assert int(answer.split()[1]) == status
    assert f'"code": "{code}"'.encode() in answer
    assert b"secret" not in answer


async def test_a_site_that_stops_accepts_no_more() -> None:
    async with Site().serving() as other:
        other.go_on.set()
        assert re.search(rb" 200 ", await answered(other, GET.replace(b"1.1", b"1.0")))
    with pytest.raises(ConnectionRefusedError):
        await answered(other, GET)
    assert all(isinstance(one, QuietRequestHandler) for one in other.handlers)


# --- the client -----------------------------------------------------------------------------------


async def test_a_request_goes_over_the_wire_once_although_the_connection_breaks() -> None:
    """The server answers the first request, keeps the connection, and drops it at the second."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answered = False
        while True:
            try:
                requests.append(await reader.readuntil(b"\r\n\r\n"))
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            if answered:
                break
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            answered = True
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server:
        plain = aiohttp.ClientSession()
        for session, times in ((session_without_retries(aiohttp.TCPConnector()), 1), (plain, 2)):
            async with session:
                requests.clear()
                async with session.get(base) as answer:
                    assert await answer.text() == "ok"
                assert len(requests) == 1
                if times == 1:
                    with pytest.raises(aiohttp.ServerDisconnectedError):
                        await session.get(base)
                else:
                    # Without the switch aiohttp repeats it on another connection.
                    async with session.get(base) as answer:
                        assert await answer.text() == "ok"
                assert len(requests) == 1 + times
