"""Not asking again too soon what was refused just now, and saying it once."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol

from broker.avatars.errors import AvatarError

BURST: Final = 50
A_DAY: Final = 350
DAY_S: Final = 86_400


class TellEvent(Protocol):
    """Where transitions are told."""

    def __call__(self, event: str, **facts: object) -> None:
        """Tell one."""


class CircuitBreaker:
    """Stands before one kind of call.

    After a failure it raises that failure again for a while, instead of calling.
    """

    def __init__(self, what: str, clock: Callable[[], float], tell: TellEvent) -> None:
        self._what = what
        self._clock = clock
        self._tell = tell
        self._trouble: AvatarError | None = None
        self._until = 0.0

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """Around a call. Raises the last AvatarError where its pause is not over."""
        if self._trouble and self._clock() < self._until:
            raise self._trouble
        try:
            yield
        except AvatarError as trouble:
            if self._trouble is None or self._trouble.code != trouble.code:
                self._tell("trouble", what=self._what, code=trouble.code, **trouble.facts)
            self._trouble, self._until = trouble, self._clock() + trouble.pause_s
            raise
        if self._trouble:
            self._trouble = None
            self._tell("well-again", what=self._what)


class TokenBucket:
    """Counts calls of `user/get`, of which WeChat allows 500 a day (WECHAT.md W40).

    The companion makes no more than 400 and leaves the rest to other programs.

    50 may be spent at once, 350 more come with the day. It is kept in memory: each start of the
    companion begins with 50.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left, self._at = float(BURST), clock()

    def spend(self) -> None:
        """Take one, or raise AvatarError that says when there is one again."""
        now = self._clock()
        self._left, self._at = min(BURST, self._left + (now - self._at) * A_DAY / DAY_S), now
        if self._left < 1:
            raise AvatarError("budget-spent", (1 - self._left) * DAY_S / A_DAY)
        self._left -= 1
