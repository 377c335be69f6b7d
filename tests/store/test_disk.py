"""C.

Disk and database: whatever breaks, memory serves, nothing is called without being counted, nothing
is deleted.
"""

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.core import epoch
from broker.core.ports import Claim, StoreError
from broker.core.quota import Lane
from broker.store.encryption import MARK, Plain, Sealed
from broker.store.sqlite.lock import StoreLock
from broker.store.sqlite.store import SqliteStore
from broker.tokens.emergency_budget import BUDGET, EmergencyBudget
from broker.tokens.keeper import Keeper
from tests.harness.doubles import ACCOUNT, CANARY, DOWN, Bench, looked, value_of
from tests.harness.small_disk import fill


def token(number: int) -> str:
    return f"{CANARY}-main-t{number}"


@pytest.fixture
def tight(bench: Bench, small_disk: Path) -> Bench:
    """Keepers whose store is on the small disk."""
    bench.path = small_disk / "broker.db"
    return bench


async def in_need(bench: Bench, runtime: Path | None) -> Keeper:
    """A keeper with a token and an emergency budget."""
    tools = await bench.dependencies()
    tools.emergency_budget = EmergencyBudget(runtime)
    keeper = Keeper(ACCOUNT, tools)
    await keeper.start()
    await looked(keeper)
    return keeper


async def outcomes(bench: Bench) -> list[tuple[object, object]]:
    """What came of each call, and whether it was made in an emergency."""
    return [(row["outcome"], row["emergency"]) for row in await bench.rows()]


# --- a disk that is full, read-only or locked -----------------------------------------------------


async def test_a_full_disk_before_a_refresh_means_no_call_until_there_is_room(
    tight: Bench, small_disk: Path
) -> None:
    keeper = await in_need(tight, None)
    ballast = fill(small_disk)
    for _ in range(20):
        tight.clock.pass_(200 + 1)
        await looked(keeper)
    assert tight.wechat.calls == 1
    assert value_of(keeper) == token(1)
    assert "full" in str(keeper.store_error)
    ballast.unlink()
    tight.clock.pass_(6)
    await looked(keeper)
    assert (tight.wechat.calls, value_of(keeper), keeper.store_error) == (2, token(2), None)


async def test_a_full_disk_after_the_call_means_serving_from_memory_and_storing_later(
    tight: Bench, small_disk: Path
) -> None:
    keeper = await in_need(tight, None)
    tight.clock.pass_(4000)
    full: list[Path] = []
    tight.wechat.before_answer = lambda: full.append(fill(small_disk))
    await looked(keeper)
    tight.wechat.before_answer = lambda: None
    assert value_of(keeper) == token(2)
    full[0].unlink()
    tight.clock.pass_(6)
    await looked(keeper)
    assert tight.wechat.calls == 2
    restarted = await tight.restarted()
    assert (value_of(restarted), restarted.credential.suspicion) == (token(2), None)


async def test_in_the_last_minutes_of_a_token_the_emergency_budget_pays_and_the_ledger_learns_of_it(
    tight: Bench, small_disk: Path, tmp_path: Path
) -> None:
    keeper = await in_need(tight, tmp_path)
    ballast = fill(small_disk)
    tight.clock.pass_(6800)
    await looked(keeper)
    assert tight.wechat.calls == 1  # still 400 s left: the disk may recover
    tight.clock.pass_(150)
    await looked(keeper)
    assert (tight.wechat.calls, value_of(keeper)) == (2, token(2))
    in_emergency = keeper.credential.version
    ballast.unlink()
    tight.clock.pass_(6)
    await looked(keeper)
    assert tight.wechat.calls == 2
    assert await outcomes(tight) == [("minted", 0), ("minted", 1)]
    restarted = await tight.restarted()
    assert value_of(restarted) == token(2)
    assert restarted.credential.version != in_emergency


async def test_a_disk_that_breaks_after_a_call_does_not_keep_the_emergency_budget_from_paying(
    tight: Bench, small_disk: Path, tmp_path: Path
) -> None:
    keeper = await in_need(tight, tmp_path)
    tight.clock.pass_(4000)
    full: list[Path] = []
    tight.wechat.before_answer = lambda: full.append(fill(small_disk))
    await looked(keeper)
    tight.wechat.before_answer = lambda: None
    for _ in range(690):
        assert value_of(keeper) == token(2)
        tight.clock.pass_(10)
        await looked(keeper)
    tight.clock.pass_(100)
    await looked(keeper)
    assert (tight.wechat.calls, value_of(keeper)) == (3, token(3))
    full[0].unlink()
    tight.clock.pass_(6)
    await looked(keeper)
    assert await outcomes(tight) == [("minted", 0), ("minted", 0), ("minted", 1)]
    assert keeper.store_error is None
    assert value_of(await tight.restarted()) == token(3)


