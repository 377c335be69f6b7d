"""The store in a file: what is committed stays, for one owner, and means the same after a reboot.

What every store owes is in test_store_contract.py.
"""

import asyncio
import os
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from broker.core.credential import Doubt
from broker.core.ports import Claim, Grant, StoreBusy, StoreError, StoreRefused
from broker.core.quota import Lane
from broker.store.sqlite.schema import MIGRATIONS
from broker.store.sqlite.store import SqliteStore
from tests.harness.doubles import ACCOUNT, LOST, Bench, looked, value_of

CLAIM = Claim(Lane.SCHEDULED)


async def test_what_is_settled_is_there_for_the_next_process(bench: Bench) -> None:
    keeper = await bench.keeper()
    await looked(keeper)
    restarted = await bench.restarted()
    assert restarted.credential == keeper.credential
    assert restarted.usage() == keeper.usage()


async def test_a_reservation_is_on_disk_before_the_call_is_made(bench: Bench) -> None:
    keeper = await bench.keeper()
    seen: list[int] = []
    with closing(sqlite3.connect(bench.path)) as other:  # another process's eyes
        bench.wechat.before_answer = lambda: seen.extend(
            other.execute("select count(*) from calls where outcome is null").fetchone()
        )
        await looked(keeper)
    assert seen == [1]


async def test_commits_reach_the_disk_and_readers_do_not_block_writers(bench: Bench) -> None:
    store = await bench.open()
    assert store._file.db.execute("pragma synchronous").fetchone() == (2,)
    assert store._file.db.execute("pragma journal_mode").fetchone() == ("wal",)


async def test_after_a_reboot_ages_go_by_the_wall(bench: Bench) -> None:
    await looked(await bench.keeper())
    bench.clock.reboot(off_for=1000)
    keeper = await bench.restarted()
    served = keeper.serve()
    assert served is not None
    assert (served.token_expires_in, keeper.credential.suspicion) == (6200, None)
    assert keeper.usage().last_24h == 1


async def test_after_a_reboot_with_the_wall_set_back_the_token_is_suspect_and_replaced_once(
    bench: Bench,
) -> None:
    await looked(await bench.keeper())
    bench.clock.reboot(off_for=1000, wall_error=-bench.clock.unix)  # 1970: no battery
    keeper = await bench.restarted()
    assert keeper.credential.suspicion is not None
    assert keeper.credential.suspicion.doubt is Doubt.CLOCK
    assert keeper.serve() is None
    for _ in range(120):
        await looked(keeper)
        bench.clock.pass_(5)
    assert bench.wechat.calls == 2
    assert value_of(keeper) is not None


async def test_a_token_written_under_a_wrong_wall_has_its_true_age_after_a_reboot(
    bench: Bench,
) -> None:
    bench.clock.unix += 3600
    keeper = await bench.keeper()
    await looked(keeper)
    bench.clock.pass_(1800)
    bench.clock.unix -= 3600  # set right while we run
    await looked(keeper)
    bench.clock.pass_(1700)
    bench.clock.reboot(off_for=600)
    served = (await bench.restarted()).serve()
    assert served is not None
    assert served.token_expires_in == 7200 - 1800 - 1700 - 600
    assert bench.wechat.calls == 1


async def test_a_token_from_before_the_boot_is_in_doubt_once_the_wall_is_set(bench: Bench) -> None:
    await looked(await bench.keeper())
    bench.clock.reboot(
        off_for=3000, wall_error=-2900
    )  # no battery: the wall goes on from the last time saved on disk
    keeper = await bench.restarted()
    assert bench.wechat.calls == 1
    bench.clock.unix += 2900  # the network's time
    await looked(keeper)
    assert bench.wechat.calls == 2
    served = keeper.serve()
    assert served is not None
    assert served.token_expires_in == 7200
    await looked(await bench.restarted())
    assert bench.wechat.calls == 2


async def test_a_wall_that_was_set_while_we_were_down_is_noticed_as_well(bench: Bench) -> None:
    await looked(await bench.keeper())
    bench.clock.reboot(off_for=3000, wall_error=-2900)
    await bench.restarted()
    await bench.close()
    bench.clock.unix += 2900
    assert (await bench.keeper()).serve() is None


