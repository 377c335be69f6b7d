"""A sandbox behind a real socket, on a clock that the test sets."""

from typing import Any

from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

from broker.sandbox import SandboxOptions, create_app
from broker.sandbox.state import STATE, SandboxState

T0 = 1_800_000_000.0 // 86_400 * 86_400 - 8 * 3600  # midnight in Beijing
APP, SECRET = "wx0123456789abcdef", "s3cret"


class SandboxBench:
    """A sandbox behind a real socket, its clock in hand."""

    def __init__(self) -> None:
        self.time = T0
        self.client: TestClient[Any, Any]
        self.state: SandboxState

    async def opened(
        self,
        aiohttp_client: AiohttpClient,
        options: SandboxOptions = SandboxOptions(),  # noqa: B008
    ) -> "SandboxBench":
        """Start it."""
        app = create_app(options, lambda: self.time)
        self.client, self.state = await aiohttp_client(app), app[STATE]
        return self

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        """Ask by GET; WeChat answers 200 whatever happens."""
        answer = await self.client.get(path, params=query)
        assert answer.status == 200
        return dict(await answer.json(content_type=None))

    async def post(self, path: str, body: object, **query: str) -> dict[str, Any]:
        """Ask by POST with a JSON body."""
        answer = await self.client.post(path, json=body, params=query)
        assert answer.status in {200, 201}, await answer.text()
        return dict(await answer.json(content_type=None))

    async def classic(self, appid: str = APP, secret: str = SECRET) -> dict[str, Any]:
        """Make one classic token call."""
        return await self.get(
            "/cgi-bin/token", grant_type="client_credential", appid=appid, secret=secret
        )

    async def stable(self, *, force: bool = False, appid: str = APP) -> dict[str, Any]:
        """Make one stable token call."""
        asked = {
            "grant_type": "client_credential",
            "appid": appid,
            "secret": SECRET,
            "force_refresh": force,
        }
        return await self.post("/cgi-bin/stable_token", asked)

    async def errcode(self, granted: dict[str, Any]) -> int:
        """Say what a data API thinks of the token."""
        answer = await self.get("/cgi-bin/get_api_domain_ip", access_token=granted["access_token"])
        return int(answer.get("errcode", 0))

    async def calls(self, since: int = 0) -> list[dict[str, Any]]:
        """Read the log of token calls."""
        return list(await (await self.client.get(f"/sandbox/calls?since={since}")).json())

    async def account(self, appid: str = APP) -> dict[str, Any]:
        """Read what is known of one account."""
        return dict((await self.get("/sandbox"))["accounts"][appid])
