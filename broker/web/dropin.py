"""WeChat's own token paths, so that an SDK becomes a client by one changed line (wechat.md §6).

The `secret` of a request is the client's broker key, never the AppSecret. Answers are WeChat's: HTTP 200 with an errcode
and its words, even on failure, since on anything else some SDKs print the URL with the key in it.

An SDK cannot say which token was refused: it only asks again. So a client that asks again for a token it was handed
already is taken to report it; WeChat is asked, at most once per `verify_gap`, and only on its word the token is replaced.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from aiohttp import web

from broker.core.serving import Code, Served, Unavailable
from broker.keeper import Keeper
from broker.web.api import BODY_DEADLINE_S, EDGE, NO_STORE
from broker.web.gate import CLIENT, Client, Gate, authenticates

PATHS: Final = ("/{slashes:/*}cgi-bin/token", "/{slashes:/*}cgi-bin/stable_token")
GRANT: Final = "client_credential"
WINDOW_S: Final = 60.0
MOST_IN_WINDOW: Final = 100  # answers to one client about one version: a loop ends, fifty threads at a start do not
MOST_KNOWN: Final = 4096
WORDS: Final = {
    -1: "system error",
    40002: "invalid grant_type",
    40013: "invalid appid",
    40125: "invalid appsecret",
    41002: "appid missing",
    41004: "appsecret missing",
    45009: "reach max api daily quota limit",
    45011: "api minute-quota reach limit, must slower, retry next minute",
    47001: "data format error",
}
THROTTLED: Final = {Code.REPORT_THROTTLED, Code.UPSTREAM_UNAVAILABLE}


class Refusal(Exception):  # noqa: N818 -- an answer, raised
    """An errcode of WeChat's, and what the broker has to add."""

    def __init__(self, errcode: int, why: str = "") -> None:
        super().__init__(errcode)
        self.answer = {"errcode": errcode, "errmsg": f"{WORDS[errcode]} {why}".strip()}


@dataclass(slots=True)
class Handed:
    """What a client was handed last: the version, when, and how often in the window that began then."""

    version: str | None
    at: float
    began: float
    times: int


class DropIn:
    """The handlers, and what they remember of each client and app."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._handed: dict[tuple[str, str], Handed] = {}

    def routes(self) -> list[web.RouteDef]:
        """GET and POST on both paths, with any number of leading slashes: SDKs differ in all of it."""
        return [web.route(method, path, self.get_token) for path in PATHS for method in ("GET", "POST")]

    @authenticates
    async def get_token(self, request: web.Request) -> web.Response:
        """The token as WeChat would hand it out."""
        try:
            answer = await self._answer(request, await _parameters(request))
        except Refusal as refusal:
            answer = refusal.answer
        return web.json_response(answer, headers=NO_STORE)

    async def _answer(self, request: web.Request, said: dict[str, Any]) -> dict[str, Any]:
        edge, arrived_at = request.app[EDGE], request.app[EDGE].lane.now()
        client, keeper = self._identify(request, said)
        request[CLIENT] = client
        handed = self._handed.get((client.name, keeper.account.name))
        self._bound(handed, keeper, arrived_at)
        served = keeper.serve() or await keeper.get(0, edge.patience_s)
        if _asks_again(handed, keeper, arrived_at) or _wants_another(said):
            served = await _doubted(keeper, edge.patience_s) or served
        if not isinstance(served, Served):
            raise Refusal(45009 if served.code is Code.QUOTA_EXHAUSTED else -1, f"(token-broker: {served.detail})")
        self._note(client, keeper, edge.lane.now())
        token = served.credential.token
        return {"access_token": token.value.reveal() if token else "", "expires_in": served.expires_in}

    def _identify(self, request: web.Request, said: dict[str, Any]) -> tuple[Client, Keeper]:
        """Who asks for what, in WeChat's order of complaints; who may not use an app learns nothing of it."""
        if said.get("grant_type") != GRANT:
            raise Refusal(40002)
        appid, secret = (str(said.get(name) or "") for name in ("appid", "secret"))
        if not appid or not secret:
            raise Refusal(41004 if appid else 41002)
        client = self._gate.client_of(secret)
        if client is None:
            raise Refusal(40125)
        keeper = request.app[EDGE].roster.find(appid)
        if keeper is None or "read" not in client.scopes or not client.may_use(keeper.account.name):
            raise Refusal(40013)
        return client, keeper

    def _bound(self, handed: Handed | None, keeper: Keeper, now: float) -> None:
        is_same = handed is not None and handed.version == keeper.credential.version
        if handed and is_same and handed.times >= MOST_IN_WINDOW and now < handed.began + WINDOW_S:
            raise Refusal(45011)

    def _note(self, client: Client, keeper: Keeper, now: float) -> None:
        key, version = (client.name, keeper.account.name), keeper.credential.version
        handed = self._handed.get(key)
        if handed is None or handed.version != version or now >= handed.began + WINDOW_S:
            if len(self._handed) >= MOST_KNOWN:
                self._handed.clear()
            self._handed[key] = Handed(version, now, now, 1)
        else:
            handed.at, handed.times = now, handed.times + 1


def _asks_again(handed: Handed | None, keeper: Keeper, arrived_at: float) -> bool:
    """Whether the client had the current token already when it asked: those who arrived together did not."""
    return handed is not None and handed.version == keeper.credential.version and arrived_at > handed.at


def _wants_another(said: dict[str, Any]) -> bool:
    return said.get("force_refresh") in (True, "true", "1")


async def _doubted(keeper: Keeper, patience_s: float) -> Served | Unavailable | None:
    """What comes of taking this for a report; None where the token held before is as good an answer."""
    answer = await keeper.report(patience_s, version=keeper.credential.version)
    if isinstance(answer, Unavailable):
        return keeper.serve() or answer
    return answer[1]


async def _parameters(request: web.Request) -> dict[str, Any]:
    """Query and body, JSON or form, whatever the content type says."""
    said: dict[str, Any] = dict(request.query)
    if request.method == "POST" and request.can_read_body:
        try:
            async with asyncio.timeout(BODY_DEADLINE_S):
                body = await request.read()
            more = json.loads(body) if body.lstrip()[:1] == b"{" else dict(parse_qsl(body.decode()))
        except (TimeoutError, ValueError, RecursionError, ConnectionError):
            raise Refusal(47001) from None
        said |= more if isinstance(more, dict) else {}
    return said
