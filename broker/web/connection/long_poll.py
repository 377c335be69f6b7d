"""The poll groups: who asks to be told of the next version, as somebody before them does, waits here and not in aiohttp.

A service that watches a token sends the same bytes as others like it. The first such request goes
through aiohttp; when its handler begins to wait, it says how that is done (:class:`Wait`). Whoever
comes with the same bytes on a connection of that kind costs no task, no request and no timer from
then on: one task waits for all of a group, and one answer is written to all.

Whatever is irregular goes back to aiohttp, which reads the request as if it had just come and waits
for what is left of its time: more bytes on a connection, a token that is not to be had, a daemon
that stops. When rights may have changed it reads one request of each group, and the others wait for
what comes of it, as for a first.
"""

import asyncio
import math
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from email.utils import formatdate
from typing import Any, Final, NamedTuple

from aiohttp import hdrs, http, web

from broker.web.connection.connections import Connections, Guarded
from broker.web.gate import Client

MOST_GROUPS: Final = 1024
AT_ONCE: Final = 50  # answers between two looks at what else there is to do
HOLD_S: Final = 0.1  # how long others wait for the first one's handler to say that it waits
# What may turn out to wait. Whoever comes while the first is still being read waits to see; a crowd
# comes at once. Atomic (?>): the target is read once, however many `wait` it has; strangers are
# measured by this too.
WATCH: Final = re.compile(
    rb"(?>GET /v1/tokens/[^ ]*[?&]wait=).*\r\nif-none-match:", re.IGNORECASE | re.DOTALL
)

OnAnswered = Callable[[web.AbstractResource | None, Client | None, int, int, float], None]


class Wait(NamedTuple):
    """How a request waits: `seconds` in all; `over` waits so long at most, and says whether all are to be answered now.

    `answer` is the answer now, to those and to whoever's time is up; None where a handler has to
    look.
    """

    seconds: float
    over: Callable[[float], Awaitable[bool]]
    answer: Callable[[], web.Response | None]


class Waiter(Guarded):
    """A connection that may wait in a group.

    `asked` is the request that is being answered, as it came.
    """

    __slots__ = ("asked", "group", "is_at_work", "since")

    def __init__(self, connections: Connections, make: Callable[[], asyncio.Protocol]) -> None:
        super().__init__(connections, make)
        self.asked: bytes | None = None
        self.is_at_work = False  # aiohttp has begun with `asked`
        self.group: PollGroup | None = None
        self.since: float | None = None  # when it began to wait (loop time), once it is aiohttp's

    def answer(self, data: bytes) -> None:
        """Give it the answer; it waits no more."""
        self.group = self.asked = None
        if (
            self.transport is not None and not self.transport.is_closing()
        ):  # else it is gone, and we hear of it in a moment
            self.transport.write(data)

    def hand_back(self, since: float) -> None:
        """Have aiohttp go on, with a request that came at `since`."""
        asked, self.group, self.since = self.asked, None, since
        if asked is not None and self.transport is not None and not self.transport.is_closing():
            super().data_received(asked)

    def leave_group(self) -> None:
        """Go on with aiohttp, at once."""
        if self.group is not None:
            self.hand_back(self.group.waiters.pop(self))

    def connection_lost(self, exc: Exception | None) -> None:
        """Let it go."""
        if self.group is not None:
            del self.group.waiters[self]
            self.group = None
        super().connection_lost(exc)

    @property
    def is_answering(self) -> bool:
        """Whether there is a request that is not answered yet."""
        return self.group is not None or super().is_answering


