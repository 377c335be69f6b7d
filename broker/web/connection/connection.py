"""One connection: counted from open to close, answered from the cache, waiting, or aiohttp's.

Its state says who reads the next chunk:

    NEW ── full ─────────────────────────────► CLOSED   (from any state: the transport is lost)
     │
     ├── beyond the cap ──► PROBATION ── anything but a probe ──► CLOSED
     │                          │ a probe
     ▼                          ▼
    IDLE ◄──────────────────────┘
     │ ▲
     │ ├── its answer is cached: it is written at once, the connection stays IDLE
     │ │
     │ ├── others wait with the same bytes ────► WAITING ── answered by the group ──► IDLE
     │ │                                            │ handed back
     │ │                                            ▼
     │ ├── another regular request ─────────────► ASKED ── the handler begins ──► ANSWERING
     │ └──────────────────── the answer has been written ────────────────────────────┘
     │
     └── anything irregular, from any of these states ──► AIOHTTP, for good

A chunk is regular if it is exactly one request without a body. The cache may only be asked with a
chunk that cannot be part of something else, a body or the rest of a header. So it is asked while
every earlier chunk of the connection was regular, and has been answered. A chunk that comes while a
request is unanswered, a peer that does not read, and an answer that ends the connection are
irregular too.
"""

import asyncio
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import Enum, auto
from typing import Final, NamedTuple, Protocol, cast

from aiohttp import web

from broker.core.credential import NEVER
from broker.web.connection import aiohttp_internals
from broker.web.connection.cached_response import CachedResponse, CachedResponses, is_one_request
from broker.web.connection.long_poll import PollGroup, PollGroups

# What is answered even where all connections are taken: is it alive, is it ready, how is it?
PROBE: Final = re.compile(rb"GET /(?:livez|readyz|health|metrics) HTTP/1\.[01]\r\n")


class State(Enum):
    """Who reads the next chunk of a connection. The module's docstring has the transitions."""

    NEW = auto()  # nobody: it is not connected yet
    PROBATION = auto()  # all connections are taken: only a probe is read
    IDLE = auto()  # the cache, the poll groups, or aiohttp
    ASKED = auto()  # aiohttp has a request and has not begun with it
    ANSWERING = auto()  # aiohttp has begun with it, and may have answered since
    WAITING = auto()  # a poll group has its request
    AIOHTTP = auto()  # aiohttp has the connection for good
    CLOSED = auto()  # nobody


class FastPath(NamedTuple):
    """What the connections of one kind of socket share: cached responses, and who waits."""

    responses: CachedResponses
    groups: PollGroups


class Admission(Protocol):
    """Whoever decides who may hold a connection. `now` returns steady seconds."""

    now: Callable[[], float]

    def admit(self, connection: "Connection") -> State:
        """Return the state that a new connection begins in, CLOSED to turn it away."""

    def forget(self, connection: "Connection") -> None:
        """Take note that a connection which was admitted is closed."""

    def body_missing(self, connection: "Connection") -> AbstractContextManager[None]:
        """While this lasts, the body of a request on that connection has not come."""


NewHandler = Callable[[object], asyncio.Protocol]


