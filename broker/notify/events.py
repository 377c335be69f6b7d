"""What is told: one change of one state, as JSON for programs and as sentences for people.

Never a token or a secret.
"""

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from broker import __version__
from broker.notify.states import StateKind, TroubleState
from broker.notify.texts import TEXTS, Texts

BEIJING_S: Final = 8 * 3600


class StateChange(StrEnum):
    """What happened to a state; the values are public."""

    ENTERED = "entered"
    LEFT = "left"
    REMINDER = "reminder"  # it still holds
    HELD_BACK = "held-back"  # of no state: more was to be told than is told in an hour
    TEST = "test"  # of no state: a person tries whether it arrives


URGENT: Final = frozenset(
    {
        StateKind.NO_TOKEN,
        StateKind.IP_NOT_ALLOWED,
        StateKind.SECRET_REFUSED,
        StateKind.FROZEN,
        StateKind.CALL_REFUSED,
        StateKind.CONFIRMATION,
        StateKind.DENIED,
        StateKind.QUOTA_SPENT,
        StateKind.STORE_FAILING,
    }
)


@dataclass(frozen=True, slots=True)
class Event:
    """A change at a moment: `at` and `since` are unix time.

    `broker` is who tells it, where several share a store.
    """

    change: StateChange
    at: float
    state: TroubleState | None = None
    since: float = 0.0
    broker: str = ""
    language: str = "en"

    @property
    def name(self) -> str:
        """The state's name, or of what is told beside states."""
        return self.state.kind.value if self.state else self.change.value

    @property
    def app(self) -> str:
        """The app's name; empty where it is not about one."""
        return self.state.app if self.state else ""

    @property
    def severity(self) -> str:
        """`critical` where services get no token, or soon will not; else `warning`.

        `info` where nothing is wrong.
        """
        if self.state is None or self.change is StateChange.LEFT:
            return "info"
        return "critical" if self.state.kind in URGENT else "warning"

    @property
    def title(self) -> str:
        """What is wrong, in a line."""
        texts = TEXTS[self.language]
        if self.state is None:
            return texts.beside[self.change.value][0]
        return texts.changes[self.change.value].format(what=self._said(texts, 0))

    @property
    def text(self) -> str:
        """What a person must do, and which app, broker and time it is about."""
        texts = TEXTS[self.language]
        if self.state is None:
            return texts.beside[self.change.value][1]
        advice = texts.nothing if self.change is StateChange.LEFT else self._said(texts, 1)
        about = [advice, texts.since.format(at=moment(self.since, self.language))]
        if self.broker:
            about.append(texts.broker.format(name=self.broker))
        return "\n".join(about)

    def as_json(self) -> dict[str, Any]:
        """The event for programs."""
        facts = {} if self.state is None else dict(self.state.facts)
        return {
            "event": self.name,
            "change": self.change.value,
            "severity": self.severity,
            "app": self.app,
            "about": self.state.about if self.state else "",
            "since": iso(self.since) if self.state else None,
            "at": iso(self.at),
            "broker": self.broker,
            "facts": facts,
            "title": self.title,
            "text": self.text,
            "version": __version__,
        }

    def _said(self, texts: Texts, which: int) -> str:
        if self.state is None:
            return ""
        kind, facts = self.state.kind.value, self.state.facts
        named = {
            "app": self.state.app,
            "about": self.state.about or texts.itself,
            "appid": facts.get("appid", ""),
            "errcode": facts.get("errcode", ""),
            "ip": facts.get("ip", texts.its_address),
            "limit": facts.get("limit", ""),
            "console": texts.consoles[str(facts.get("platform", "wechat"))],
        }
        return texts.states[kind][which].format(**named)


def iso(wall: float) -> str:
    """Unix time in UTC, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall))


def moment(wall: float, language: str) -> str:
    """A time as a reader of that language counts it, with UTC beside it."""
    utc = time.strftime("%Y-%m-%d %H:%M", time.gmtime(wall))
    if language == "en":
        return f"{utc} UTC"
    beijing = time.strftime("%Y-%m-%d %H:%M", time.gmtime(wall + BEIJING_S))
    return f"北京时间 {beijing}（{utc} UTC）"
