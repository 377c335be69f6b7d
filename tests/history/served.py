"""What must be true of answers, over a whole history. Each rule yields a sentence per violation."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from typing import Final

from tests.history.record import Answer, History

CONVERGES_WITHIN_S: Final = 5.0
NOTICED_WITHIN_S: Final = (
    3.0  # a token that died before its time, once all is well: a report, a verification
)
_CLOCK_S: Final = 0.02


def a_version_means_one_token(history: History) -> Iterator[str]:
    """I4: on all nodes, in all lives, and in the database."""
    tokens: dict[tuple[str, str], set[str]] = defaultdict(set)
    for answer in history.tokens():
        tokens[answer.appid, answer.version].add(answer.digest)
    for event in history.events:
        if event.kind == "account" and event.token_call is not None and event.sha256:
            tokens[event.appid, f"{event.epoch}-{event.token_call}"].add(event.sha256)
    for (appid, version), digests in tokens.items():
        if len(digests) > 1:
            yield f"I4: {version} of {appid} means {len(digests)} tokens"


def nothing_but_what_was_issued_and_lives(history: History) -> Iterator[str]:
    """I5, and `expires_in` is never more than the truth.

    A node that is stopped while it answers cannot help being late.
    """
    minted = {call["token_sha256"]: call["at"] for call in history.calls if call["minted"]}
    for it in history.tokens():
        if it.digest not in minted:
            yield f"I4: {it.node} served a token of {it.appid} that the sandbox never issued"
            continue
        ends_at = minted[it.digest] + history.rules.lifetime
        was_stopped = any(
            blow.on in {it.node, ""} and blow.touches(it.sent_at, it.received_at)
            for blow in history.blows
        )
        if (it.sent_at if was_stopped else it.received_at) >= ends_at:
            yield f"I5: {it.node} served {it.version} of {it.appid} expired"
        if it.expires_in > ends_at - it.sent_at + _CLOCK_S:
            yield (
                f"I5: {it.node} said {it.expires_in} s of {it.version}, which had"
                f" {ends_at - it.sent_at:.2f}"
            )


def never_an_older_one_after_a_newer(history: History) -> Iterator[str]:
    """I4 for each life of each node: an answer sent after another had come is not older.

    Neither its number nor its mint is older.
    """
    minted = {call["token_sha256"]: call["at"] for call in history.calls if call["minted"]}
    lives: dict[tuple[str, int, str], list[Answer]] = defaultdict(list)
    for answer in history.tokens():
        lives[answer.node, answer.life, answer.appid].append(answer)
    for (node, _, appid), answers in lives.items():
        newest: dict[str, int] = {}
        latest = 0.0
        moments = [(it.sent_at, 1, it) for it in answers] + [
            (it.received_at, 0, it) for it in answers
        ]
        floors: dict[int, tuple[dict[str, int], float]] = {}
        for _, is_sent, it in sorted(moments, key=lambda moment: moment[:2]):
            epoch, number = _parts(it.version)
            if is_sent:
                floors[id(it)] = dict(newest), latest
                continue
            newest_then, latest_then = floors.get(id(it), (newest, latest))
            if number < newest_then.get(epoch, 0):
                yield (
                    f"I4: {node} served {it.version} of {appid} after {epoch}-{newest_then[epoch]}"
                )
            elif minted.get(it.digest, latest_then) < latest_then:
                yield (
                    f"I4: {node} served {it.version} of {appid} after a token that was minted later"
                )
            newest[epoch] = max(number, newest.get(epoch, 0))
            latest = max(latest, minted.get(it.digest, 0.0))


def _parts(version: str) -> tuple[str, int]:
    epoch, _, number = version.partition("-")
    return epoch, int(number)


def who_starts_serves_what_is_stored(history: History) -> Iterator[str]:
    """I4, across the lives of a node: not older than what the database held when it started."""
    minted = {call["token_sha256"]: call["at"] for call in history.calls if call["minted"]}
    stored: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for event in history.events:
        if event.kind == "account" and event.sha256 in minted:
            stored[event.appid].append((event.at, minted[str(event.sha256)]))
    ordered = sorted(history.tokens(), key=lambda it: (it.node, it.life, it.appid))
    for (node, life, appid), answers in groupby(
        ordered, key=lambda it: (it.node, it.life, it.appid)
    ):
        began = history.lives.get((node, life), 0.0)
        floor = max((mint for at, mint in stored[appid] if at < began), default=0.0)
        for it in answers:
            if minted.get(it.digest, floor) < floor:
                yield (
                    f"I4: {node} served {it.version} of {appid}, though a newer one was stored"
                    " before it started"
                )


def a_dead_token_is_noticed(history: History) -> Iterator[str]:
    """A token that a later mint has pushed out is not served for long.

    The rule holds where nothing was amiss since the token died.
    """
    dies: dict[str, float] = {}
    last: dict[str, str] = {}
    for call in history.calls:
        if call["minted"]:
            if call["appid"] in last:
                dies[last[call["appid"]]] = call["at"] + history.rules.overlap
            last[call["appid"]] = call["token_sha256"]
    for it in history.tokens():
        died = dies.get(it.digest, float("inf"))
        calm = not any(
            blow.touches(died - CONVERGES_WITHIN_S, it.sent_at) for blow in history.blows
        )
        if it.sent_at > died + NOTICED_WITHIN_S and calm:
            yield (
                f"dead: {it.node} served {it.version} of {it.appid} {it.sent_at - died:.1f} s after"
                " it died"
            )


def all_nodes_agree_soon(history: History) -> Iterator[str]:
    """Within 5 s after healing."""
    for seconds in history.converged_s:
        if seconds > CONVERGES_WITHIN_S:
            yield f"converged: only {seconds:.1f} s after healing"


RULES = (
    a_version_means_one_token,
    nothing_but_what_was_issued_and_lives,
    never_an_older_one_after_a_newer,
    who_starts_serves_what_is_stored,
    a_dead_token_is_noticed,
    all_nodes_agree_soon,
)
