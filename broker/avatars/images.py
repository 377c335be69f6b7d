"""Fetches pictures for clients, which then need none over http and tell Tencent nothing.

From WeChat's avatar hosts only, and from the sandbox: a URL that leads elsewhere, to a private
address or on by a redirect is refused, as is what is too large or no picture.
"""

import asyncio
import hashlib
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from broker.avatars.errors import AvatarError
from broker.avatars.single_flight import SingleFlight
from broker.avatars.urls import PictureHosts
from broker.avatars.wechat_api import bounded
from broker.http.way_out import DIRECT, WayOut

LARGEST: Final = 2 * 1024 * 1024  # bytes; a face of 640 pixels is some 60 KB
ROOM: Final = 64 * 1024 * 1024
AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class Picture:
    """An image, of the type that its own bytes say."""

    body: bytes
    content_type: str
    tag: str


class PictureGoneError(AvatarError):
    """WeChat has this picture no more: its owner has another one, or none."""

    def __init__(self) -> None:
        super().__init__("image-unavailable", why="gone")


class PublicOnly(AbstractResolver):
    """Names resolved as usual, without the answers that lead into private networks."""

    def __init__(self, inner: AbstractResolver) -> None:
        self._inner = inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Public addresses. Raises OSError where there is none."""
        found = [
            one
            for one in await self._inner.resolve(host, port, family)
            if ip_address(one["host"]).is_global
        ]
        if not found:
            raise OSError(None, "no public address")
        return found

    async def close(self) -> None:
        """Close the resolver within."""
        await self._inner.close()


class Images:
    """Pictures by URL, the longest unused forgotten first when they outgrow their room."""

    def __init__(
        self,
        public: aiohttp.ClientSession,
        local: aiohttp.ClientSession,
        hosts: PictureHosts,
        way_out: WayOut = DIRECT,
        room: int = ROOM,
    ) -> None:
        self._public = public
        self._local = local
        self._hosts = hosts
        self._way_out = way_out
        self._room = room
        self._kept: OrderedDict[str, Picture] = OrderedDict()
        self._bytes = 0
        self._flights: SingleFlight[Picture] = SingleFlight()
        self._slots = asyncio.Semaphore(AT_ONCE)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, hosts: PictureHosts, timeout_s: float, way_out: WayOut = DIRECT
    ) -> AsyncIterator["Images"]:
        """Open it. Pictures come from these hosts only; the sandbox's address may be private."""
        tls = way_out.tls()
        public = _session(
            timeout_s,
            aiohttp.TCPConnector(resolver=PublicOnly(aiohttp.ThreadedResolver()), ssl=tls),
        )
        local = _session(timeout_s, aiohttp.TCPConnector(ssl=tls))
        async with public, local:
            images = cls(public, local, hosts, way_out)
            try:
                yield images
            finally:
                await images._flights.close()

    async def get(self, url: str, *, keep: bool = True) -> Picture:
        """Return the picture, from memory if it has been kept.

        Raises AvatarError where it may not or cannot be fetched, and PictureGoneError where WeChat
        has it no more.
        """
        if kept := self._kept.get(url):
            self._kept.move_to_end(url)
            return kept
        work = partial(self._fetch, url, keep=keep)
        return await asyncio.shield(self._flights.join(url, work))

    async def _fetch(self, url: str, *, keep: bool) -> Picture:
        if not self._hosts.accept(url):
            raise _trouble("elsewhere")
        proxy = self._way_out.proxy_for(URL(url))
        # A proxy resolves the name itself, and may have a private address of its own.
        session = self._public if self._hosts.are_public(url) and proxy is None else self._local
        try:
            async with (
                self._slots,
                session.get(url, allow_redirects=False, proxy=proxy) as response,
            ):
                if response.status != HTTPStatus.OK:
                    raise _trouble("status", response.status)
                # A dead avatar is a placeholder with this header (WECHAT.md W50).
                if response.headers.get("X-ErrNo", "0") != "0":
                    raise PictureGoneError
                body = await bounded(response, LARGEST)
        except (aiohttp.ClientError, OSError, ValueError):
            raise _trouble("broken") from None
        picture = _picture(body)
        if keep:
            self._keep(url, picture)
        return picture

    def _keep(self, url: str, picture: Picture) -> None:
        self._kept[url] = picture
        self._bytes += len(picture.body)
        while self._bytes > self._room:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= len(dropped.body)


def image_type(body: bytes) -> str | None:
    """Return the type of JPEG, PNG, GIF or WebP by the first bytes, None for anything else."""
    if body.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if body.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return "image/webp" if body[:4] == b"RIFF" and body[8:12] == b"WEBP" else None


def _picture(body: bytes | None) -> Picture:
    if body is None:
        raise _trouble("large", LARGEST // 1024**2)
    content_type = image_type(body)
    if content_type is None:
        raise _trouble("no-picture")
    return Picture(body, content_type, hashlib.sha256(body).hexdigest()[:32])


def _trouble(why: str, amount: float = 0) -> AvatarError:
    return AvatarError("image-unavailable", why=why, amount=amount)


def _session(timeout_s: float, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        headers={"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "token-broker"},
        auto_decompress=False,
    )
