"""Figures that are read from a history; all in seconds."""

from collections import defaultdict

from tests.history.audit import Event
from tests.history.record import Blow, History


def rotations(history: History, nodes: int, appid: str) -> list[float]:
    """From a token's being stored until clients of every node have it.

    Those that were replaced before do not count.
    """
    stored: dict[tuple[str, str], float] = {}
    for event in history.events:
        if (
            event.appid == appid
            and event.kind == "account"
            and event.sha256
            and event.token_call is not None
        ):
            stored.setdefault((event.appid, f"{event.epoch}-{event.token_call}"), event.at)
    seen: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for answer in history.tokens():
        first = seen[answer.appid, answer.version]
        first[answer.node] = min(answer.received_at, first.get(answer.node, answer.received_at))
    calm = [(it.began_at, it.healed_at or it.began_at) for it in history.blows]
    return [
        max(first.values()) - stored[key]
        for key, first in seen.items()
        if len(first) == nodes
        and key in stored
        and not any(began - 1 <= stored[key] <= healed + 5 for began, healed in calm)
    ]


def recoveries(history: History) -> list[tuple[float, float]]:
    """The seconds until the next token, for each holder that was killed with a call open.

    They are counted from the kill, and from the call's deadline.
    """
    found = []
    reserved = [it for it in history.events if it.kind == "reserved" and it.outcome is None]
    settled = {it.version for it in history.events if it.kind == "settled"}
    for blow in history.blows:
        if blow.kind != "kill" or blow.step in {"reserving", "settling", "settled"}:
            continue
        open_ = next(
            (
                it
                for it in reversed(reserved)
                if it.at <= blow.began_at and _is_of(it, blow) and it.version not in settled
            ),
            None,
        )
        if open_ is None:
            continue
        after = [
            it.at
            for it in history.events
            if it.outcome == "minted" and it.appid == open_.appid and it.at > blow.began_at
        ]
        if after:
            found.append((after[0] - blow.began_at, after[0] - (open_.at + history.rules.lease)))
    return found


def _is_of(event: Event, blow: Blow) -> bool:
    """Whether it is the struck node's.

    One that was started again soon may be called a-2: its old name was still taken.
    """
    return event.node is not None and event.node.partition("-")[0] == blow.on


def first_reservation(history: History) -> float | None:
    """From the order to promote the standby until a call was reserved on it."""
    if history.promoted_at is None:
        return None
    after = [
        it.at
        for it in history.events
        if it.kind == "reserved" and it.outcome is None and it.at > history.promoted_at
    ]
    return after[0] - history.promoted_at if after else None
