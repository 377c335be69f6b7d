"""Responses that may be given again: which bytes, until when, and to which requests."""

import re
from collections.abc import Callable
from email.utils import formatdate
from typing import Final

from aiohttp import web

from broker.core.credential import NEVER
from broker.web.gate import Client
from broker.web.handed import Handed

# Returns a body, and the steady time until which it is true; None where a handler has to look.
Again = Callable[[], tuple[bytes, float] | None]
# Hears of answers that aiohttp did not write: the route, the client, which token they handed out,
# the status, how many answers, and a steady time that is not before the last of them.
OnAnswered = Callable[
    [web.AbstractResource | None, Client | None, Handed | None, int, int, float], None
]

MOST_CACHED: Final = 1024
LONGEST_REQUEST: Final = 4096  # bytes
HEAD_END: Final = b"\r\n\r\n"
# Headers after which something else may follow the head, or the protocol may change.
MORE: Final = re.compile(
    rb"\r\n(?:content-length|transfer-encoding|expect|upgrade):", re.IGNORECASE
)


class CachedResponse:
    """A response, the steady time until which it may be given, and how often it has been given.

    `app` is the app that the response is about; None if it is about several, or about none.
    """

    __slots__ = (
        "_again",
        "_client",
        "_handed",
        "_head",
        "_resource",
        "_status",
        "app",
        "count",
        "data",
        "until",
    )

    def __init__(
        self,
        response: web.Response,
        again: Again,
        app: str | None = None,
        resource: web.AbstractResource | None = None,
        client: Client | None = None,
        handed: Handed | None = None,
    ) -> None:
        self._head = [
            f"HTTP/1.1 {response.status} {response.reason}",
            *(f"{name}: {value}" for name, value in response.headers.items()),
        ]
        self._again = again
        self._resource, self._client, self._status = resource, client, response.status
        self._handed = handed
        self.app = app
        self.count = 0  # since the last report
        self.data = b""
        self.until = NEVER

    def renew(self, now: float) -> bool:
        """Write the response anew, as aiohttp would. Return True if it may be given now."""
        if (found := self._again()) is None:
            return False
        body, self.until = found
        fresh = {"Content-Length": str(len(body)), "Date": formatdate(usegmt=True)}
        names = ((line, line.partition(":")[0]) for line in self._head)
        head = [f"{name}: {fresh[name]}" if name in fresh else line for line, name in names]
        self.data = "\r\n".join([*head, "", ""]).encode() + body
        return now < self.until

    def report(self, on_answered: OnAnswered, now: float) -> None:
        """Report how often the response has been given since the last report, if at all."""
        if self.count:
            last = min(self.until, now)
            about = self._resource, self._client, self._handed
            on_answered(*about, self._status, self.count, last)
            self.count = 0


class CachedResponses:
    """The cached responses for one kind of socket, by the bytes of the request: `by_request`."""

    def __init__(self, now: Callable[[], float], on_answered: OnAnswered) -> None:
        self.by_request: dict[bytes, CachedResponse] = {}
        self._now = now
        self._on_answered = on_answered

    def put(self, request: bytes, response: CachedResponse) -> None:
        """Keep a response. If there are :data:`MOST_CACHED` already, all others are dropped."""
        if len(self.by_request) >= MOST_CACHED:
            self.drop()
        if (older := self.by_request.get(request)) is not None:
            older.report(self._on_answered, self._now())
        self.by_request[request] = response

    def drop(self, app: str | None = None) -> None:
        """Drop what is about that app or about no single app; without an app, everything."""
        self.report()
        if app is None:
            self.by_request.clear()
            return
        about = {None, app}
        for request in [key for key, one in self.by_request.items() if one.app in about]:
            del self.by_request[request]

    def report(self) -> None:
        """Report how often each response has been given since the last report."""
        now = self._now()
        for one in self.by_request.values():
            one.report(self._on_answered, now)


def is_one_request(data: bytes) -> bool:
    """Return True if a chunk is exactly one GET request without a body, whoever parses it."""
    return (
        data.startswith(b"GET ")
        and len(data) <= LONGEST_REQUEST
        and data.find(HEAD_END) == len(data) - len(HEAD_END)
        and data.count(b"\n") == data.count(b"\r") == data.count(b"\r\n")
        and MORE.search(data) is None
    )