async def test_calls_made_under_a_slow_wall_still_count_their_full_day_after_a_reboot(
    bench: Bench,
) -> None:
    keeper = await bench.keeper()
    bench.clock.unix -= 3600
    await looked(keeper)
    bench.clock.pass_(4000)
    bench.clock.unix += 3600  # set right while we run
    await looked(keeper)
    bench.clock.pass_(4000)
    bench.clock.reboot(off_for=600)
    keeper = await bench.restarted()
    bench.clock.pass_(86_400 - 4000 - 4000 - 600 - 60)
    assert keeper.usage().last_24h == 2
    bench.clock.pass_(120)
    assert keeper.usage().last_24h == 1


async def test_two_boots_in_1970_do_not_add_up_to_a_known_age(bench: Bench) -> None:
    bench.clock.unix = 100.0
    await looked(await bench.keeper())
    bench.clock.pass_(1700)
    bench.clock.reboot(off_for=10, wall_error=-1610)  # 1970 once more, a little later in its day
    keeper = await bench.restarted()
    assert keeper.serve() is None
    await looked(keeper)
    assert bench.wechat.calls == 1  # for all we know, the last call was made just now
    bench.clock.pass_(bench.policy.min_gap + 1)
    await looked(keeper)
    assert bench.wechat.calls == 2
    assert value_of(keeper) is not None


async def test_a_token_of_unknown_age_stays_so_though_an_answer_is_lost_and_wechat_accepts_it(
    bench: Bench,
) -> None:
    await looked(await bench.keeper())
    bench.clock.reboot(off_for=3000, wall_error=-bench.clock.unix)
    keeper = await bench.restarted()
    bench.wechat.answers += [LOST] * 20
    for _ in range(120):
        await looked(keeper)
        bench.clock.pass_(5)
        assert keeper.serve() is None


async def test_in_a_boot_that_believes_in_1970_yesterdays_calls_still_age(bench: Bench) -> None:
    account = replace(ACCOUNT, daily_quota=30)
    keeper = await bench.keeper(account)
    for _ in range(24 * 60):
        await looked(keeper)
        bench.clock.pass_(60)
    bench.clock.reboot(off_for=600, wall_error=-bench.clock.unix)
    keeper = await bench.restarted(account)
    without = 0
    for _ in range(26 * 60):
        await looked(keeper)
        bench.clock.pass_(60)
        without += keeper.serve() is None
    # The wall is no help here: for all we know yesterday ended at this boot. 30 calls a day serve
    # 24 hours at most.
    assert without < 60 * 24
    await looked(keeper)
    assert value_of(keeper) is not None
    assert keeper.usage().last_24h <= 30


async def test_a_wall_clock_that_jumps_while_running_changes_no_age(bench: Bench) -> None:
    keeper = await bench.keeper()
    await looked(keeper)
    for jump in (86400, -86400 - 3600, 3600):
        bench.clock.unix += jump
        await looked(keeper)
        keeper = await bench.restarted()
        await looked(keeper)
        served = keeper.serve()
        assert served is not None
        assert served.token_expires_in == 7200
    assert bench.wechat.calls == 1


async def test_a_suspend_of_three_hours_ends_with_a_fresh_token_or_none(bench: Bench) -> None:
    keeper = await bench.keeper()
    await looked(keeper)
    bench.clock.pass_(3 * 3600)  # CLOCK_BOOTTIME ran on, no tick did
    assert keeper.serve() is None
    await looked(keeper)
    assert bench.wechat.calls == 2
    assert value_of(keeper) is not None


@pytest.mark.soak
async def test_old_calls_are_dropped_so_that_a_year_stays_small(bench: Bench) -> None:
    keeper = await bench.keeper()
    for _ in range(24 * 30):
        await looked(keeper)
        bench.clock.pass_(3960)
    assert 24 * 7 <= len(await bench.rows()) <= 24 * 9


async def test_a_restored_backup_begins_a_new_epoch(bench: Bench) -> None:
    keeper = await bench.keeper()
    await looked(keeper)
    await bench.close()
    backup = bench.path.read_bytes()
    bench.clock.pass_(4000)
    keeper = await bench.keeper()
    await looked(keeper)
    served_last = keeper.credential.version
    await bench.close()
    bench.path.write_bytes(backup)
    keeper = await bench.keeper()
    assert keeper.credential.epoch not in str(served_last)
    await looked(keeper)
    assert keeper.credential.version != served_last


# --- what is read ---------------------------------------------------------------------------------