class Connection(asyncio.Protocol):
    """One connection. aiohttp's protocol of it is made when it is first needed.

    A crowd that connects and says nothing, or waits, costs no more than this object. `new_handler`
    makes aiohttp's protocol; without `fast_path` that reads everything.
    """

    __slots__ = (
        "_cached",
        "_groups",
        "_new_handler",
        "_now",
        "_waited_since",
        "_write",
        "admission",
        "group",
        "handler",
        "heard_at",
        "is_unix",
        "peer",
        "request",
        "state",
        "transport",
    )

    def __init__(
        self,
        admission: Admission,
        new_handler: NewHandler,
        fast_path: FastPath | None = None,
        *,
        is_unix: bool = False,
    ) -> None:
        self.state = State.NEW
        self.is_unix = is_unix
        self.peer = ""  # its address; empty for loopback and Unix sockets, which services share
        self.heard_at = NEVER  # when its last whole request came (steady seconds)
        self.request: bytes | None = None  # the regular request that is not answered yet
        self.handler: asyncio.Protocol | None = None
        self.transport: asyncio.Transport | None = None  # once it is admitted
        self.admission = admission
        self._new_handler = new_handler
        self._now = admission.now
        self._groups = fast_path.groups if fast_path is not None else None
        self._cached: dict[bytes, CachedResponse] | None = (
            fast_path.responses.by_request if fast_path is not None else None
        )
        self.group: PollGroup | None = None  # while it is WAITING
        # When a request that was handed back to aiohttp began to wait (loop time).
        self._waited_since: float | None = None

    # --- asyncio's protocol -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin in the state that admission gives; without admission, close without an answer."""
        stream = cast("asyncio.Transport", transport)
        self._write, self.peer = stream.write, peer_of(stream)
        self.state = self.admission.admit(self)
        if self.state is State.CLOSED:
            stream.abort()
        else:
            self.transport = stream

    def data_received(self, data: bytes) -> None:
        """Answer a chunk from the cache, have it wait, or hand it to aiohttp."""
        if (self.state is State.IDLE or self._is_idle_again(data)) and self._cached is not None:
            cached = self._cached.get(data)
            if cached is not None and ((now := self._now()) < cached.until or cached.renew(now)):
                cached.count += 1
                self.heard_at = now
                self._write(cached.data)
                return
            if is_one_request(data):
                self._ask(data)
                return
        if self.state is not State.CLOSED:
            self.leave_to_aiohttp()
            self._feed(data)

    def pause_writing(self) -> None:
        """Leave a peer that does not read to aiohttp, which knows how to wait for it."""
        self.leave_to_aiohttp()
        self.wake().pause_writing()

    def resume_writing(self) -> None:
        """Tell aiohttp."""
        if self.handler is not None:
            self.handler.resume_writing()

    def eof_received(self) -> bool | None:
        """Tell aiohttp. Without it there is nothing to finish, and the transport closes."""
        return None if self.handler is None else self.handler.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave the poll group, and have the connection counted no more."""
        if self.group is not None:
            self.group.remove(self)
            self.group = None
        self.state = State.CLOSED
        if self.transport is not None:
            self.admission.forget(self)
            if self.handler is not None:
                self.handler.connection_lost(exc)

    # --- what aiohttp's side tells ----------------------------------------------------------------

    def begin(self) -> float | None:
        """Take note that aiohttp has begun with a request.

        Return since when the request has waited already (loop time); None if it has not.
        """
        self.heard_at = self._now()
        if self.state is State.ASKED:
            self.state = State.ANSWERING
        since, self._waited_since = self._waited_since, None
        return since

    def leave_to_aiohttp(self) -> None:
        """Have aiohttp read everything from now on, first of all a request that waits."""
        if self.group is not None:
            self.hand_back(self.group.remove(self))
        if self.state is not State.CLOSED:
            self.state, self.request = State.AIOHTTP, None

    def wake(self) -> asyncio.Protocol:
        """Return aiohttp's protocol of this connection, which is made if there is none yet."""
        if self.handler is None:
            self.handler = self._new_handler(self)
            if self.transport is not None:
                self.handler.connection_made(self.transport)
        return self.handler

    # --- waiting ----------------------------------------------------------------------------------

    def answer(self, data: bytes, *, close: bool = False) -> None:
        """See :class:`broker.web.connection.long_poll.Member`."""
        self.group = self.request = None
        self.state = State.IDLE
        # On one that is being closed, uvloop would raise; connection_lost comes in a moment.
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)
            if close:
                self.transport.close()

    def hand_back(self, since: float) -> None:
        """See :class:`broker.web.connection.long_poll.Member`."""
        self.group, self._waited_since = None, since
        self.state = State.ASKED
        if (
            self.request is not None
            and self.transport is not None
            and not self.transport.is_closing()
        ):
            self._feed(self.request)

    def cut_short(self, since: float, *, close: bool = False) -> None:
        """See :class:`broker.web.connection.waits.Waiter`."""
        if self.group is not None:
            self.group.cut_short(self, since, close=close)

    # --- what others look at ----------------------------------------------------------------------

    @property
    def is_answering(self) -> bool:
        """True if there is a request that is not answered yet."""
        if self.state in {State.ASKED, State.WAITING}:
            return True
        return self.handler is not None and aiohttp_internals.is_answering(self.handler)

    def abort(self) -> None:
        """Close the connection without an answer."""
        if self.transport is not None:
            self.transport.abort()

    def close_after_answer(self) -> None:
        """Have aiohttp close the connection once its request is answered."""
        if self.handler is not None:
            aiohttp_internals.close_after_answer(self.handler)

    # --- inside -----------------------------------------------------------------------------------

    def _is_idle_again(self, data: bytes) -> bool:
        """Look whether what the state says is over. Return True if the connection is IDLE now."""
        if self.state is State.ANSWERING and not self.is_answering:
            self.state, self.request = State.IDLE, None
        elif self.state is State.PROBATION and PROBE.match(data) is not None:
            self.state = State.IDLE
        elif self.state is State.PROBATION:
            self.state = State.CLOSED
            self.abort()
        return self.state is State.IDLE

    def _ask(self, request: bytes) -> None:
        """Have a regular request wait with others that are equal to it, or have aiohttp read it."""
        self.heard_at, self.request = self._now(), request
        if self._groups is not None:
            self.group = self._groups.enter(self, request)
        if self.group is not None:
            self.state = State.WAITING
        else:
            self.state = State.ASKED
            self._feed(request)

    def _feed(self, data: bytes) -> None:
        self.wake().data_received(data)


def connection_of(request: web.BaseRequest) -> Connection | None:
    """Return the connection that a request came on; None if it is not one of ours."""
    found = getattr(request.protocol, "connection", None)
    return found if isinstance(found, Connection) else None


def peer_of(transport: asyncio.Transport) -> str:
    """Return the address of a peer beyond loopback; empty for loopback and for Unix sockets."""
    name = transport.get_extra_info("peername")
    host = str(name[0]) if isinstance(name, tuple) else ""
    return "" if host.startswith("127.") or host in {"::1", ""} else host
