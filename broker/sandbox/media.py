"""Uploads and downloads of any size in bounded memory: bytes are counted and hashed, never kept."""

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from .answers import UNNAMED, WeChatRefusal
from .wire import Reply

_KEPT = 100
_PIECE = 65_536
_PATTERN = bytes(range(251)) * 512


class Media:
    """What is remembered of the last uploads."""

    def __init__(self) -> None:
        self._items: OrderedDict[str, dict[str, Any]] = OrderedDict()

    async def upload(self, request: web.Request, now: float) -> Reply:
        """Swallow a raw body, or the first part of a multipart one."""
        kind = request.query.get("type", "image")
        digest, size = hashlib.sha256(), 0
        try:
            async for piece in _pieces(request):
                digest.update(piece)
                size += len(piece)
        except (ValueError, HttpProcessingError) as error:  # not the multipart it says it is
            raise WeChatRefusal(UNNAMED) from error
        media_id = secrets.token_urlsafe(48)
        self._items[media_id] = {"type": kind, "size": size, "sha256": digest.hexdigest()}
        if len(self._items) > _KEPT:
            self._items.popitem(last=False)
        return {"type": kind, "media_id": media_id, "created_at": int(now)}

    def download(self, request: web.Request) -> Reply:
        """Stream as many bytes as were uploaded; the byte at offset n is n % 251."""
        item = self._items.get(request.query.get("media_id", ""))
        if item is None:
            raise WeChatRefusal(UNNAMED)
        size = int(item["size"])

        async def stream() -> web.StreamResponse:
            # Some SDKs take an answer for a file by this header alone (WECHAT.md W140).
            name = f'attachment; filename="{request.query["media_id"]}.png"'
            headers = {"Content-Type": "image/png", "Content-Disposition": name}
            response = web.StreamResponse(headers=headers)
            response.content_length = size
            await response.prepare(request)
            for start in range(0, size, len(_PATTERN)):
                await response.write(_PATTERN[: size - start])
            return response

        return stream

    def described(self) -> dict[str, dict[str, Any]]:
        """Return type, size and sha256 of the last uploads, by media_id."""
        return dict(self._items)


async def _pieces(request: web.Request) -> AsyncIterator[bytes]:
    if not request.content_type.startswith("multipart/"):
        async for piece in request.content.iter_chunked(_PIECE):
            yield piece
        return
    part = await (await request.multipart()).next()
    while isinstance(part, BodyPartReader) and (piece := await part.read_chunk(_PIECE)):
        yield piece
