"""Long polls: requests with the same bytes that wait for the next version wait together.

Services that watch a token send the same bytes as each other. The first such request goes through
aiohttp. When its handler begins to wait, it says how that is done (:class:`Wait`). From then on
whoever sends the same bytes, on the same kind of socket, joins the group and costs no task, no
request and no timer: one task waits for the whole group, and one answer is written to all.

Whatever is irregular goes back to aiohttp, which reads the request as if it had just come and waits
for the rest of its time. That is so for a connection that sends more bytes, for a token that is not
to be had, and for a daemon that stops. When rights may have changed, aiohttp reads one request of
each group, and the others wait for what comes of it, as they did for the first.
"""

import asyncio
import math
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from email.utils import formatdate
from typing import Any, Final, NamedTuple, Protocol

from aiohttp import hdrs, http, web

from broker.web.connection.cached_response import OnAnswered
from broker.web.connection.waits import Waiter, Waits
from broker.web.gate import Client
from broker.web.handed import Handed

MOST_GROUPS: Final = 1024
AT_ONCE: Final = 50  # answers that are written before the loop looks at what else there is to do
HOLD_S: Final = (
    1.0  # how long others wait to hear how the first waits; longer than a busy machine starves us
)
# Requests that may turn out to wait. Those that come while the first is still being read are held
# until it is known: a crowd comes at once. The group is atomic (?>), so the target is read once
# however often `wait` occurs in it: a stranger's request is matched too, before any key is checked.
WATCH: Final = re.compile(
    rb"(?>GET /v1/tokens/[^ ]*[?&]wait=).*\r\nif-none-match:", re.IGNORECASE | re.DOTALL
)


class Wait(NamedTuple):
    """How a request waits: for `seconds`, unless `over` ends it before.

    `over` waits at most the seconds it is given, and returns True if all are to be answered now.
    `answer` returns the answer to whoever is to be answered now, None where a handler has to look.
    """

    seconds: float
    over: Callable[[float], Awaitable[bool]]
    answer: Callable[[], web.Response | None]


class Member(Waiter, Protocol):
    """What a group knows of a connection that waits in it."""

    def answer(self, data: bytes, *, close: bool = False) -> None:
        """Write the answer; with `close` it is the connection's last."""

    def hand_back(self, since: float) -> None:
        """Have aiohttp handle the request, which waits since then (loop time)."""

    def abort(self) -> None:
        """Close the connection without an answer."""


class PollGroup:
    """Connections that wait with the same bytes: since when (loop time), the longest first.

    A group is open once it is known how its members wait.
    """

    def __init__(self, groups: "PollGroups", request: bytes) -> None:
        self.request = request
        self.members: OrderedDict[Member, float] = OrderedDict()
        self.wait: Wait | None = None
        self._groups = groups
        self._resource: web.AbstractResource | None = None
        self._client: Client | None = None
        self._handed: Handed | None = None
        self._task: asyncio.Task[None] | None = None
        self._hold = asyncio.get_running_loop().call_later(HOLD_S, self.release_all)

    def add(self, member: Member) -> None:
        """Have a connection wait from now on."""
        since = self.members[member] = asyncio.get_running_loop().time()
        if self.wait is not None:
            self._groups.waits.enter(self._client_name, member, since)
        self._attend()

    def remove(self, member: Member) -> float:
        """Remove a connection that waits here. Return since when it has waited (loop time)."""
        self._groups.waits.leave(self._client_name, member)
        return self.members.pop(member)

    def open(
        self,
        wait: Wait,
        resource: web.AbstractResource | None,
        client: Client | None,
        handed: Handed | None = None,
    ) -> None:
        """Have the members wait in this way. All have the same route, client and held version."""
        self._hold.cancel()
        self.wait, self._resource, self._client = wait, resource, client
        self._handed = handed
        for member, since in list(self.members.items()):
            self._groups.waits.enter(self._client_name, member, since)
        self._attend()

    def close(self) -> None:
        """Admit no more members."""
        self._hold.cancel()
        self._groups.forget(self)

    def cut_short(self, member: Member, since: float, *, close: bool) -> None:
        """Answer one member early, if it still waits since then."""
        if self.members.get(member) != since:
            return
        response = self.wait.answer() if self.wait is not None else None
        self.remove(member)
        if response is None:
            # To have aiohttp look at it would begin another wait, which would cut another short.
            member.abort()
            return
        if close:
            response.headers[hdrs.CONNECTION] = "close"
        member.answer(as_written(response), close=close)
        self._count(response, 1)

    def admit_anew(self) -> None:
        """Have aiohttp look at one member. What comes of it goes for all: their bytes are equal."""
        if not self.members:
            self.close()
            return
        if self._task is not None:
            self._task.cancel()
        self._task = self.wait = None
        for member in self.members:
            self._groups.waits.leave(self._client_name, member)
        self._hold.cancel()
        self._hold = asyncio.get_running_loop().call_later(HOLD_S, self.release_all)
        _hand_back([self._pop_first()])

    def release_all(self) -> None:
        """Have aiohttp handle every member's request."""
        self.close()
        if self._task is not None:
            self._task.cancel()
        if self.members:
            self._task = self._groups.run(self._hand_all_back())

    @property
    def _client_name(self) -> str:
        return self._client.name if self._client is not None else ""

    def _attend(self) -> None:
        """Begin to wait for the members, unless that has begun or there is nobody to wait for."""
        if self._task is None and self.wait is not None and self.members:
            self._task = self._groups.run(self._wait_and_answer(self.wait))

    async def _wait_and_answer(self, wait: Wait) -> None:
        clock, is_over = asyncio.get_running_loop().time, False
        try:
            while self.members and not is_over:
                longest = next(iter(self.members.values()))
                if is_over := await wait.over(longest + wait.seconds - clock()):
                    self.close()
                    came_by = math.inf
                else:
                    came_by = max(longest, clock() - wait.seconds)
                await self._answer(wait, came_by)
            self._task = None
        except Exception:
            self.release_all()
            raise

    async def _answer(self, wait: Wait, came_by: float) -> None:
        """Answer everyone who came by then, AT_ONCE at a time, each time with what is true then."""
        while self._is_due(came_by):
            # Before anybody is removed: a bug here must leave nobody without an answer.
            response = wait.answer()
            some = self._pop_due(came_by)
            if response is None:
                _hand_back(some)
            else:
                data = as_written(response)
                for member, _ in some:
                    member.answer(data)
                self._count(response, len(some))
            await asyncio.sleep(0)

    async def _hand_all_back(self) -> None:
        while some := self._pop_due(math.inf):
            _hand_back(some)
            await asyncio.sleep(0)

    def _is_due(self, came_by: float) -> bool:
        return bool(self.members) and next(iter(self.members.values())) <= came_by

    def _pop_due(self, came_by: float) -> list[tuple[Member, float]]:
        found: list[tuple[Member, float]] = []
        while len(found) < AT_ONCE and self._is_due(came_by):
            found.append(self._pop_first())
        return found

    def _pop_first(self) -> tuple[Member, float]:
        member = next(iter(self.members))
        return member, self.remove(member)

    def _count(self, response: web.Response, number: int) -> None:
        handed = self._handed
        if handed is not None:  # they were noted with the version that they waited with
            version = response.etag.value if response.etag else None
            handed = handed._replace(version=version)
        self._groups.count(self._resource, self._client, handed, response.status, number)