async def test_a_wall_that_is_set_while_the_disk_is_full_is_written_down_when_there_is_room(
    tight: Bench, small_disk: Path
) -> None:
    keeper = await in_need(tight, None)
    ballast = fill(small_disk)
    tight.clock.unix += 3600
    for _ in range(3):
        tight.clock.pass_(10)
        await looked(keeper)
    assert "full" in str(keeper.store_error)
    assert len(tight.told("store-failed")) == 1
    ballast.unlink()
    tight.clock.pass_(10)
    await looked(keeper)
    assert keeper.store_error is None
    await tight.close()
    tight.clock.reboot(60)
    assert (
        await tight.keeper()
    ).credential.suspicion is None  # the wall it is known by did not jump


@pytest.mark.parametrize("last", epoch.ALPHABET)
def test_no_epoch_that_is_drawn_is_taken_for_one_of_an_emergency(last: str) -> None:
    """Two tokens of one version would be one token to every client."""
    drawn = "k3f" + last
    assert epoch.in_emergency(drawn) == epoch.in_emergency(epoch.in_emergency(drawn)) != drawn


async def test_the_emergency_budget_holds_for_a_whole_day_of_a_broken_disk_and_over_restarts(
    tight: Bench, small_disk: Path, tmp_path: Path
) -> None:
    tools = await tight.dependencies()
    tools.emergency_budget = EmergencyBudget(tmp_path)
    keeper = Keeper(ACCOUNT, tools)
    await keeper.start()
    await looked(keeper)
    fill(small_disk)
    tight.wechat.answers.extend([DOWN] * 1000)
    for _ in range(1700):
        tight.clock.pass_(50)
        await looked(keeper)
        tools.emergency_budget = EmergencyBudget(tmp_path)
    assert tight.wechat.calls == 1 + BUDGET


async def test_after_an_emergency_call_of_a_dead_process_the_stored_token_is_suspect(
    tight: Bench, small_disk: Path, tmp_path: Path
) -> None:
    keeper = await in_need(tight, tmp_path)
    ballast = fill(small_disk)
    tight.clock.pass_(6950)
    await looked(keeper)
    assert tight.wechat.calls == 2
    ballast.unlink()
    await tight.close()
    tools = await tight.dependencies()
    tools.emergency_budget = EmergencyBudget(tmp_path)
    restarted = Keeper(ACCOUNT, tools)
    await restarted.start()
    assert restarted.credential.suspicion is not None


def test_an_emergency_budget_that_cannot_be_read_or_written_is_spent(tmp_path: Path) -> None:
    budget = EmergencyBudget(tmp_path)
    assert budget.spend("wx1", 1000.0)
    assert not budget.spend("wx1", 1100.0)  # too soon after the last
    assert budget.spend("wx2", 1100.0)
    (tmp_path / "emergency.json").write_text("not json")
    assert not budget.spend("wx1", 90_000.0)
    assert not EmergencyBudget(None).spend("wx1", 0.0)
    assert not EmergencyBudget(tmp_path / "nowhere").spend("wx1", 0.0)


async def test_a_file_system_remounted_read_only_is_like_a_full_one(
    tight: Bench, small_disk: Path
) -> None:
    keeper = await in_need(tight, None)
    await tight.rows()
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    # Files that are open for writing keep it busy, as they would in the world: then only a forced
    # remount works.
    if subprocess.run(remount, capture_output=True, check=False).returncode:
        await tight.close()
        subprocess.run(remount, check=True)
        keeper = await tight.keeper()
    tight.clock.pass_(4000)
    await looked(keeper)
    assert (tight.wechat.calls, value_of(keeper)) == (1, token(1))


# --- a start where nothing can be written ---------------------------------------------------------


def _full(disk: Path) -> Callable[[], object]:
    return fill(disk).unlink


def _read_only(disk: Path) -> Callable[[], object]:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    return lambda: subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


def _locked(disk: Path) -> Callable[[], object]:
    other = sqlite3.connect(disk / "broker.db", isolation_level=None)
    other.execute("begin immediate")
    return other.close


def _killed(disk: Path) -> None:
    """Leave the files as a killed process leaves them: with a write-ahead log, and its index."""
    copies = [(file, file.read_bytes()) for file in disk.glob("broker.db*")]
    assert any(file.name.endswith("-wal") for file, _ in copies)
    for file, content in copies:
        file.with_name("killed-" + file.name).write_bytes(content)
    for file, _ in copies:
        aside = file.with_name("killed-" + file.name)
        aside.chmod(0o600)


