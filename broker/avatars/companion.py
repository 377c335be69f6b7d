"""What the companion is told, and what it consists of: everything the routes lean on."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web

from broker.avatars import messages as words
from broker.avatars.circuit_breaker import TellEvent
from broker.avatars.consent.consents import Consents
from broker.avatars.errors import of_broker
from broker.avatars.followers import Followers
from broker.avatars.images import Images
from broker.avatars.urls import PictureHosts, is_loopback, origin
from broker.avatars.wechat_api import DataApi, WeChatCalls
from broker.client import AsyncTokenClient, BrokerError
from broker.config.settings import ConsentSettings
from broker.http.no_retry import session_without_retries
from broker.http.way_out import DIRECT, OutgoingSession, WayOut

# An idle connection is closed by us, before WeChat does: a POST that meets a closed one is lost
KEEP_S: Final = 4


@dataclass(frozen=True, slots=True)
class CompanionOptions:
    """What the companion is configured with.

    `broker` is a URL's origin or `unix:/path`, `app` one of its apps, `key_file` this client's key.

    `hosts` are names it answers to, beside loopback's and the address a request came in at. Seconds
    where a time.
    """

    broker: str = "http://127.0.0.1:8765"
    app: str = "main"
    key_file: Path | None = None
    api_base: str = "https://api.weixin.qq.com"
    timeout_s: float = 10
    cache_ttl_s: float = 600
    proxy_images: bool = False
    hosts: frozenset[str] = frozenset()
    way_out: WayOut = DIRECT
    consent: ConsentSettings | None = None
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()

    @property
    def sandbox(self) -> str | None:
        """Return the origin of the sandbox if it stands in for WeChat, else None.

        Pictures may come from there too.
        """
        return origin(self.api_base) if is_loopback(self.api_base) else None

    @property
    def image_sources(self) -> tuple[str, ...]:
        """Where a page of ours may show pictures from, for its Content-Security-Policy."""
        return () if self.proxy_images else self.picture_hosts.sources()

    @property
    def picture_hosts(self) -> PictureHosts:
        """Return where pictures may be."""
        hosts = self.consent.picture_hosts if self.consent else PictureHosts().hosts
        return PictureHosts(hosts, self.sandbox)


@dataclass(frozen=True, slots=True)
class Companion:
    """The parts. `wall` tells Unix seconds."""

    options: CompanionOptions
    client: AsyncTokenClient
    calls: WeChatCalls
    followers: Followers
    images: Images
    consents: Consents | None
    clock: Callable[[], float]
    wall: Callable[[], float]
    tell: TellEvent

    async def why_no_token(self) -> str:
        """Nothing, where the daemon hands out a token; else a sentence."""
        try:
            await self.client.get()
        except BrokerError as error:
            trouble = of_broker(error, self.options.broker)
            return words.sentence(trouble.code, trouble.facts)
        return ""


COMPANION: Final = web.AppKey("companion", Companion)


@asynccontextmanager
async def companion(
    options: CompanionOptions,
    clock: Callable[[], float],
    wall: Callable[[], float],
    tell: TellEvent,
) -> AsyncIterator[Companion]:
    """Put the parts together. `clock` tells the seconds that ages are measured in."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(_session(options.way_out))
        client = await stack.enter_async_context(
            AsyncTokenClient(broker=options.broker, app=options.app, key_file=options.key_file)
        )
        calls = WeChatCalls(
            OutgoingSession(session, options.way_out), options.api_base, options.timeout_s
        )
        api = DataApi(calls, client, options.broker, wall)
        consents = await _consents(options, wall, tell, stack)
        followers = Followers(api, options.cache_ttl_s, clock, tell, consents)
        stack.push_async_callback(followers.close)
        images = await stack.enter_async_context(
            Images.open(options.picture_hosts, options.timeout_s, options.way_out)
        )
        yield Companion(options, client, calls, followers, images, consents, clock, wall, tell)


async def _consents(
    options: CompanionOptions, wall: Callable[[], float], tell: TellEvent, stack: AsyncExitStack
) -> Consents | None:
    """Return the consents, None where they are switched off. Raises ConsentStoreRefused."""
    settings = options.consent
    if settings is None:
        return None
    consents = Consents(
        settings.store, settings.encryption_key, settings.previous_encryption_key, wall, tell
    )
    stack.push_async_callback(consents.close)
    await consents.start()
    return consents


def _session(way_out: WayOut) -> aiohttp.ClientSession:
    # WeChat counts calls of user/get, so none of them may be repeated.
    return session_without_retries(
        aiohttp.TCPConnector(keepalive_timeout=KEEP_S, ssl=way_out.tls()),
        headers={
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "token-broker",
        },
    )
