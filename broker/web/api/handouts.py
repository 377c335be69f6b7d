"""/v1/handouts: which client was handed which token version, and when."""

from typing import Any, Final

from aiohttp import web

from broker.core.handouts import KEPT_DAYS, Handout
from broker.core.ports import StoreError
from broker.http.problems import ProblemError, problem
from broker.tokens.keeper import Keeper
from broker.tokens.registry import Registry
from broker.web.connection.fast_path import ResponseCache
from broker.web.handouts import Handouts
from broker.web.params import NO_STORE, iso, keeper_of

RETRY_AFTER_S: Final = 10


class HandoutDesk:
    """The handler of its one route."""

    def __init__(
        self, registry: Registry, handouts: Handouts, response_cache: ResponseCache
    ) -> None:
        self._registry = registry
        self._handouts = handouts
        self._response_cache = response_cache

    def routes(self) -> list[web.RouteDef]:
        """Its one route."""
        return [web.get("/v1/handouts/{app}", self.get_handouts)]

    async def get_handouts(self, request: web.Request) -> web.Response:
        """Answer which client was handed which version, when, and who still holds an old one."""
        keeper = keeper_of(request, self._registry, "admin")
        if request.query_string:
            raise ProblemError(400, "invalid-parameter", "There are no query parameters here.")
        self._response_cache.account()
        try:
            rows = await self._handouts.of(keeper.account.id)
        except StoreError:
            return problem(503, "store-unavailable", "The store cannot be read now.", RETRY_AFTER_S)
        return web.json_response(described(keeper, rows), headers=NO_STORE)


def described(keeper: Keeper, rows: list[Handout]) -> dict[str, Any]:
    """The answer of the route."""
    version = keeper.credential.version
    return {
        "app": keeper.account.name,
        "appid": keeper.account.appid,
        "version": version,
        "kept_days": KEPT_DAYS,
        "handouts": [
            {
                "client": row.client,
                "version": row.version,
                "current": row.version == version,
                "count": row.count,
                "first": _moment(row.first_at),
                "last": _moment(row.last_at),
                "held": row.held,
                "last_held": _moment(row.held_at),
            }
            for row in rows
        ],
    }


def _moment(wall: float | None) -> str | None:
    return None if wall is None else iso(wall)
