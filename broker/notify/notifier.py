"""Looks at the states on a timer and sends what is to be told, each receiver at its own pace."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from broker.config.settings import NotifySettings
from broker.core.documents import DocumentStore
from broker.core.ports import StoreError
from broker.notify.events import Event, StateChange, iso
from broker.notify.plan import Rules, Telling, ToldBefore, plan
from broker.notify.result import Receiver, SendResult, Trouble
from broker.notify.states import TroubleState
from broker.system import log

DOCUMENT: Final = "notifications"
LONGEST_PAUSE_S: Final = 10.0  # between two looks
SHORTEST_PAUSE_S: Final = 0.2
ASKED_EVERY_S: Final = 60.0  # the store, whatever we see: another broker may have told something
GRACE_S: Final = 3 * LONGEST_PAUSE_S  # where several brokers look
MOST_WAITING: Final = 50  # events of one receiver
AGAIN_AFTER_S: Final = (10.0, 60.0, 300.0)  # a failure


@dataclass(eq=False)
class Line:
    """A receiver, what waits for it, and how it went; times are unix time."""

    receiver: Receiver
    waiting: deque[Event] = field(default_factory=deque)
    has_more: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0
    lost: int = 0  # given up, or no room
    sent_at: float | None = None
    trouble: SendResult | None = None
    trouble_since: float | None = None

    def add(self, event: Event) -> None:
        """Have an event sent; where too many wait, the oldest is lost."""
        if len(self.waiting) >= MOST_WAITING:
            self.waiting.popleft()
            self.lost += 1
        self.waiting.append(event)
        self.has_more.set()


class Notifier:
    """Tells people. `look` gives what is wrong now; `wall` is unix time.

    `broker` names this one where the store is shared; None where it has a sole owner.
    """

    def __init__(
        self,
        store: DocumentStore,
        look: Callable[[], Iterable[TroubleState]],
        wall: Callable[[], float],
        now: Callable[[], float],
        broker: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._store = store
        self._look = look
        self._wall = wall
        self._now = now
        self._broker = broker
        self._settings = NotifySettings()
        self._lines: list[Line] = []
        self._workers: list[asyncio.Task[None]] = []
        self._began_at = now()
        self._memory = ToldBefore()
        self._is_behind = False  # the store does not know what we told meanwhile
        self._asked_at = float("-inf")
        self.store_error: str | None = None

    def apply(self, settings: NotifySettings, receivers: Sequence[Receiver]) -> None:
        """Go by other settings from now on; what waits for a receiver that stays is kept."""
        known = {line.receiver.label: line for line in self._lines}
        self._settings = settings
        self._lines = []
        for receiver in receivers:
            line = known.pop(receiver.label, None) or Line(receiver)
            line.receiver = receiver
            self._lines.append(line)
        for worker in self._workers:
            worker.cancel()
        self._workers = [
            asyncio.create_task(self._deliver(line), name="notify") for line in self._lines
        ]

    @property
    def pause_s(self) -> float:
        """Seconds between two looks: several within the time for which a state is held back."""
        return min(LONGEST_PAUSE_S, max(SHORTEST_PAUSE_S, self._settings.hold / 4))

    async def look(self) -> None:
        """Look once, and have sent what is to be told."""
        if not self._lines:
            return
        seen = {state.key: state for state in self._look()}
        broker = self._broker()
        rules = Rules(
            self._settings.hold,
            self._settings.remind,
            0.0 if broker is None else GRACE_S,
            broker or "",
        )
        if not self._has_something(seen, rules):
            return
        for telling in await self._told(seen.values(), rules):
            self._send(telling, broker or "")

    def _has_something(self, seen: Mapping[str, TroubleState], rules: Rules) -> bool:
        """Return True if the store needs to be asked.

        It is not asked while nothing is wrong, nor at each look while something is.
        """
        now = self._wall()
        for key, known in self._memory.states.items():
            if key in seen:
                known.seen = now
        # What we see is renewed there, or another broker would take it for over.
        patience = max(self.pause_s, rules.hold / 4) if seen else ASKED_EVERY_S
        is_recent = self._now() - self._asked_at < min(patience, ASKED_EVERY_S)
        if self._is_behind or not is_recent or seen.keys() != self._memory.states.keys():
            return True
        trial = ToldBefore.read(self._memory.written(), now)
        return bool(plan(trial, seen.values(), now, rules, looked_for=self._looked_for))

    @property
    def _looked_for(self) -> float:
        return self._now() - self._began_at

    async def _told(self, seen: Iterable[TroubleState], rules: Rules) -> list[Telling]:
        """Decide in the store, so that one broker of several tells it.

        Where the store fails, decide in memory.
        """
        told: list[Telling] = []
        after = self._memory
        behind = self._memory if self._is_behind else None
        seen = list(seen)

        def rewrite(text: str | None, now: float) -> str | None:
            nonlocal told, after
            after = ToldBefore.read(text, now)
            if behind is not None and rules.grace:
                after.merge(behind)
            elif behind is not None:  # nobody else writes: ours is the later one
                after = ToldBefore.read(behind.written(), now)
            after.renew(self._memory)
            told = plan(after, seen, now, rules, looked_for=self._looked_for)
            new = after.written()
            return None if new == text else new

        self._asked_at = self._now()
        try:
            await self._store.rewrite(DOCUMENT, rewrite)
        except StoreError as error:
            self.store_error, self._is_behind = str(error), True
            now = self._wall()
            self._memory = ToldBefore.read(self._memory.written(), now)
            return plan(self._memory, seen, now, rules, looked_for=self._looked_for)
        self.store_error, self._is_behind = None, False
        self._memory = after
        return told

    def _send(self, telling: Telling, broker: str) -> None:
        event = Event(
            telling.change,
            self._wall(),
            telling.state,
            telling.since,
            broker,
            self._settings.language,
        )
        log.tell("notified", event_name=event.name, change=event.change.value, app=event.app)
        for line in self._lines:
            line.add(event)

    # --- delivery ---------------------------------------------------------------------------------

    async def _deliver(self, line: Line) -> None:
        while True:
            while not line.waiting:
                line.has_more.clear()
                await line.has_more.wait()
            event = line.waiting[0]
            for pause in (*AGAIN_AFTER_S, None):
                result = await self._attempt(line, event)
                if result.trouble is None or pause is None:
                    break
                await asyncio.sleep(pause)
            if line.waiting and line.waiting[0] is event:
                line.waiting.popleft()
                line.lost += result.trouble is not None

    async def _attempt(self, line: Line, event: Event) -> SendResult:
        try:
            result = await line.receiver.send(event)
        # The daemon outlives its bugs; the text may hold the URL
        except Exception as error:  # noqa: BLE001
            log.tell("notification-failed", receiver=line.receiver.label, why=type(error).__name__)
            result = SendResult(Trouble.NOT_DELIVERED)
        if result.trouble is None:
            line.sent, line.sent_at = line.sent + 1, self._wall()
            line.trouble = line.trouble_since = None
            return result
        if line.trouble is None:
            line.trouble_since = self._wall()
            log.tell(
                "notification-failed",
                receiver=line.receiver.label,
                why=result.trouble.value,
                number=result.number,
            )
        line.trouble = result
        return result

    # --- life -------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look every few seconds until the context ends; what has not been sent by then is not."""
        looking = asyncio.create_task(self._forever(), name="notifier")
        try:
            yield
        finally:
            tasks = [looking, *self._workers]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _forever(self) -> None:
        while True:
            try:
                await self.look()
            # A bug in it is told, and costs nobody a token
            except Exception as error:  # noqa: BLE001
                log.crash("notifier", error)
            await asyncio.sleep(self.pause_s)

    # --- for people -------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what was told and holds still, and how each receiver took it. Holds no URL."""
        told = [one for one in self._memory.states.values() if one.told is not None]
        return {
            "receivers": [_described(line) for line in self._lines],
            "told": [
                {
                    "event": one.state.kind.value,
                    "app": one.state.app,
                    "about": one.state.about,
                    "since": iso(one.since),
                }
                for one in told
            ],
            "held_back": self._memory.is_held_back,
        }


def _described(line: Line) -> dict[str, Any]:
    trouble = line.trouble
    return {
        "receiver": line.receiver.label,
        "sent": line.sent,
        "lost": line.lost,
        "waiting": len(line.waiting),
        "last_sent": None if line.sent_at is None else iso(line.sent_at),
        "trouble": (
            None
            if trouble is None or trouble.trouble is None
            else {
                "code": trouble.trouble.value,
                "number": trouble.number,
                "since": iso(line.trouble_since or 0.0),
            }
        ),
    }


def trial(settings: NotifySettings, wall: float) -> Event:
    """Return the event that a person sends to try the receivers."""
    return Event(StateChange.TEST, wall, language=settings.language)
