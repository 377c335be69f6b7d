"""I1 to I6 of SCENARIOS.md, to be checked after every scenario."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from broker.core.quota import DAY, day_began
from tests.harness.doubles import CANARY
from tests.harness.processes import House


def check(house: House, answers: Iterable[dict[str, Any]] = (), daily_quota: int = 2000) -> None:
    """All six, on a house that has been through something."""
    calls, ledger = house.calls(), house.ledger()
    minted = {
        call["token_sha256"]: call["at"] for call in house.control("/calls") if call["token_sha256"]
    }
    i1_every_call_has_its_row(calls, ledger)
    i2_the_quota_holds(ledger, daily_quota)
    i3_one_call_in_flight(house)
    i4_and_i5_answers_are_whole_ordered_and_alive(
        answers, minted, house.control("")["options"]["expires_in"]
    )
    i6_nothing_leaks(house.home)


def i1_every_call_has_its_row(calls: list[dict[str, Any]], ledger: list[dict[str, Any]]) -> None:
    assert len(calls) <= len(ledger), f"{len(calls)} calls, {len(ledger)} rows"


def i2_the_quota_holds(ledger: list[dict[str, Any]], daily_quota: int) -> None:
    """For each account: its tokens and its tickets have a ledger each."""
    for account in {(row["appid"], row["endpoint"]) for row in ledger}:
        walls = sorted(
            row["wall_at"] for row in ledger if (row["appid"], row["endpoint"]) == account
        )
        for wall in walls:
            assert sum(wall - DAY < other <= wall for other in walls) <= daily_quota
            assert sum(day_began(other) == day_began(wall) for other in walls) <= daily_quota


def i3_one_call_in_flight(house: House) -> None:
    for account in house.control("")["accounts"].values():
        assert account["max_in_flight"] <= 1, account


def i4_and_i5_answers_are_whole_ordered_and_alive(
    answers: Iterable[dict[str, Any]], minted: dict[str, float], lifetime: float
) -> None:
    """Answers in the order one client received them, each with `received_at` (unix time)."""
    versions: dict[str, set[str]] = {}
    kept = list(answers)
    for answer in kept:
        digest = hashlib.sha256(answer["access_token"].encode()).hexdigest()
        versions.setdefault(answer["version"], set()).add(digest)
        assert digest in minted, "a token that the sandbox never issued"
        assert answer["received_at"] < minted[digest] + lifetime, "an expired token"
        assert answer["expires_in"] <= minted[digest] + lifetime - answer["asked_at"] + 0.001, (
            "more than the truth"
        )
    assert all(len(tokens) == 1 for tokens in versions.values()), "two tokens under one version"
    for older, newer in pairwise(kept):
        (epoch_a, call_a), (epoch_b, call_b) = (it["version"].split("-") for it in (older, newer))
        assert epoch_a != epoch_b or int(call_a) <= int(call_b), (
            f"{older['version']} after {newer['version']}"
        )


def i6_nothing_leaks(home: Path) -> None:
    for log in home.glob("*.log"):
        assert CANARY not in log.read_text(errors="replace"), f"a secret in {log}"
    for process in _descendants(os.getpid()):
        for name in ("cmdline", "environ"):
            try:
                content = Path(f"/proc/{process}", name).read_bytes()
            except OSError:
                continue
            assert CANARY.encode() not in content, f"a secret in /proc/{process}/{name}"


def _descendants(process: int) -> Iterator[int]:
    """The processes that this one has started, and those that they have started.

    Other tests run beside it, whose secrets are not looked for here.
    """
    for task in Path(f"/proc/{process}/task").glob("[0-9]*"):
        try:
            children = [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
        for child in children:
            yield child
            yield from _descendants(child)
