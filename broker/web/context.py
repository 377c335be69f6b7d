"""What handlers need."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web
from multidict import CIMultiDict

from broker.core.credential import Account, Endpoint
from broker.core.ports import Node
from broker.logins.logins import Logins
from broker.tokens.keeper import Keeper
from broker.tokens.registry import Registry
from broker.web.client_stats import ClientStats
from broker.web.connection.fast_path import ResponseCache
from broker.web.page.plot import Plot

History = Callable[[float, Account], Awaitable[list[dict[str, Any]]]]


async def _no_history(_since: float, _account: Account) -> list[dict[str, Any]]:
    return []


@dataclass(frozen=True, slots=True)
class Edge:
    """What handlers need.

    `patience_s`: how long a request waits for a refresh under way; `wall`: unix time.

    `history` reads the calls of an account since a wall time; raises StoreError.
    """

    registry: Registry
    patience_s: float
    response_cache: ResponseCache
    wall: Callable[[], float] = time.time
    client_stats: ClientStats = field(default_factory=lambda: ClientStats(time.monotonic))
    history: History = _no_history
    tickets_of: Callable[[str], Mapping[str, Keeper]] = (
        lambda _: {}
    )  # by type, those an app has now
    nodes: Callable[[], Sequence[Node]] = tuple  # who shares the store
    logins: Logins | None = None
    rendered: dict[str, tuple[object, bytes, CIMultiDict[str]]] = field(
        default_factory=dict
    )  # by app, the last answer
    plots: dict[str, tuple[object, Plot]] = field(default_factory=dict)  # by app, the last drawn

    def keeps_no_token(self, app: str) -> bool:
        """Return True if the app of that name or AppID is one that only logs in."""
        account = self.logins.find(app) if self.logins is not None else None
        return account is not None and account.endpoint is Endpoint.NONE


EDGE: Final = web.AppKey("edge", Edge)