async def test_settling_and_amending_read_no_ledger_rows_and_reserving_reads_them_once(
    bench: Bench,
) -> None:
    store = await bench.open()
    said: list[str] = []
    store._file.db.conn.set_trace_callback(said.append)

    def reads() -> int:
        found = sum(line.startswith("select") and " calls " in line for line in said)
        said.clear()
        return found

    grant = await store.reserve(ACCOUNT, lambda *_: CLAIM)
    assert isinstance(grant, Grant)
    assert reads() == 1
    await store.settle(ACCOUNT, grant, "minted", lambda held, _: replace(held, reserved_call=None))
    await store.amend(ACCOUNT, lambda held, _: replace(held, failures=1))
    assert reads() == 0


async def test_a_grant_holds_what_a_load_would_read(bench: Bench) -> None:
    store, account = await bench.open(), replace(ACCOUNT, daily_quota=3)
    for forced in (False, True, False, False, True):
        bench.clock.pass_(40_000)
        grant = await store.reserve(account, lambda *_, f=forced: Claim(Lane.REPORT, force=f))
        assert isinstance(grant, Grant)
        assert grant.entries == (await store.load(account)).entries
    assert [bench.clock.now() - entry.at for entry in grant.entries] == [0, 40_000, 80_000]


# --- ownership ------------------------------------------------------------------------------------


async def test_a_second_owner_is_refused_also_after_the_lock_file_was_deleted(bench: Bench) -> None:
    await bench.open()
    with pytest.raises(StoreBusy):
        await SqliteStore.open(bench.path, bench.clock)
    bench.path.with_name("broker.db.lock").unlink()
    with pytest.raises(StoreBusy):
        await SqliteStore.open(bench.path, bench.clock)
    assert (await bench.rows()) == []


async def test_a_refused_second_owner_does_not_break_the_locks_of_the_first(bench: Bench) -> None:
    await bench.open()
    for _ in range(3):
        with pytest.raises(StoreBusy):
            await SqliteStore.open(bench.path, bench.clock)
    keeper = await bench.keeper()
    await looked(keeper)
    assert value_of(keeper) is not None


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")


def _newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"pragma user_version = {len(MIGRATIONS) + 1}")
    path.chmod(0o600)


def _anothers(path: Path) -> None:
    path.touch(mode=0o600)
    os.chown(path, 65_534, 65_534)


def _planted(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def _planted_lock(path: Path) -> None:
    path.with_name(path.name + ".lock").symlink_to("/etc/passwd")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_newer, "newer"),
        pytest.param(_anothers, "belongs to another user", marks=needs_root),
        (_planted, "symbolic link"),
        (_planted_lock, "symbolic link"),
    ],
)
async def test_a_store_that_must_not_be_opened_is_left_untouched(
    bench: Bench, spoil: Callable[[Path], None], says: str
) -> None:
    spoil(bench.path)
    before = bench.path.lstat() if bench.path.is_symlink() or bench.path.exists() else None
    content = bench.path.read_bytes() if bench.path.exists() else None
    with pytest.raises(StoreRefused, match=says):
        await SqliteStore.open(bench.path, bench.clock)
    assert content is None or bench.path.read_bytes() == content
    assert before is None or bench.path.lstat().st_mode == before.st_mode


async def test_the_files_are_for_the_owner_only(bench: Bench) -> None:
    keeper = await bench.keeper()
    await looked(keeper)
    modes = {
        entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in os.scandir(bench.path.parent)
    }
    assert modes
    assert all(mode == 0o600 for mode in modes.values()), modes


async def test_a_directory_that_is_not_there_is_a_store_error(tmp_path: Path, bench: Bench) -> None:
    with pytest.raises(StoreError):
        await SqliteStore.open(tmp_path / "nowhere" / "broker.db", bench.clock)


async def test_the_event_loop_does_not_wait_for_a_locked_database(bench: Bench) -> None:
    keeper = await bench.keeper()
    other = sqlite3.connect(bench.path, isolation_level=None)
    other.execute("begin exclusive")
    keeper.tick()
    beats = 0
    while keeper.store_error is None:
        await asyncio.sleep(0)
        beats += 1
    assert beats > 100
    assert bench.wechat.calls == 0
    other.close()
    bench.clock.pass_(6)
    await keeper.drain()
    await looked(keeper)
    assert bench.wechat.calls == 1
