"""People who are asked for their avatar: the public listener, and browsers before it."""

import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
from yarl import URL

from broker.avatars.companion import COMPANION
from broker.avatars.consent.consents import Consents
from broker.avatars.server import asking
from broker.config.settings import ConsentSettings
from broker.core.secret import Secret
from broker.sandbox import SandboxOptions
from broker.system.address import Address
from tests.harness.companion import Scene, scene
from tests.harness.doubles import APPID

TOKEN, MESSAGE_KEY = "messagetoken", "a" * 42 + "A"
DAYS = 30
DAY_S = 86_400


class Answered:
    """An answer, read."""

    def __init__(self, response: aiohttp.ClientResponse, text: str) -> None:
        self.status, self.headers, self.text = response.status, response.headers, text
        self.url = response.url

    @property
    def outcome(self) -> str:
        """Which page it is, by its mark; empty for the page that explains, or no page."""
        found = re.search(r'data-outcome="([a-z-]+)"', self.text)
        return found[1] if found else ""

    @property
    def location(self) -> str:
        return self.headers["Location"]


class Visitor:
    """A person with a browser of their own, who presses buttons."""

    def __init__(self, there: Scene, public: str, http: aiohttp.ClientSession) -> None:
        self.there, self.public, self.http = there, public, http

    async def get(self, url: str, **headers: str) -> Answered:
        """Open an address, without following where it leads."""
        whole = url if url.startswith("http") else self.public + url
        async with self.http.get(
            URL(whole, encoded=True), headers=headers, allow_redirects=False
        ) as response:
            return Answered(response, await response.text())

    async def press(self, button: str, form: str | None = None) -> Answered:
        """Read the page and press a button on it, `agree` or `withdraw`."""
        if form is None:
            page = await self.get("/consent")
            (form, *_) = re.findall(r'name="form" value="(\w+)"', page.text)
        async with self.http.post(
            f"{self.public}/consent/{button}", data={"form": form}, allow_redirects=False
        ) as response:
            return Answered(response, await response.text())

    async def answer(self, where: str, answer: str = "allow") -> str:
        """Answer WeChat's dialog, or be led on without one; return where WeChat leads back to."""
        asked = await self.get(where.partition("#")[0])
        if asked.status == 302:
            return asked.location
        assert asked.status == 200
        assert "微信登录" in asked.text
        fields = re.findall(r'name="(\w+)" value="([^"]*)"', asked.text)
        query = {name: unescape(value) for name, value in fields if name != "answer"}
        base = URL(where.partition("?")[0])
        led = await self.get(str(base.with_query(query | {"answer": answer})))
        assert led.status == 302
        return led.location

    async def agree(self, answer: str = "allow") -> Answered:
        """Read, press the button, answer WeChat, and come back."""
        led = await self.press("agree")
        assert led.status == 303, led.text
        return await self.get(await self.answer(led.location, answer))

    async def withdraw(self) -> Answered:
        """Press the other button."""
        led = await self.press("withdraw")
        assert led.status == 303
        return await self.get(await self.answer(led.location))


class Asking:
    """A companion that asks for consent, with all that it stands on."""

    def __init__(self, there: Scene, public: str, settings: ConsentSettings) -> None:
        self.there, self.public, self.settings = there, public, settings
        consents = there.app[COMPANION].consents
        assert consents is not None
        self.consents: Consents = consents

    @asynccontextmanager
    async def visitor(self) -> AsyncIterator[Visitor]:
        """A browser without any cookie."""
        jar = aiohttp.CookieJar(unsafe=True, treat_as_secure_origin=[URL(self.public)])
        async with aiohttp.ClientSession(cookie_jar=jar) as http:
            yield Visitor(self.there, self.public, http)

    async def phone(self, **who: Any) -> str:
        """Say who opens WeChat's page; return their openid."""
        told = await self.there.control("/phone", {"appid": APPID, **who})
        return str(told["openid"])

    async def event(self, event: str, openid: str, **more: Any) -> dict[str, Any]:
        """Let WeChat push an event; return the status and text of the answer."""
        order = {
            "appid": APPID,
            "event": event,
            "openid": openid,
            "url": f"{self.public}/consent/events",
            "token": TOKEN,
            **more,
        }
        return dict(await self.there.control("/event", order))

    async def status_of(self, openid: str) -> tuple[str, str | None]:
        """What the companion shows of a follower."""
        _, page = await self.there.get("/v1/avatars?limit=100")
        (one,) = [one for one in page["avatars"] if one["openid"] == openid]
        return one["status"], one["avatar_url"]

    async def kept(self) -> list[str]:
        """Whose avatars are kept."""
        return [one.openid for one in await self.consents.all()]


def consent_settings(
    home: Path, listen: Address, over: dict[str, Any], sandbox: str
) -> ConsentSettings:
    given: dict[str, Any] = {
        "operator": "示例公司",
        "purpose": "在关注者墙上显示头像",
        "operator_en": "Example Ltd",
        "purpose_en": "to show it on the wall of followers",
        "keep_days": DAYS,
        "contact": "privacy@example.com",
        "public_url": f"http://127.0.0.1:{listen.port}",
        "listen": listen,
        "appid": APPID,
        "store": home / "consent.db",
        "authorize_url": f"{sandbox}/connect/oauth2/authorize",
        "message_token": Secret(TOKEN),
    }
    return ConsentSettings(**{**given, **over})


@asynccontextmanager
async def asking_scene(
    home: Path,
    sandbox: SandboxOptions | None = None,
    companion: dict[str, Any] | None = None,
    **over: Any,
) -> AsyncIterator[Asking]:
    """A companion that asks; `over` are other settings of [avatars.consent]."""
    with socket.socket() as sock:
        sock.setblocking(False)  # noqa: FBT003 -- the standard library's signature
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        listen = Address("tcp", "127.0.0.1", sock.getsockname()[1])
        made: Callable[[str], ConsentSettings] = partial(consent_settings, home, listen, over)
        async with scene(home, sandbox, consent=made, **(companion or {})) as there:
            parts = there.app[COMPANION]
            assert parts.options.consent is not None
            there.clock.unix = float(int(time.time()))  # the sandbox signs events by this clock
            async with asking(parts, [sock]):
                yield Asking(there, f"http://127.0.0.1:{listen.port}", parts.options.consent)


def query_of(url: str) -> dict[str, str]:
    """The parameters of a URL."""
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