@pytest.mark.parametrize("ended", ["stopped", "killed"])
@pytest.mark.parametrize("spoil", [_full, _read_only, _locked])
async def test_a_start_serves_what_is_stored_and_writes_when_it_can(
    tight: Bench, small_disk: Path, spoil: Callable[[Path], Callable[[], object]], ended: str
) -> None:
    served = await tight.keeper()
    await looked(served)
    if ended == "killed":
        _killed(small_disk)
    await tight.close()
    for file in small_disk.glob("killed-*"):
        file.rename(file.with_name(file.name.removeprefix("killed-")))
    cure = spoil(small_disk)
    keeper = await tight.keeper()
    assert value_of(keeper) == value_of(served) == token(1)
    assert keeper.usage().last_24h == 1
    assert tight.store is not None
    assert "what it held at the start is served" in str(keeper.store_error)  # /health warns
    with pytest.raises(StoreError):  # never a call that no disk knows of
        await tight.store.reserve(ACCOUNT, lambda *_: Claim(Lane.SCHEDULED))
    for _ in range(3):
        tight.clock.pass_(100)
        await looked(keeper)
    assert (value_of(keeper), tight.wechat.calls) == (token(1), 1)
    cure()
    for _ in range(2):
        tight.clock.pass_(10)
        await looked(keeper)
    assert keeper.store_error is None
    tight.clock.pass_(4000)
    await looked(keeper)
    assert (value_of(keeper), tight.wechat.calls) == (token(2), 2)
    restarted = await tight.restarted()
    assert value_of(restarted) == token(2)
    assert restarted.credential.epoch == served.credential.epoch


async def test_in_its_last_minutes_a_token_on_a_full_disk_costs_the_emergency_budget_only(
    tight: Bench, small_disk: Path, tmp_path: Path
) -> None:
    await in_need(tight, tmp_path)
    await tight.close()
    ballast = fill(small_disk)
    tight.clock.pass_(6800)
    tools = await tight.dependencies()
    tools.emergency_budget = EmergencyBudget(tmp_path)
    keeper = Keeper(ACCOUNT, tools)
    await keeper.start()
    for _ in range(20):
        await looked(keeper)
        tight.clock.pass_(30)
    assert (tight.wechat.calls, value_of(keeper)) == (2, token(2))
    ballast.unlink()
    tight.clock.pass_(10)
    await looked(keeper)
    await looked(keeper)
    assert await outcomes(tight) == [("minted", 0), ("minted", 1)]


# --- a database that is damaged -------------------------------------------------------------------


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(4096, len(content), 512):
        content[place] ^= 0xFF
    path.write_bytes(content)


def _truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 100)


def _emptied(path: Path) -> None:
    os.truncate(path, 0)


def _foreign(path: Path) -> None:
    path.write_bytes(b"-----BEGIN SOMETHING ELSE-----\n" * 500)


def _header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0:16] = b"\x00" * 16
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_flipped, _truncated, _emptied, _foreign, _header])
async def test_a_damaged_store_is_set_aside_and_its_successor_is_careful(
    bench: Bench, damage: Callable[[Path], None]
) -> None:
    keeper = await bench.keeper()
    await looked(keeper)
    served_last = keeper.credential.version
    await bench.close()
    damage(bench.path)
    spoiled = bench.path.read_bytes()
    keeper = await bench.keeper()
    assert bench.store is not None
    assert bench.store.set_aside is not None
    assert Path(bench.store.set_aside).read_bytes() == spoiled
    assert ".corrupt-" in bench.store.set_aside
    for _ in range(3):
        bench.clock.pass_(40)
        await looked(keeper)
    assert bench.wechat.calls == 2  # one refresh
    assert keeper.credential.epoch not in str(served_last)
    assert (
        keeper.usage().remaining == 500 - 1
    )  # of 2000: the ledger is lost, so most of the day is taken as spent


async def test_a_store_whose_wal_is_gone_is_recognised_and_its_token_not_served(
    bench: Bench,
) -> None:
    keeper = await bench.keeper()
    await looked(keeper)
    await bench.close()
    keeper = await bench.keeper()
    bench.clock.pass_(4000)
    await looked(keeper)
    served_last = keeper.credential.version
    # What a power cut and a careless cleanup leave: the main file without what was only in the WAL.
    aside = bench.path.with_name("kept.db")
    shutil.copy(bench.path, aside)
    await bench.close()
    shutil.copy(aside, bench.path)
    keeper = await bench.keeper()
    assert keeper.serve() is None
    bench.clock.pass_(40)
    await looked(keeper)
    assert keeper.credential.version != served_last
    assert keeper.credential.epoch not in str(served_last)
    assert bench.wechat.calls == 3
    assert keeper.usage().last_24h >= 3


