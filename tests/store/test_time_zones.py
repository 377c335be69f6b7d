"""D25. Summer time, a leap second, another time zone: nothing happens."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.harness import invariants
from tests.harness.crashpoints import ForkedDaemon, ForkServer
from tests.harness.doubles import Bench, looked, value_of

ZONES = [
    "Asia/Shanghai",
    "America/New_York",
    "Pacific/Kiritimati",
    "Pacific/Niue",
    "Asia/Kathmandu",
    "CST-8",
    ":no such zone",
]


def test_daemons_of_all_time_zones_agree_on_one_store(tmp_path: Path, forks: ForkServer) -> None:
    house, answers, today = ForkedDaemon(tmp_path, fork_server=forks), [], []
    with house.simulating():
        house.configure()
        for zone in ZONES:
            with house.living(environ={"TZ": zone}):
                answers.append(house.served())
                today.append(house.get("/v1/status")[1]["apps"][0]["quota"]["used_today"])
        assert {answer["version"] for answer in answers} == {answers[0]["version"]}
        assert {answer["state"] for answer in answers} == {"fresh"}
        assert [answer["expires_in"] for answer in answers] == sorted(
            (it["expires_in"] for it in answers), reverse=True
        )
        assert all(
            abs(ends_at(answer) - answer["asked_at"] - answer["expires_in"]) < 2
            for answer in answers
        )
        assert set(today) == {1}
        assert len(house.calls()) == 1
        invariants.check(house, answers)


def ends_at(answer: dict[str, Any]) -> float:
    assert answer["expires_at"].endswith("Z")
    return datetime.fromisoformat(answer["expires_at"]).timestamp()


@pytest.mark.parametrize("second", [-1, 1])
async def test_a_leap_second_changes_no_age_and_causes_no_call(bench: Bench, second: int) -> None:
    keeper = await bench.keeper()
    await looked(keeper)
    before = keeper.serve()
    bench.clock.unix += second
    for _ in range(3):
        await looked(keeper)
        assert keeper.serve() == before
        keeper = await bench.restarted()
    assert (bench.wechat.calls, keeper.usage().today) == (1, 1)
    assert value_of(keeper) is not None
