"""The decision what to tell and when: a pure function over what is remembered and what is seen.

What is remembered is a document that all brokers of a shared store rewrite in turn, so that a state
is told by one of them, once, and not again after a restart.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from broker.notify.events import StateChange
from broker.notify.states import StateKind, TroubleState

HOUR: Final = 3600.0
DAY: Final = 86400.0
MOST_AN_HOUR: Final = 20
MOST_REMEMBERED: Final = 10_000  # states


@dataclass(frozen=True, slots=True)
class Rules:
    """Seconds. A state must have lasted `hold` before it is told.

    It is told again after `remind` (0: never). A state that nobody has seen for `grace` is over.
    Several brokers look at different times, so there `grace` is longer than a look takes. `broker`
    is the name of this broker among them.
    """

    hold: float = 300
    remind: float = 86400
    grace: float = 0
    broker: str = ""


@dataclass(slots=True)
class Remembered:
    """A state that was seen: when first and last, and when it was told last (None: not yet)."""

    state: TroubleState
    since: float
    seen: float
    told: float | None = None


@dataclass(slots=True)
class ToldBefore:
    """All that is remembered; `sent` are the times of what was told within an hour."""

    states: dict[str, Remembered] = field(default_factory=dict)
    sent: list[float] = field(default_factory=list)
    is_held_back: bool = False

    @classmethod
    def read(cls, text: str | None, now: float) -> "ToldBefore":
        """Read what :meth:`written` wrote; anything else is nothing.

        Times in the future are taken for now.
        """
        try:
            raw: dict[str, Any] = json.loads(text or "{}")
            states = [_remembered(row, now) for row in raw.get("states", [])]
            sent = [float(at) for at in raw.get("sent", [])]
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()
        recent = [at for at in sent if now - HOUR < at <= now]
        known = {one.state.key: one for one in states}
        return cls(known, recent, bool(raw.get("is_held_back")))

    def written(self) -> str:
        """This as text."""
        rows = [
            {
                "kind": one.state.kind.value,
                "app": one.state.app,
                "about": one.state.about,
                "facts": dict(one.state.facts),
                "since": one.since,
                "seen": one.seen,
                "told": one.told,
            }
            for one in self.states.values()
        ]
        return json.dumps({"states": rows, "sent": self.sent, "is_held_back": self.is_held_back})

    def renew(self, other: "ToldBefore") -> None:
        """Take over when another memory saw the same states last."""
        for key, one in self.states.items():
            if key in other.states:
                one.seen = max(one.seen, other.states[key].seen)

    def merge(self, other: "ToldBefore") -> None:
        """Take over what another memory knows: what was told there is not told again."""
        for key, theirs in other.states.items():
            ours = self.states.setdefault(key, theirs)
            ours.since = min(ours.since, theirs.since)
            ours.seen = max(ours.seen, theirs.seen)
            told = [at for at in (ours.told, theirs.told) if at is not None]
            ours.told = max(told, default=None)
        self.sent = sorted({*self.sent, *other.sent})


def _remembered(row: dict[str, Any], now: float) -> Remembered:
    state = TroubleState(StateKind(row["kind"]), row["app"], row["about"], row["facts"])
    told = None if row["told"] is None else min(float(row["told"]), now)
    return Remembered(state, min(float(row["since"]), now), min(float(row["seen"]), now), told)


@dataclass(frozen=True, slots=True)
class Telling:
    """Something to tell: of a state since a time, or of none."""

    change: StateChange
    state: TroubleState | None = None
    since: float = 0.0


def plan(
    memory: ToldBefore, seen: Iterable[TroubleState], now: float, rules: Rules, *, looked_for: float
) -> list[Telling]:
    """Bring what is remembered up to date, and return what is to be told now.

    `looked_for` is for how many seconds this process has looked: right after a start nobody can say
    that a state is over.
    """
    current = {state.key: state for state in seen}
    for key, state in current.items():
        known = memory.states.get(key)
        if known is None:
            if len(memory.states) < MOST_REMEMBERED:
                memory.states[key] = Remembered(state, now, now)
        else:
            known.state, known.seen = state, now
    due = [_due(one, now, rules) for key, one in memory.states.items() if key in current]
    for key, one in list(memory.states.items()):
        if key not in current and min(now - one.seen, looked_for) >= _patience(one, rules):
            due.append(_over(memory, key))
    return _within_budget(memory, [telling for telling in due if telling], now)


def _patience(one: Remembered, rules: Rules) -> float:
    """Seconds for which a state must be out of sight before it is over."""
    is_anothers = one.state.kind is StateKind.STORE_FAILING and one.state.about != rules.broker
    if is_anothers:  # that broker cannot say here that its store fails still
        return DAY
    return rules.grace if one.told is None else max(rules.hold, rules.grace)


def _due(one: Remembered, now: float, rules: Rules) -> Telling | None:
    if one.told is None:
        entered = Telling(StateChange.ENTERED, one.state, one.since)
        return entered if now - one.since >= rules.hold else None
    is_due = rules.remind > 0 and now - one.told >= rules.remind
    return Telling(StateChange.REMINDER, one.state, one.since) if is_due else None


def _over(memory: ToldBefore, key: str) -> Telling | None:
    one = memory.states[key]
    if one.told is None:
        del memory.states[key]
        return None
    return Telling(StateChange.LEFT, one.state, one.since)


def _within_budget(memory: ToldBefore, due: Sequence[Telling], now: float) -> list[Telling]:
    """Choose what may be told this hour, and note that it was.

    The rest is due again at the next look.
    """
    told = []
    memory.sent = [at for at in memory.sent if at > now - HOUR]
    if len(memory.sent) < MOST_AN_HOUR:
        memory.is_held_back = False
    for telling in due:
        if len(memory.sent) >= MOST_AN_HOUR:
            if not memory.is_held_back:
                memory.is_held_back = True
                told.append(Telling(StateChange.HELD_BACK))
            break
        memory.sent.append(now)
        told.append(telling)
        if telling.state is None:
            continue
        if telling.change is StateChange.LEFT:
            del memory.states[telling.state.key]
        else:
            memory.states[telling.state.key].told = now
    return told