async def test_damage_while_running_is_served_through_and_repaired(bench: Bench) -> None:
    keeper = await bench.keeper()
    await looked(keeper)
    with contextlib.closing(sqlite3.connect(bench.path)) as other:
        other.execute("pragma wal_checkpoint(truncate)")
    _foreign(bench.path)
    bench.clock.pass_(4000)
    for _ in range(8):
        bench.clock.pass_(40)
        await looked(keeper)
        assert value_of(keeper) is not None
    assert (value_of(keeper), keeper.store_error) == (token(2), None)
    assert bench.wechat.calls == 2
    assert list(bench.path.parent.glob("*.corrupt-*"))
    assert value_of(await bench.restarted()) == token(2)


async def test_a_store_replaced_by_an_empty_one_while_running_takes_over_what_memory_holds(
    bench: Bench,
) -> None:
    keeper = await bench.keeper()
    await looked(keeper)
    store = await bench.open()
    with contextlib.closing(sqlite3.connect(bench.path)) as other, other:
        other.execute("delete from accounts")
    bench.clock.pass_(4000)
    await looked(keeper)
    assert value_of(keeper) is not None
    bench.clock.pass_(40)
    await looked(keeper)
    assert (value_of(keeper), bench.wechat.calls) == (token(2), 2)
    assert store is bench.store


# --- tokens at rest -------------------------------------------------------------------------------


async def reopened(bench: Bench, key: str | None, previous: str | None = None) -> Keeper:
    await bench.close()
    seal = Sealed(key, previous) if key else Plain()
    bench.store = await SqliteStore.open(bench.path, bench.clock, seal)
    return await bench.keeper()


async def test_a_sealed_token_is_not_in_the_file_and_opens_with_its_key(bench: Bench) -> None:
    keeper = await reopened(bench, "k" * 32)
    await looked(keeper)
    assert value_of(await reopened(bench, "k" * 32)) == token(1)
    await bench.close()
    assert token(1).encode() not in b"".join(
        path.read_bytes() for path in bench.path.parent.glob("broker.db*")
    )


@pytest.mark.parametrize("other", ["another key, of length 32 or so.", None])
async def test_a_wrong_key_reads_as_no_token_and_one_refresh_follows(
    bench: Bench, other: str | None
) -> None:
    await looked(await reopened(bench, "k" * 32))
    keeper = await reopened(bench, other)
    assert keeper.credential.token is None
    bench.clock.pass_(40)
    await looked(keeper)
    assert (value_of(keeper), bench.wechat.calls) == (token(2), 2)


async def test_a_new_key_writes_and_the_previous_one_reads_until_it_is_not_needed(
    bench: Bench,
) -> None:
    old, new = "the key until now, of some length", "the key from now on, of some length"
    await looked(await reopened(bench, old))
    keeper = await reopened(bench, new, old)
    assert value_of(keeper) == token(1)
    assert value_of(await reopened(bench, new)) == token(1)  # the start wrote it with the new key
    assert bench.wechat.calls == 1
    assert (await reopened(bench, old)).credential.token is None


async def test_a_token_that_this_key_does_not_open_stays_for_the_one_that_does(
    bench: Bench,
) -> None:
    await looked(await reopened(bench, "k" * 32))
    await reopened(bench, "another key, of length 32 or so.")
    await reopened(bench, None)
    assert value_of(await reopened(bench, "k" * 32)) == token(1)


async def test_a_sealed_token_does_not_open_in_another_accounts_place() -> None:
    seal = Sealed("k" * 32)
    kept = seal.seal("token", "wx1/token/7")
    assert kept.startswith(MARK)
    assert seal.unseal(kept, "wx1/token/7") == "token"
    for wrong in ("wx2/token/7", "wx1/stable_token/7", "wx1/token/8"):
        assert seal.unseal(kept, wrong) is None
    for garbage in (MARK, MARK + "!!", MARK + "QUJD", "plain"):
        assert seal.unseal(garbage, "wx1/token/7") is None


async def test_a_first_start_that_was_cut_off_is_not_taken_for_a_loss(bench: Bench) -> None:
    StoreLock(bench.path).release()  # as far as a start comes before the first page is written
    assert bench.path.stat().st_size == 0
    keeper = await bench.keeper()
    assert bench.store is not None
    assert bench.store.set_aside is None
    await looked(keeper)
    assert keeper.usage().remaining == 2000 - 1
    await bench.close()
    _emptied(bench.path)
    await bench.keeper()
    assert bench.store.set_aside is not None


async def test_the_ledger_of_a_day_is_not_counted_twice_when_it_was_lost(bench: Bench) -> None:
    await looked(await bench.keeper())
    await bench.close()
    _emptied(bench.path)
    for _ in range(3):
        keeper = await bench.restarted()
    assert keeper.usage().remaining == 500
