"""What lies between a company and WeChat: an HTTP proxy with a password, a relay with a path.

Proxies connect from 127.0.0.2, so that a relay knows whether a request came through one.
"""

import asyncio
import base64
import shutil
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from socket import create_connection, create_server
from typing import TypeVar

import aiohttp
from aiohttp import web

from tests.harness.processes import PATIENCE_S, until

PROXYS_ADDRESS = "127.0.0.2"
USER, PASSWORD = "me", "pa-ss-c4n4ry"
T = TypeVar("T")


@contextmanager
def in_thread(context: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Run servers on a loop of their own, for tests of processes."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        entered = asyncio.run_coroutine_threadsafe(context.__aenter__(), loop)
        try:
            yield entered.result(PATIENCE_S)
        finally:
            left = asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop)
            left.result(PATIENCE_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()


# --- proxies --------------------------------------------------------------------------------------


@dataclass
class ConnectProxy:
    """An HTTP proxy that makes tunnels (CONNECT) for those who know its password.

    `answer`: what it says instead of making a tunnel, if it says anything.
    """

    port: int = 0
    password: str = ""
    answer: bytes = b""
    tunnels: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it is, without user and password."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url_with_password(self) -> str:
        """Where it is, with what it asks for."""
        return f"http://{USER}:{PASSWORD}@127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its beginning to its end."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, target, _ = head.split(" ", 2)
            if self.answer:
                writer.write(self.answer)
            elif self.password and f"Basic {_basic(self.password)}" not in head:
                writer.write(_status(HTTPStatus.PROXY_AUTHENTICATION_REQUIRED))
            elif method != "CONNECT":
                writer.write(_status(HTTPStatus.METHOD_NOT_ALLOWED))
            else:
                self.tunnels.append(target)
                await _tunnel(target, reader, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def _basic(password: str) -> str:
    return base64.b64encode(f"{USER}:{password}".encode()).decode()


def _status(status: HTTPStatus) -> bytes:
    body = f"<html><h1>{status.phrase}</h1></html>"
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/html\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


async def _tunnel(target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    host, _, port = target.rpartition(":")
    there_reader, there_writer = await asyncio.open_connection(
        host, int(port), local_addr=(PROXYS_ADDRESS, 0)
    )
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    ways = (reader, there_writer), (there_reader, writer)
    copies = [asyncio.create_task(_copy(*way)) for way in ways]
    await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
    for copy in copies:
        copy.cancel()
    await asyncio.gather(*copies, return_exceptions=True)
    there_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def connect_proxy(password: str = "", answer: bytes = b"") -> AsyncIterator[ConnectProxy]:
    """Our own proxy, running."""
    proxy = ConnectProxy(password=password, answer=answer)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    async with server:
        yield proxy


@contextmanager
def tinyproxy(home: Path, password: str = "") -> Iterator[ConnectProxy]:
    """Debian's tinyproxy, running."""
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    lines = [f"Port {port}", "Listen 127.0.0.1", f"Bind {PROXYS_ADDRESS}", "Timeout 60"]
    lines += [f"BasicAuth {USER} {password}"] if password else []
    (home / "tinyproxy.conf").write_text("\n".join([*lines, ""]))
    program = shutil.which("tinyproxy")
    assert program
    command = [program, "-d", "-c", str(home / "tinyproxy.conf")]
    with (
        (home / "tinyproxy.log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as popen,
    ):
        try:
            until(lambda: _listens(port), "tinyproxy listens")
            yield ConnectProxy(port, password)
        finally:
            popen.kill()


def _listens(port: int) -> bool:
    with suppress(OSError), create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


# --- a relay --------------------------------------------------------------------------------------


@dataclass
class WeChatRelay:
    """Passes /weixin/… on to a sandbox, over TLS; `asked` has the path and peer of each request."""

    base: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)

    @property
    def peers(self) -> set[str]:
        """The addresses that have asked."""
        return {peer for _, peer in self.asked}


@asynccontextmanager
async def wechat_relay(sandbox: str, tls: ssl.SSLContext) -> AsyncIterator[WeChatRelay]:
    """A relay in front of a sandbox."""
    relay = WeChatRelay()

    async def handle(request: web.Request) -> web.Response:
        relay.asked.append((request.path, request.remote or ""))
        url = f"{sandbox}/{request.match_info['path']}?{request.query_string}"
        body = await request.read()
        async with session.request(request.method, url, data=body) as answer:
            return web.Response(status=answer.status, body=await answer.read())

    app = web.Application()
    app.router.add_route("*", "/weixin/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    async with aiohttp.ClientSession() as session:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        relay.base = f"https://127.0.0.1:{runner.addresses[0][1]}/weixin"
        try:
            yield relay
        finally:
            await runner.cleanup()
