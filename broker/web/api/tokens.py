"""`/v1/tokens`: tokens, reports and refreshes.

A handler reads the request, asks a keeper and renders what it says. It decides nothing.
"""

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from aiohttp import hdrs, web

from broker.core.errcodes import TOKEN_REFUSED
from broker.core.serving import Served, Unavailable
from broker.http.problems import ProblemError
from broker.tokens.keeper import Keeper
from broker.tokens.registry import Registry
from broker.web.connection.fast_path import AGAIN, Again, ResponseCache
from broker.web.connection.long_poll import Wait
from broker.web.handed import note_handed
from broker.web.params import (
    LONGEST_TTL_S,
    LONGEST_WAIT_S,
    NO_STORE,
    fields_of,
    iso,
    keeper_of,
    matches,
    numbers,
    unavailable,
)


class TokenDesk:
    """The handlers.

    `patience_s` is how long a request waits for a refresh that is under way; `wall` gives unix
    time.
    """

    def __init__(
        self,
        registry: Registry,
        response_cache: ResponseCache,
        patience_s: float,
        wall: Callable[[], float],
    ) -> None:
        self._registry = registry
        self._response_cache = response_cache
        self._patience_s = patience_s
        self._wall = wall

    def routes(self) -> list[web.RouteDef]:
        """Return every route of /v1/tokens."""
        return [
            web.get("/v1/tokens/{app}", self.get_token),
            web.post("/v1/tokens/{app}/report", self.report_token),
            web.post("/v1/tokens/{app}/refresh", self.refresh_token),
        ]

    async def get_token(self, request: web.Request) -> web.Response:
        """Answer with the token; or 304 if the client has it, at once or after `wait` seconds."""
        keeper = keeper_of(request, self._registry, "read")
        wait, min_ttl = numbers(request, wait=LONGEST_WAIT_S, min_ttl=LONGEST_TTL_S)
        if hdrs.IF_NONE_MATCH in request.headers:
            unchanged = await self._unless_changed(request, keeper, wait, min_ttl)
            if unchanged is not None:
                return unchanged
        served = await self._get(request, keeper, wait, min_ttl)
        note_handed(request, keeper)
        if not isinstance(served, Served):
            return unavailable(served)
        if not wait:
            wall = self._wall
            request[AGAIN] = self._again(
                keeper, served, min_ttl, lambda held: token_body(keeper, held, wall())
            )
        return self._token(keeper, served)

    async def _unless_changed(
        self, request: web.Request, keeper: Keeper, wait: float, min_ttl: float
    ) -> web.Response | None:
        """Answer 304 if the client has the version in force, at once or when the time is up."""
        version = keeper.credential.version
        if not version or not matches(request, version):
            return None
        note_handed(request, keeper)
        is_held = not wait and keeper.serve(min_ttl) is not None
        if not is_held and await self._watch(request, keeper, wait, min_ttl) is not None:
            return None
        held = keeper.serve(min_ttl)
        if held is None:
            return None
        if not wait:
            request[AGAIN] = self._again(keeper, held, min_ttl, lambda _: b"")
        return _unchanged(version)

    async def _get(
        self, request: web.Request, keeper: Keeper, wait: float, min_ttl: float
    ) -> Served | Unavailable:
        if not wait:
            return await keeper.get(min_ttl, self._patience_s)
        if (served := keeper.serve(min_ttl)) is not None:
            return served
        getting = keeper.get(min_ttl, max(wait, self._patience_s))
        return await self._response_cache.bounded(request, getting) or await keeper.get(min_ttl)

    async def _watch(
        self, request: web.Request, keeper: Keeper, wait: float, min_ttl: float
    ) -> Served | Unavailable | None:
        """Wait for another version; None if the time is up and there is none.

        Whoever sends the same bytes meanwhile waits in the same way (long_poll.py).
        """
        registry, version = self._registry, keeper.credential.version or ""

        async def over(seconds: float) -> bool:
            await keeper.watch(version, seconds)
            return keeper.credential.version != version or registry.stopping

        def answer() -> web.Response | None:
            served = keeper.serve(min_ttl)
            if served is None or registry.stopping:
                return None
            if served.credential.version == version:
                return _unchanged(version)
            return self._token(keeper, served)

        if wait:
            # With `*` the next version matches as well: a request that is handed back would not
            # know which version it has waited for, so such requests wait in aiohttp.
            is_only = all(tag.value == version for tag in request.if_none_match or ())
            self._response_cache.join(request, Wait(wait, over, answer) if is_only else None)
        watching = keeper.watch(version, self._response_cache.left(request, wait))
        bounded = await self._response_cache.bounded(request, watching)
        return bounded or await keeper.watch(version, 0)

    async def report_token(self, request: web.Request) -> web.Response:
        """Take a report. The answer is the token to go on with."""
        keeper = keeper_of(request, self._registry, "report")
        fields = await fields_of(request, {"version": str, "access_token": str, "errcode": int})
        version, token = fields.get("version"), fields.get("access_token")
        if (version is None) == (token is None):
            raise ProblemError(
                422,
                "invalid-body",
                "Give either `version` or `access_token`, of the token that was refused.",
            )
        if fields.get("errcode", 40001) not in TOKEN_REFUSED:
            known = ", ".join(map(str, sorted(TOKEN_REFUSED)))
            raise ProblemError(
                422,
                "not-a-token-error",
                f"`errcode` {fields['errcode']} does not say the token is bad; these do: {known}.",
            )
        answer = await keeper.report(self._patience_s, version=version, token=token)
        if isinstance(answer, Unavailable):
            return unavailable(answer)
        outcome, served = answer
        note_handed(request, keeper, version)
        return self._token(keeper, served, outcome=outcome.value)

    async def refresh_token(self, request: web.Request) -> web.Response:
        """Spend a token call now.

        `{"force": true}` makes the stable endpoint mint another token, which kills the old one.
        """
        keeper = keeper_of(request, self._registry, "admin")
        fields = await fields_of(request, {"force": bool}) if request.can_read_body else {}
        answer = await keeper.refresh(self._patience_s, force=fields.get("force", False))
        if isinstance(answer, Unavailable):
            return unavailable(answer)
        note_handed(request, keeper)
        return self._token(keeper, answer)

    def _token(self, keeper: Keeper, served: Served, **more: str) -> web.Response:
        body = token_body(keeper, served, self._wall(), **more)
        headers = {
            **NO_STORE,
            hdrs.ETAG: f'"{served.credential.version}"',
            hdrs.CONTENT_TYPE: "application/json",
        }
        return web.Response(body=body, headers=headers)

    @staticmethod
    def _again(
        keeper: Keeper, first: Served, min_ttl: float, render: Callable[[Served], bytes]
    ) -> Again:
        """Return how the same version is handed out again, for as long as it may be.

        It holds no reference to the request: the request refers to it, and such a circle would be
        garbage that only the collector finds, one for each request.
        """
        credential = first.credential

        def again() -> tuple[bytes, float] | None:
            served = keeper.serve(min_ttl)
            if served is None or served.credential is not credential:
                return None
            return render(served), served.until

        return again


def token_body(keeper: Keeper, served: Served, wall: float, **more: str) -> bytes:
    """Return the token object as JSON; `wall` is unix time."""
    account = keeper.account
    body: dict[str, Any] = {
        "app": account.name,
        "appid": account.appid,
        "access_token": served.token.value.reveal(),
        "expires_in": served.expires_in,
        "expires_at": iso(wall + served.expires_in),
        "token_expires_in": served.token_expires_in,
        "version": served.credential.version,
        "state": served.state.value,
        **more,
    }
    return json.dumps(body).encode()


def _unchanged(version: str) -> web.Response:
    return web.Response(
        status=HTTPStatus.NOT_MODIFIED, headers={**NO_STORE, hdrs.ETAG: f'"{version}"'}
    )
