"""What is done to brokers, links, databases and clocks.

"Nemesis" is Jepsen's word. Each one puts right in the end what it has done.
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final

from tests.history.node import STEPS
from tests.history.world import MAIN, POOR, Host, World

SHORT_S: Final = 1.5  # shorter than a reservation's lease
BEYOND_S: Final = 1.5  # longer than the lease by this
APPIDS: Final = (MAIN, POOR)
HOUR_S: Final = 3600.0
PATIENCE_S: Final = 25.0

Nemesis = Callable[[World, random.Random], Awaitable[None]]


async def until(true: Callable[[], Any], what: str) -> Any:
    """Poll a condition, bounded; its value."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := true()):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)
    return value


# --- the holder -----------------------------------------------------------------------------------


async def kill_the_holder(step: str, world: World, chance: random.Random) -> None:
    """`kill -9` of whoever comes first to that step; after a while it is started again."""
    host = await _struck(world, step, "SIGKILL", lambda host: host.state in "ZX")
    blow = world.blow("kill", host.name, step)
    await asyncio.to_thread(host.bury)
    await asyncio.sleep(chance.uniform(0.2, 1.5))
    await world.start(host)
    blow.healed_at = time.time()


async def stop_the_holder(step: str, seconds: float, world: World, _chance: random.Random) -> None:
    """SIGSTOP, and SIGCONT after so many seconds."""
    host = await _struck(world, step, "SIGSTOP", lambda host: host.state == "T")
    blow = world.blow("stop" if seconds < world.scale.rules.lease else "stop long", host.name, step)
    try:
        await asyncio.sleep(seconds)
    finally:
        os.kill(host.pid, signal.SIGCONT)
        blow.healed_at = time.time()


async def _struck(world: World, step: str, blow: str, is_struck: Callable[[Host], bool]) -> Host:
    """Order a blow; the host that it struck.

    Answers are slow meanwhile, so that `called` is before `answered`.
    """
    await world.control("/faults", {"kind": "slow", "seconds": 0.25, "times": 6})
    draft = world.fate.with_name("fate.new")
    draft.write_text(f"{step} {blow}")
    draft.rename(world.fate)
    host: Host = await until(
        lambda: next((it for it in world.hosts if it.process and is_struck(it)), None),
        f"nobody came to {step}",
    )
    return host


async def let_them_call(number: int, world: World, _chance: random.Random) -> None:
    """Do nothing until so many more calls were made."""
    wanted = number + len(await world.control("/calls"))
    deadline = time.monotonic() + PATIENCE_S
    while len(await world.control("/calls")) < wanted:
        assert time.monotonic() < deadline, "no call was made"
        await asyncio.sleep(0.05)


async def let_each_be_called(world: World, _chance: random.Random) -> None:
    """Do nothing until each app got another token.

    Somebody's reservation may be in the way of that for long.
    """
    seen = len(await world.control("/calls"))
    deadline = time.monotonic() + PATIENCE_S
    while len(
        {it["appid"] for it in await world.control(f"/calls?since={seen}") if it["outcome"] == 0}
    ) < len(APPIDS):
        assert time.monotonic() < deadline, "no call was made"
        await asyncio.sleep(0.05)


# --- the link -------------------------------------------------------------------------------------


async def cut_the_link(world: World, chance: random.Random) -> None:
    """A node's connections to the database are reset, and refused for a while."""
    host = chance.choice(world.hosts)
    blow = world.blow("cut", host.name)
    for relay in host.relays:
        relay.cut_off()
    await asyncio.sleep(chance.uniform(0.5, 4))
    for relay in host.relays:
        relay.heal()
    blow.healed_at = time.time()


async def silence_the_link(world: World, chance: random.Random) -> None:
    """Nothing gets through for a while; what was sent arrives late."""
    host = chance.choice(world.hosts)
    blow = world.blow("silence", host.name)
    for relay in host.relays:
        relay.fall_silent()
    await asyncio.sleep(chance.uniform(2, 8))
    for relay in host.relays:
        relay.heal()
    blow.healed_at = time.time()


async def lose_commits(world: World, chance: random.Random) -> None:
    """A node's COMMIT arrives, and the answer to it does not."""
    host = chance.choice(world.hosts)
    blow = world.blow("lost commit", host.name)
    for relay in host.relays:
        relay.cut_after = b"commit\0"
    await asyncio.sleep(chance.uniform(1, 3))
    for relay in host.relays:
        relay.cut_after = b""
    blow.healed_at = time.time()


# --- the database ---------------------------------------------------------------------------------


async def restart_the_database(world: World, chance: random.Random) -> None:
    """In order, or as after a crash; a while later it is there again."""
    how = chance.choice([signal.SIGINT, signal.SIGQUIT])
    blow = world.blow("restart")
    await asyncio.to_thread(world.primary.stop, how)
    await asyncio.sleep(chance.uniform(0, 2))
    await asyncio.to_thread(world.primary.start)
    blow.healed_at = time.time()


