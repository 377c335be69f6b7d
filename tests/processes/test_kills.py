"""kill -9 at random moments under load. `CRASH_SEED=n` draws the same moments again."""

import contextlib
import http.client
import itertools
import os
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.harness import invariants
from tests.harness.crashpoints import Child, ForkedDaemon, ForkServer

APPS = {"main": "token", "shop": "token", "mini": "stable_token", "game": "stable_token"}
# A token lives 20 s and is due after 0.2: where a daemon lives as long as a test has patience, it
# refreshes all the time.
HASTY = """
refresh_fraction = 0.01
tick = 0.03
min_gap = 0.25
max_backoff = 0.5
verify_gap = 0.1
min_serve = 1
overlap = 10
"""
LONGEST_LIFE_S = 0.2


@pytest.fixture
def house(tmp_path: Path, forks: ForkServer) -> Iterator[ForkedDaemon]:
    house = ForkedDaemon(tmp_path, fork_server=forks)
    with house.simulating("--expires-in", "20", "--overlap", "10"):
        others = [
            f'[apps.{name}]\nappid = "wx{name}"\nsecret_file = "{tmp_path}/main.secret"\nendpoint ='
            f' "{endpoint}"'
            for name, endpoint in APPS.items()
            if name != "main"
        ]
        config = house.configure(policy=HASTY, more="\n".join(others))
        config.write_text(config.read_text().replace("tick = 0.2\n", ""))
        yield house


@dataclass
class Storm:
    """Daemons that are killed while they are asked, and what they had answered."""

    house: ForkedDaemon
    chance: random.Random
    wiring: str = ""
    answers: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: {name: [] for name in APPS}
    )
    refused: Counter[str] = field(default_factory=Counter)
    kills: int = 0

    def kill(self, times: int) -> None:
        """So many lives, each ended by `kill -9` at a random moment."""
        for _ in range(times):
            self._order_faults()
            with self.house.living(wiring=self.wiring, patient=False) as daemon:
                moment = self.chance.uniform(0, LONGEST_LIFE_S)
                killer = threading.Timer(moment, daemon.kill)
                killer.start()
                self._ask_until_death(daemon)
                killer.join()
                assert daemon.code == -9, "it died by itself"
                self.kills += 1

    def _order_faults(self) -> None:
        self.house.control(
            "/faults", {"kind": "slow", "seconds": self.chance.uniform(0, 0.08), "times": 4}
        )
        if self.chance.random() < 0.1:
            self.house.control(
                "/faults", {"kind": self.chance.choice(["drop", "reset"]), "mint": True}
            )

    def _ask_until_death(self, daemon: Child) -> None:
        self.house.daemon = self.house.url_of(daemon)
        with contextlib.suppress(OSError, http.client.HTTPException):
            while self.house.daemon:
                self._ask(self.chance.choice(list(APPS)))

    def _ask(self, app: str) -> None:
        asked_at = time.time()
        match self.chance.choices(["get", "report", "refresh"], [8, 1, 1])[0]:
            case "report" if self.answers[app]:
                status, answer = self.house.post(
                    f"/v1/tokens/{app}/report", {"version": self.answers[app][-1]["version"]}
                )
            case "refresh":
                status, answer = self.house.post(f"/v1/tokens/{app}/refresh")
            case _:
                status, answer = self.house.get(f"/v1/tokens/{app}")
        if status == 200:
            self.answers[app].append({**answer, "asked_at": asked_at, "received_at": time.time()})
        else:
            self.refused[answer["code"]] += 1

    def check(self) -> None:
        """I1 to I6; I1 for each app."""
        calls, ledger = self.house.calls(), self.house.ledger()
        for appid in {call["appid"] for call in calls}:
            mine = [row for row in ledger if row["appid"] == appid]
            invariants.i1_every_call_has_its_row(
                [call for call in calls if call["appid"] == appid], mine
            )
        for answers in self.answers.values():
            invariants.check(self.house, answers)

    def tell(self) -> str:
        served, cut = (
            sum(map(len, self.answers.values())),
            sum(row["outcome"] is None for row in self.house.ledger()),
        )
        calls = len(self.house.calls())
        return (
            f"{self.kills} killed, {cut} of {calls} calls cut off, {served} answers, others"
            f" {dict(self.refused)}"
        )


@pytest.mark.soak
def test_two_hundred_kills_at_random_moments_under_load_break_no_invariant(
    house: ForkedDaemon,
) -> None:
    seed = int(os.environ.get("CRASH_SEED") or random.randrange(10**6))
    print(f"CRASH_SEED={seed}")
    storm = Storm(house, random.Random(seed))
    storm.kill(200)
    print(storm.tell())
    storm.check()
    assert sum(row["outcome"] is None for row in house.ledger()) >= 20, (
        "the kills missed what they were meant for"
    )
    assert house.said("store-set-aside") == house.said("crashed") == []
    assert (
        len({it["version"].split("-")[0] for it in itertools.chain(*storm.answers.values())}) == 1
    )
    with contextlib.closing(sqlite3.connect(house.store)) as db:
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)


def test_with_the_reservation_moved_behind_the_call_the_same_kills_are_caught(
    house: ForkedDaemon,
) -> None:
    storm = Storm(house, random.Random(7), wiring="backwards")
    storm.kill(12)
    print(storm.tell())
    with pytest.raises(AssertionError, match=r"\d+ calls, \d+ rows"):
        storm.check()
