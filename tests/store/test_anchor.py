"""Where instants of another boot are put, by the wall at both ends.

Clocks are stepped, hosts reboot, and the store moves to another host.
"""

from dataclasses import dataclass, replace

import pytest

from broker.core.credential import Doubt
from broker.store.sqlite.anchor import Anchor
from tests.harness.doubles import Bench, looked, value_of

NOON = 1_790_000_000.0
DAY = 86_400.0


@dataclass(frozen=True)
class Case:
    """A row is written at wall time `wrote`; a host that is `up` so long reads it at `looks`."""

    up: float
    looks: float
    wrote: float = NOON
    ago: float | None = None  # seconds since the call, as it is placed; None: made just now
    trusted: bool = False  # the token's age


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(60, NOON + 660, ago=660, trusted=True), id="reboot"),
        pytest.param(Case(3600, NOON + 60, ago=60), id="host up for an hour"),
        pytest.param(Case(20 * DAY, NOON + 7, ago=7), id="host up for twenty days"),
        pytest.param(Case(20 * DAY, NOON + 2 * DAY, ago=2 * DAY), id="moved after two days"),
        pytest.param(Case(60, 60.0), id="reboot with the wall in 1970"),
        pytest.param(Case(20 * DAY, 60.0), id="host whose wall is in 1970"),
        pytest.param(Case(60, NOON, wrote=100.0), id="written in 1970"),
        pytest.param(Case(60, 900.0, wrote=100.0), id="1970 at both ends"),
        pytest.param(Case(60, NOON - 3600), id="reboot with the wall an hour slow"),
        pytest.param(Case(60, NOON + 660, wrote=NOON + 3600), id="written by a wall an hour fast"),
        pytest.param(
            Case(60, NOON + DAY + 660, ago=DAY + 660, trusted=True), id="reboot, a day fast"
        ),
    ],
)
async def test_calls_of_another_boot_are_placed_by_a_sane_wall_and_else_taken_for_new(
    bench: Bench, case: Case
) -> None:
    bench.clock.unix = case.wrote
    await looked(await bench.keeper())
    bench.clock.boot_id, bench.clock.steady, bench.clock.unix = "other", case.up, case.looks
    keeper = await bench.restarted()
    (entry,) = (await (await bench.open()).load(keeper.account)).entries
    ago = case.ago or 0.0
    assert keeper.credential.called_at == pytest.approx(case.up - ago)
    assert entry.at == pytest.approx(case.up - ago)
    doubt = keeper.credential.suspicion
    assert (doubt is None) if case.trusted else (doubt is not None and doubt.doubt is Doubt.CLOCK)
    await bench.close()
    bench.clock.pass_(50)
    again = await bench.keeper()  # placed once: from here on it ages
    assert bench.clock.now() - again.credential.called_at == pytest.approx(ago + 50)


async def test_a_volume_that_moves_to_a_running_host_brings_its_gap_and_its_quota(
    bench: Bench,
) -> None:
    """The next call used to be made after seven seconds, and the day's calls were forgotten."""
    keeper = await bench.keeper()
    calls = 10
    while bench.wechat.calls < calls:
        bench.clock.pass_(100)
        await looked(keeper)
    bench.clock.boot_id, bench.clock.steady = "other", 20 * DAY
    bench.clock.unix += 7
    keeper = await bench.restarted()
    assert keeper.usage().last_24h == calls
    await looked(keeper)
    assert (bench.wechat.calls, keeper.serve()) == (calls, None)
    bench.clock.pass_(bench.policy.min_gap)
    await looked(keeper)
    assert bench.wechat.calls == calls + 1
    assert value_of(keeper) is not None


async def test_a_wall_that_is_set_back_after_the_boot_takes_back_what_it_freed(
    bench: Bench,
) -> None:
    await looked(await bench.keeper())
    bench.clock.reboot(off_for=600, wall_error=1.5 * DAY)
    keeper = await bench.restarted()
    assert keeper.usage().last_24h == 0
    bench.clock.unix -= 1.5 * DAY  # the network's time
    await looked(keeper)
    entries = (await (await bench.open()).load(keeper.account)).entries
    assert sorted(bench.clock.now() - entry.at for entry in entries) == pytest.approx([0, 600])


def test_the_wall_places_only_what_it_can_have_seen() -> None:
    here = Anchor("b", 1000.0, NOON)
    places = {NOON: 1000.0, NOON - 1: 999.0, NOON - 5000: -4000.0, NOON + 1: 1000.0, 5.0: 1000.0}
    assert {wall: here.of_wall(wall) for wall in places} == places
    assert replace(here, wall=5.0).of_wall(4.0) == 1000.0