async def fail_over(world: World, chance: random.Random) -> None:
    """`kill -9` of the primary; the standby is promoted.

    An asynchronous one has not got the last commits.
    """
    assert world.standby is not None
    blow = world.blow("failover")
    if not world.history.synchronous:
        await _fall_behind(world, chance)
    fallen, heir = world.primary, world.standby
    await asyncio.to_thread(fallen.stop, signal.SIGKILL)
    await asyncio.sleep(chance.uniform(0, 1))
    world.history.promoted_at = time.time()
    await asyncio.to_thread(heir.promote)
    world.primary, world.standby, world.fallen = heir, None, fallen
    blow.healed_at = time.time()


async def fail_over_in_the_dark(world: World, chance: random.Random) -> None:
    """The same, but the first to find the new primary is one who was cut off.

    It has not heard of the commits that were lost.
    """
    assert world.standby is not None
    blind, *others = chance.sample(world.hosts, len(world.hosts))
    blow = world.blow("failover", step="in the dark")
    for relay in blind.relays:
        relay.cut_off()
    await _fall_behind(world, chance)
    fallen, heir = world.primary, world.standby
    await asyncio.to_thread(fallen.stop, signal.SIGKILL)
    for host in others:
        for relay in host.relays:
            relay.cut_off()
    world.history.promoted_at = time.time()
    await asyncio.to_thread(heir.promote)
    world.primary, world.standby, world.fallen = heir, None, fallen
    for relay in blind.relays:
        relay.heal()
    await let_them_call(3, world, chance)
    for host in others:
        for relay in host.relays:
            relay.heal()
    blow.healed_at = time.time()


async def _fall_behind(world: World, chance: random.Random) -> None:
    """Until calls were made that the standby knows nothing of."""
    assert world.standby is not None
    await asyncio.to_thread(
        world.standby.reload, primary_conninfo=""
    )  # stopped, it would still find all in its socket
    while await asyncio.to_thread(world.standby.sql, "select 1 from pg_stat_wal_receiver"):
        await asyncio.sleep(0.02)
    await let_them_call(chance.randint(1, 4), world, chance)


# --- clocks ---------------------------------------------------------------------------------------


async def set_a_clock(world: World, chance: random.Random) -> None:
    """A node's wall clock is an hour wrong for a while."""
    host = chance.choice(world.hosts)
    blow = world.blow("clock", host.name)
    host.clock.write_text(str(chance.choice([-HOUR_S, HOUR_S])))
    await asyncio.sleep(chance.uniform(2, 5))
    host.clock.unlink()
    blow.healed_at = time.time()


AROUND: Final[dict[str, Nemesis]] = {
    "cut": cut_the_link,
    "silence": silence_the_link,
    "lost commit": lose_commits,
    "restart": restart_the_database,
    "clock": set_a_clock,
    "failover": fail_over,
}


def rounds(
    kind: str, number: int, lease: float, chance: random.Random
) -> list[tuple[Nemesis, ...]]:
    """What a storm does.

    Each kind of storm has its half of the holder's blows, so that both together have them all.
    """
    long = lease + BEYOND_S
    blows: list[Nemesis] = []
    for n, step in enumerate(("reserved", "called", "answered", "settled")):
        half = (n % 2 == 0) == (kind == "synchronous")
        blows.append(
            partial(kill_the_holder, step) if half else partial(stop_the_holder, step, long)
        )
    others = [partial(stop_the_holder, step, SHORT_S) for step in STEPS] + [
        partial(kill_the_holder, step) for step in STEPS
    ]
    more: list[Nemesis] = [
        partial(stop_the_holder, "calling", long),
        *chance.sample(others, len(others)),
    ]
    blows = [*chance.sample(blows, len(blows)), *more][:number]
    while len(blows) < number:
        blows.append(chance.choice(others))
    around = [name for name in AROUND if name != "failover"]
    drawn = [AROUND[name] for name in chance.sample(around, len(around))]
    while len(drawn) < number:
        drawn.append(AROUND[chance.choice(around)])
    # Not at first: there must be a history to lose; nor together with the restart, which is the
    # same server's.
    return [
        *zip(blows[: number // 2], drawn, strict=False),
        (fail_over,),
        *zip(blows[number // 2 :], drawn[number // 2 :], strict=False),
    ]


async def storm(world: World, rounds: Iterable[tuple[Nemesis, ...]], chance: random.Random) -> None:
    """Strike round after round.

    What belongs together is done at once. Then all is put right, and answers must soon show it.
    """
    for together in rounds:
        await asyncio.gather(*(nemesis(world, chance) for nemesis in together))
        await world.healed()