class PollGroups:
    """All groups of one kind of socket, by the bytes of the request.

    `waits` bounds how many requests of a client wait.
    """

    def __init__(self, now: Callable[[], float], on_answered: OnAnswered, waits: Waits) -> None:
        self.waits = waits
        self._now = now
        self._on_answered = on_answered
        self._groups: dict[bytes, PollGroup] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_open = True

    def find(self, request: bytes) -> PollGroup | None:
        """Return the group of those who sent this request."""
        return self._groups.get(request)

    def enter(self, member: Member, request: bytes) -> PollGroup | None:
        """Return the group in which a connection waits now that sent this request.

        None if the request is aiohttp's: it cannot wait, or it is the first of its kind.
        """
        if (group := self._groups.get(request)) is not None:
            group.add(member)
            return group
        if self._is_open and WATCH.match(request):
            if len(self._groups) >= MOST_GROUPS:
                self.drop_empty()
            if len(self._groups) < MOST_GROUPS:
                self._groups[request] = PollGroup(self, request)
        return None

    def drop_empty(self) -> None:
        """Close the open groups without members: what was true of them may not be any more."""
        for group in [
            group for group in self._groups.values() if group.wait is not None and not group.members
        ]:
            group.close()

    def admit_anew(self) -> None:
        """Have aiohttp look at one member of each group."""
        for group in list(self._groups.values()):
            group.admit_anew()

    async def end(self) -> None:
        """Have aiohttp handle everyone's request, now and from now on; return when it has them."""
        self._is_open = False
        for group in list(self._groups.values()):
            group.release_all()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def forget(self, group: PollGroup) -> None:
        """Remove a group that is closed."""
        if self._groups.get(group.request) is group:
            del self._groups[group.request]

    def run(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run what a group does, as a task that :meth:`end` waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def count(
        self,
        resource: web.AbstractResource | None,
        client: Client | None,
        handed: Handed | None,
        status: int,
        number: int,
    ) -> None:
        """Report that so many were answered."""
        self._on_answered(resource, client, handed, status, number, self._now())


def as_written(response: web.Response) -> bytes:
    """Return a response as aiohttp would write it on a connection that stays."""
    body = response.body if isinstance(response.body, bytes) else b""
    headers = response.headers.copy()
    if body:
        headers[hdrs.CONTENT_LENGTH] = str(len(body))
    headers.update({hdrs.DATE: formatdate(usegmt=True), hdrs.SERVER: http.SERVER_SOFTWARE})
    head = [
        f"HTTP/1.1 {response.status} {response.reason}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def _hand_back(some: list[tuple[Member, float]]) -> None:
    for member, since in some:
        member.hand_back(since)
