"""The clients on each node: getters, a watcher, reporters, and people who order refreshes.

Each writes down what it got.
"""

import asyncio
import hashlib
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from tests.harness.processes import ME
from tests.history.record import Answer
from tests.history.world import MAIN, POOR, Host, World

PAUSE_S: Final = 0.06  # of a getter
TIMEOUT: Final = aiohttp.ClientTimeout(total=6, connect=2)
APPIDS: Final = {"main": MAIN, "poor": POOR}


@dataclass
class Client:
    """Asks one node, whatever life it is in."""

    world: World
    host: Host
    session: aiohttp.ClientSession
    chance: random.Random
    has: dict[str, str] = field(default_factory=dict)  # by app: the version it got last

    async def ask(
        self, method: str, app: str, path: str = "", body: object = None, **headers: str
    ) -> Answer | None:
        """One request; None where it was not answered."""
        address, life = self.host.address, self.host.life
        if not address:
            await asyncio.sleep(PAUSE_S)
            return None
        sent_at = time.time()
        try:
            async with self.session.request(
                method, f"{address}/v1/tokens/{app}{path}", json=body, headers={**ME, **headers}
            ) as response:
                content = await response.read()
                said = json.loads(content or b"{}")
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            await asyncio.sleep(PAUSE_S)
            return None
        answer = self._noted(
            said,
            Answer(
                sent_at, time.time(), self.host.name, life, APPIDS[app], method, response.status
            ),
        )
        self.world.history.answers.append(answer)
        if answer.version:
            self.has[app] = answer.version
        return answer

    @staticmethod
    def _noted(said: dict[str, Any], bare: Answer) -> Answer:
        token = said.get("access_token")
        return Answer(
            bare.sent_at,
            bare.received_at,
            bare.node,
            bare.life,
            bare.appid,
            bare.asked,
            bare.status,
            said.get("version", ""),
            hashlib.sha256(token.encode()).hexdigest() if token else "",
            said.get("expires_in", 0),
            said.get("code", ""),
        )

    async def get(self) -> None:
        """Ask for either token, all the time."""
        while True:
            for app in APPIDS:
                await self.ask("GET", app)
                await asyncio.sleep(PAUSE_S)

    async def watch(self) -> None:
        """Wait for the next version, all the time."""
        while True:
            etag = {"If-None-Match": f'"{self.has["main"]}"'} if "main" in self.has else {}
            await self.ask("GET", "main", "?wait=3", **etag)

    async def report(self) -> None:
        """Say now and then that the token is refused, which as a rule is not true."""
        while True:
            await asyncio.sleep(self.chance.uniform(0.3, 1.2))
            app = self.chance.choice(list(APPIDS))
            if app in self.has:
                await self.ask("POST", app, "/report", {"version": self.has[app]})
            else:
                await self.ask("GET", app)

    async def order(self) -> None:
        """Order a refresh now and then."""
        while True:
            await asyncio.sleep(self.chance.uniform(0.2, 1.0))
            await self.ask("POST", self.chance.choice(list(APPIDS)), "/refresh")


@asynccontextmanager
async def crowd(world: World, seed: int) -> AsyncIterator[None]:
    """Clients on each node, as long as it lasts. Raises what one of them raised."""
    async with aiohttp.ClientSession(
        timeout=TIMEOUT, connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        tasks = []
        for host in world.hosts:
            for number, role in enumerate((Client.get, Client.watch, Client.report, Client.order)):
                client = Client(
                    world, host, session, random.Random(seed + 10 * host.number + number)
                )
                tasks.append(asyncio.create_task(role(client), name=f"{role.__name__} {host.name}"))
        try:
            yield
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)