class PollGroup:
    """Those who wait with the same bytes, who came first first, with when they came (loop time)."""

    def __init__(self, groups: "PollGroups", chunk: bytes) -> None:
        self.waiters: OrderedDict[Waiter, float] = OrderedDict()
        self.wait: Wait | None = None
        self._groups = groups
        self._chunk = chunk
        self._resource: web.AbstractResource | None = None
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._hold = asyncio.get_running_loop().call_later(HOLD_S, self.release_all)

    def take(self, waiter: Waiter) -> None:
        """Have it wait."""
        self.waiters[waiter] = asyncio.get_running_loop().time()
        waiter.group, waiter.asked = self, self._chunk
        self._begin()

    def open(
        self, wait: Wait, resource: web.AbstractResource | None, client: Client | None
    ) -> None:
        """So they wait; route and client are for those who count."""
        self._hold.cancel()
        self.wait, self._resource, self._client = wait, resource, client
        self._begin()

    def close(self) -> None:
        """Whoever comes from now on is not of these."""
        self._hold.cancel()
        self._groups.forget(self._chunk, self)

    def look_again(self) -> None:
        """Have aiohttp look at one of them, as at a first: all are let in, or refused, by the same bytes."""
        if not self.waiters:
            self.close()
            return
        if self._task is not None:
            self._task.cancel()
        self._task = self.wait = None
        self._hold.cancel()
        self._hold = asyncio.get_running_loop().call_later(HOLD_S, self.release_all)
        _hand_back([self.waiters.popitem(last=False)])

    def release_all(self) -> None:
        """Have aiohttp look at everyone here."""
        self.close()
        if self._task is not None:
            self._task.cancel()
        if self.waiters:
            self._task = self._groups.go_on(self._hand_back())

    def _begin(self) -> None:
        if self._task is None and self.wait is not None and self.waiters:
            self._task = self._groups.go_on(self._attend(self.wait))

    async def _attend(self, wait: Wait) -> None:
        clock, is_over = asyncio.get_running_loop().time, False
        try:
            while self.waiters and not is_over:
                longest = next(iter(self.waiters.values()))
                if is_over := await wait.over(longest + wait.seconds - clock()):
                    self.close()
                await self._answer(
                    wait, math.inf if is_over else max(longest, clock() - wait.seconds)
                )
            self._task = None
        except Exception:
            self.release_all()
            raise

    async def _answer(self, wait: Wait, came_by: float) -> None:
        """Answer everyone who came by then; some at a time, each time with what is true then."""
        while self._is_due(came_by):
            response = (
                wait.answer()
            )  # before anybody is let go, whom a bug would leave without an answer
            some = self._some(came_by)
            if response is None:
                _hand_back(some)
            else:
                data = as_written(response)
                for waiter, _ in some:
                    waiter.answer(data)
                self._groups.count(self._resource, self._client, response.status, len(some))
            await asyncio.sleep(0)

    async def _hand_back(self) -> None:
        while some := self._some(math.inf):
            _hand_back(some)
            await asyncio.sleep(0)

    def _is_due(self, came_by: float) -> bool:
        return bool(self.waiters) and next(iter(self.waiters.values())) <= came_by

    def _some(self, came_by: float) -> list[tuple[Waiter, float]]:
        found: list[tuple[Waiter, float]] = []
        while len(found) < AT_ONCE and self._is_due(came_by):
            found.append(self.waiters.popitem(last=False))
        return found


class PollGroups:
    """All groups for one kind of connection, by the bytes of the request."""

    def __init__(self, now: Callable[[], float], tell: OnAnswered) -> None:
        self._now = now
        self._tell = tell
        self._groups: dict[bytes, PollGroup] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_open = True

    def find(self, chunk: bytes) -> PollGroup | None:
        """The group of those who asked so."""
        return self._groups.get(chunk)

    def enter(self, waiter: Waiter, chunk: bytes) -> bool:
        """Have a connection wait that sent this request, if others do; else it is the first, and aiohttp's."""
        if (group := self._groups.get(chunk)) is not None:
            group.take(waiter)
            return True
        if self._is_open and WATCH.match(chunk):
            if len(self._groups) >= MOST_GROUPS:
                self.drop_empty()
            if len(self._groups) < MOST_GROUPS:
                self._groups[chunk] = PollGroup(self, chunk)
        return False

    def drop_empty(self) -> None:
        """What was true of groups that nobody is in may not be any more."""
        for group in [
            group for group in self._groups.values() if group.wait is not None and not group.waiters
        ]:
            group.close()

    def look_again(self) -> None:
        """Have aiohttp look at one of each group."""
        for group in list(self._groups.values()):
            group.look_again()

    async def end(self) -> None:
        """Have aiohttp look at everyone, and be there when it has them all; nobody waits here any more."""
        self._is_open = False
        for group in list(self._groups.values()):
            group.release_all()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def forget(self, chunk: bytes, group: PollGroup) -> None:
        """A group is closed."""
        if self._groups.get(chunk) is group:
            del self._groups[chunk]

    def go_on(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run what a group does."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def count(
        self, resource: web.AbstractResource | None, client: Client | None, status: int, number: int
    ) -> None:
        """So many were answered."""
        self._tell(resource, client, status, number, self._now())


def as_written(response: web.Response) -> bytes:
    """A response as aiohttp would write it on a connection that stays."""
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


def _hand_back(some: list[tuple[Waiter, float]]) -> None:
    for waiter, since in some:
        waiter.hand_back(since)
