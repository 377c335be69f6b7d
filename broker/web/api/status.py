"""`/v1/status`: the state of everything, without a token or a secret.

The command `status`, the status page and the metrics show the same.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from aiohttp import web

from broker import __version__
from broker.config.notices import Notice
from broker.core.credential import Account
from broker.core.errcodes import Failure
from broker.core.ports import Clock, Node
from broker.core.quota import Usage
from broker.logins.record import LoginRecord
from broker.tokens.keeper import Keeper
from broker.tokens.registry import Registry
from broker.web.gate import open_to_browsers
from broker.web.params import NO_STORE, iso
from broker.web.reach import Reach
from broker.web.shared_pages import SharedPage, SharedPages, shared_page
from broker.web.words import english

LOGIN_ONLY: Final = "login-only"  # the state of an app that keeps no token
STARTED: Final = time.monotonic()


def uptime() -> int:
    """Return whole seconds since the start."""
    return int(time.monotonic() - STARTED)


class StatusReport:
    """The state of all apps, as data, and the route that shows it.

    `tickets_of` returns an app's tickets by type, those that it has now; `nodes` returns the
    brokers that share the store; `login_record_of` returns how an app's logins go, None where
    nobody has logged in. `notices` are what the configuration permits though it is dangerous, set
    by the wiring. All methods but the handler may run on any thread.
    """

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        pages: SharedPages,
        tickets_of: Callable[[str], Mapping[str, Keeper]] = lambda _: {},
        nodes: Callable[[], Sequence[Node]] = tuple,
        login_record_of: Callable[[str], LoginRecord | None] = lambda _: None,
        reach: Reach = Reach(),  # noqa: B008 -- frozen
    ) -> None:
        self.registry = registry
        self.clock = clock
        self.tickets_of = tickets_of
        self.reach = reach
        self.notices: Sequence[Notice] = ()
        self._pages = pages
        self._nodes = nodes
        self._login_record_of = login_record_of

    def routes(self) -> list[web.RouteDef]:
        """Return the one route."""
        return [web.get("/v1/status", self.get_status)]

    @open_to_browsers
    async def get_status(self, request: web.Request) -> web.Response:
        """Answer with every app, without its token."""
        return (await self._pages.get("status", self._page)).response(request)

    async def _page(self) -> SharedPage:
        return await self._pages.on_thread(
            lambda: shared_page(
                json.dumps(self.everything()).encode(), "application/json; charset=utf-8", NO_STORE
            )
        )

    def keepers(self) -> Sequence[Keeper]:
        """Return the keepers of all apps: apps may come and go while another thread reads them."""
        return tuple(self.registry)

    def everything(self) -> dict[str, Any]:
        """Return what /v1/status answers."""
        return {
            "version": __version__,
            "uptime": uptime(),
            "stopping": self.registry.stopping,
            "apps": [
                *(self.app(keeper) for keeper in self.keepers()),
                *(self.login_only(account) for account in self.registry.login_only),
            ],
            "nodes": self.nodes(),
            "notifications": self.reach.notifications(),
            "notices": [{"code": one.code, "text": one.text} for one in self.notices],
        }

    def nodes(self) -> list[dict[str, Any]]:
        """Return who shares the store, and how many seconds ago each was seen.

        Both ends of that time are the store's own clock; nobody's wall clock is compared with it.
        """
        known = self._nodes()
        # We ourselves are among them, and are seen every few seconds.
        now = max((node.seen_at for node in known), default=0.0)
        accounts = [keeper.account for keeper in self.keepers()]
        return [
            {
                "node": node.name,
                "seen_ago": round(now - node.seen_at),
                "notified_ago": (
                    None if node.notified_at is None else max(0, round(now - node.notified_at))
                ),
                "versions": {account.name: node.versions.get(account.id) for account in accounts},
            }
            for node in known
        ]

    def app(self, keeper: Keeper) -> dict[str, Any]:
        """Return one app, without its token."""
        second_issuer, spent = keeper.credential.second_issuer, keeper.usage()
        return {
            "app": keeper.account.name,
            "appid": keeper.account.appid,
            "endpoint": keeper.account.endpoint.value,
            **_held(keeper, spent),
            "quota": {
                "limit": spent.limit,
                "used_today": spent.today,
                "used_24h": spent.last_24h,
                "remaining": spent.remaining,
            },
            "second_issuer": {
                "suspected": second_issuer.suspected,
                "since": None if second_issuer.since is None else iso(second_issuer.since),
                "count": second_issuer.count,
            },
            "store_error": keeper.store_error,
            "sinks": list(self.reach.sinks_of(keeper.account.name)),
            "tickets": {
                kind: _held(ticket, ticket.usage(), english.TICKET)
                for kind, ticket in self.tickets_of(keeper.account.name).items()
            },
            "logins": self.logins(keeper.account.name),
        }

    def login_only(self, account: Account) -> dict[str, Any]:
        """Return an app that keeps no token: what is said of a token is said of none."""
        return {
            "app": account.name,
            "appid": account.appid,
            "endpoint": account.endpoint.value,
            "state": LOGIN_ONLY,
            "version": None,
            "expires_in": 0,
            "token_expires_in": 0,
            "next_refresh_in": 0,
            "last_error": None,
            "quota": {"limit": 0, "used_today": 0, "used_24h": 0, "remaining": 0},
            "second_issuer": {"suspected": False, "since": None, "count": 0},
            "store_error": None,
            "tickets": {},
            "logins": self.logins(account.name),
        }

    def login_record(self, app: str) -> LoginRecord:
        """Return how an app's logins have gone since the start."""
        return self._login_record_of(app) or LoginRecord()

    def logins(self, app: str) -> dict[str, Any]:
        """Return the same as data; `news` is what a person must see to."""
        record = self.login_record(app)
        failure, words = record.failure, english.FAILURES
        return {
            "outcomes": record.by_outcome(),
            "last_at": None if record.last_at is None else iso(record.last_at),
            "last_failure": failure
            and {
                "kind": record.failed_kind,
                "errcode": failure.errcode,
                "reason": words.reason(failure),
                "at": iso(failure.wall),
            },
            "news": record.news and _error(record.news, words.advice(record.news)),
        }


def _error(failure: Failure, advice: str) -> dict[str, Any]:
    """Return what went wrong, and what to do about it, for people."""
    return {
        "class": failure.kind.value,
        "errcode": failure.errcode,
        "reason": english.FAILURES.reason(failure),
        "advice": advice,
        "ip": failure.ip,
        "rid": failure.rid,
        "at": iso(failure.wall),
    }


def _held(keeper: Keeper, spent: Usage, thing: str = english.FAILURES.token) -> dict[str, Any]:
    """Return the state of a token, or of another `thing` that is kept like one."""
    credential, served = keeper.credential, keeper.serve()
    failure, words = credential.failure, english.FAILURES
    return {
        "state": served.state.value if served else "unavailable",
        "version": credential.version,
        "expires_in": served.expires_in if served else 0,
        "token_expires_in": served.token_expires_in if served else 0,
        "next_refresh_in": max(0, round(keeper.next_call_in())),
        "last_error": failure and _error(failure, words.advice_beside(failure, spent, thing)),
    }
