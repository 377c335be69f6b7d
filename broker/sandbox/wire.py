"""Acting the faults out on the connection. Their time is real time: the peer's deadlines are."""

import asyncio
import base64
import gzip
import io
import itertools
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from aiohttp import web

from .answers import WeChatRefusal, encode, render
from .faults import Fault

Reply = dict[str, Any] | Callable[[], Awaitable[web.StreamResponse]]
"""What a route has to say: a JSON object, or something that streams it."""

NOW = web.RequestKey("now", float)
"""When the request arrived, by the sandbox's clock."""

_LOOK_S = 0.05
_BUFFERED = 65_536
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; encoding=utf-8\r\n"


async def send(answer: Reply) -> web.StreamResponse:
    """Answer as WeChat does."""
    return render(answer) if isinstance(answer, dict) else await answer()


async def perform(
    fault: Fault, request: web.Request, truth: Callable[[], Awaitable[Reply]]
) -> web.StreamResponse:
    """Answer, or fail to, as the fault says.

    ``truth`` is called at most once, and only where the call gets through.
    """
    params = fault.params
    if fault.kind in _BENT:
        return await _BENT[fault.kind](request, await truth(), params)
    answer = await truth() if params.get("mint") else None
    return await _LOST[fault.kind](request, answer, params)


def gone(request: web.Request) -> bool:
    """Tell whether the peer has hung up."""
    return request.transport is None or request.transport.is_closing()


async def unless_gone(
    request: web.Request, event: asyncio.Event, seconds: float | None = None
) -> bool:
    """Wait for the event; False if the peer hung up first, or the time was up."""
    loop = asyncio.get_running_loop()
    end = None if seconds is None else loop.time() + seconds
    while not event.is_set():
        wait = _LOOK_S if end is None else min(_LOOK_S, end - loop.time())
        if wait <= 0 or gone(request):
            return False
        await asyncio.wait({task := asyncio.ensure_future(event.wait())}, timeout=wait)
        task.cancel()
    return True


def _close(request: web.Request, *, abruptly: bool = False) -> web.Response:
    """End the connection.

    The response that is returned is for aiohttp, which finds nobody to send it to.
    """
    if request.transport is not None:
        sock = request.transport.get_extra_info("socket")
        if abruptly and sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.transport.abort()
        request.transport.close()
    return web.Response()


async def _pour(request: web.Request, pieces: Iterable[bytes], interval: float) -> web.Response:
    """Write raw bytes no faster than the peer reads them, until they end or the peer hangs up."""
    for piece in pieces:
        transport = request.transport
        if transport is None or gone(request):
            break
        transport.write(piece)
        await asyncio.sleep(interval)
        # - no event tells
        while not gone(request) and transport.get_write_buffer_size() > _BUFFERED:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
    return _close(request)


async def _slow(
    request: web.Request, answer: Reply, params: Mapping[str, Any]
) -> web.StreamResponse:
    await unless_gone(request, asyncio.Event(), params["seconds"])
    return await send(answer)


async def _same_token(
    _request: web.Request, answer: Reply, _params: Mapping[str, Any]
) -> web.StreamResponse:
    return await send(answer)  # the token endpoint itself knows which token that is


async def _answer(
    _request: web.Request, answer: Reply, params: Mapping[str, Any]
) -> web.StreamResponse:
    if isinstance(answer, dict):
        answer = {
            key: value for key, value in (answer | params["answer"]).items() if value is not None
        }
    return await send(answer)


async def _errcode(
    request: web.Request, _answer: Reply | None, params: Mapping[str, Any]
) -> web.StreamResponse:
    return render(WeChatRefusal(params["errcode"], params["errmsg"]).answer(request[NOW]))


async def _status(
    _request: web.Request, _answer: Reply | None, params: Mapping[str, Any]
) -> web.StreamResponse:
    return web.Response(
        status=params["status"], body=params["body"].encode(), headers=params["headers"]
    )


async def _silence(
    request: web.Request, _answer: Reply | None, params: Mapping[str, Any]
) -> web.StreamResponse:
    await unless_gone(request, asyncio.Event(), params["seconds"])
    return _close(request)


async def _drop(
    request: web.Request, _answer: Reply | None, _params: Mapping[str, Any]
) -> web.StreamResponse:
    return _close(request)


async def _reset(
    request: web.Request, _answer: Reply | None, _params: Mapping[str, Any]
) -> web.StreamResponse:
    return _close(request, abruptly=True)


async def _garbage(
    _request: web.Request, _answer: Reply | None, params: Mapping[str, Any]
) -> web.StreamResponse:
    raw = params["base64"]
    body = params["body"].encode(errors="replace") if raw is None else base64.b64decode(raw)
    return web.Response(body=body, headers={"Content-Type": params["content_type"]})


async def _drip(
    request: web.Request, answer: Reply | None, params: Mapping[str, Any]
) -> web.StreamResponse:
    body = encode(answer if isinstance(answer, dict) else WeChatRefusal(-1).answer(request[NOW]))
    whole = _HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    return await _pour(
        request, (whole[at : at + 1] for at in range(len(whole))), params["interval"]
    )


async def _endless_headers(
    request: web.Request, _a: Reply | None, params: Mapping[str, Any]
) -> web.StreamResponse:
    lines = (b"X-Line-%d: and another one\r\n" % number for number in itertools.count())
    return await _pour(request, itertools.chain([_HEAD], lines), params["interval"])


async def _endless_body(
    request: web.Request, _answer: Reply | None, params: Mapping[str, Any]
) -> web.StreamResponse:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n\r\n" % params["content_type"].encode()
    pieces = itertools.chain([head, b'{"access_token":"'], itertools.repeat(b"A" * 16_384))
    return await _pour(request, pieces, params["interval"])


async def _gzip_bomb(
    _request: web.Request, _answer: Reply | None, _params: Mapping[str, Any]
) -> web.StreamResponse:
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json; encoding=utf-8"}
    return web.Response(body=_bomb(), headers=headers)


@lru_cache(maxsize=1)
def _bomb() -> bytes:
    """50 MB of a token that never ends, in 48 KB (WECHAT.md W28); packed piece by piece."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as out:
        out.write(b'{"access_token":"')
        for _ in range(50):
            out.write(b"A" * 1_000_000)
    return packed.getvalue()


_BENT: dict[
    str, Callable[[web.Request, Reply, Mapping[str, Any]], Awaitable[web.StreamResponse]]
] = {
    "slow": _slow,
    "same_token": _same_token,
    "answer": _answer,
}
_LOST: dict[
    str, Callable[[web.Request, Reply | None, Mapping[str, Any]], Awaitable[web.StreamResponse]]
] = {
    "errcode": _errcode,
    "status": _status,
    "silence": _silence,
    "drop": _drop,
    "reset": _reset,
    "garbage": _garbage,
    "drip": _drip,
    "endless_headers": _endless_headers,
    "endless_body": _endless_body,
    "gzip_bomb": _gzip_bomb,
}
