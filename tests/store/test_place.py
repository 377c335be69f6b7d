"""Where a store may lie and what may be in it.

It depends on the file's owner, its directory, its disk and its tables.
"""

import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.core.ports import StoreRefused
from broker.store.sqlite.check import inspect, warnings
from broker.store.sqlite.place import (
    NETWORKED,
    files_of,
    is_on_container_layer,
    network_file_system,
    refusals,
)
from tests.harness.doubles import Bench, looked, value_of

SOMEBODY = 4242
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")


async def refused(bench: Bench, says: str) -> None:
    """The daemon does not start, `check` says the same, and the file stays as it is."""
    before = bench.path.read_bytes() if bench.path.is_file() else None
    with pytest.raises(StoreRefused, match=says) as why:
        await bench.open()
    assert str(why.value) in inspect(bench.path)
    assert "Traceback" not in str(why.value)
    assert before is None or bench.path.read_bytes() == before


# --- whose it is ----------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("suffix", ["", ".lock", "-wal", "-shm"])
async def test_a_file_of_another_user_is_refused(bench: Bench, suffix: str) -> None:
    await looked(await bench.keeper())
    await bench.close()
    file = bench.path.with_name(bench.path.name + suffix)
    file.touch(mode=0o600)
    os.chown(file, SOMEBODY, SOMEBODY)
    await refused(bench, "belongs to another user")


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
async def test_a_link_where_sqlite_would_write_is_refused(
    bench: Bench, tmp_path: Path, suffix: str
) -> None:
    bench.path.with_name(bench.path.name + suffix).symlink_to(tmp_path / "elsewhere")
    await refused(bench, "symbolic link")
    assert not (tmp_path / "elsewhere").exists()


@pytest.fixture
def own(bench: Bench, tmp_path: Path) -> Path:
    """A directory for the store alone."""
    directory = tmp_path / "store"
    directory.mkdir()
    bench.path = directory / "broker.db"
    return directory


@needs_root
@pytest.mark.parametrize(
    ("owner", "group", "mode", "says"),
    [
        (SOMEBODY, 0, 0o755, "belongs to another user"),
        (0, 0, 0o777, "everybody may write"),
        (0, SOMEBODY, 0o775, f"the group {SOMEBODY} may write"),
    ],
)
async def test_a_directory_in_which_others_could_replace_the_store_is_refused(
    bench: Bench, own: Path, owner: int, group: int, mode: int, says: str
) -> None:
    os.chown(own, owner, group)
    own.chmod(mode)
    await refused(bench, says)
    os.chown(own, 0, 0)


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o775, 0o1777, 0o2770])
async def test_a_directory_in_which_nobody_else_can_is_taken(
    bench: Bench, own: Path, mode: int
) -> None:
    own.chmod(mode)
    await looked(await bench.keeper())
    assert inspect(bench.path) == []


@needs_root
async def test_the_top_of_a_volume_is_as_wide_as_the_platform_made_it(
    bench: Bench, small_disk: Path
) -> None:
    small_disk.chmod(0o777)
    bench.path = small_disk / "broker.db"
    await looked(await bench.keeper())
    assert inspect(bench.path) == []


async def test_modes_that_a_platform_widened_are_put_right_at_each_start(bench: Bench) -> None:
    await looked(await bench.keeper())
    copies = {file: file.read_bytes() for file in files_of(bench.path)}
    await bench.close()
    for file, content in copies.items():  # as a killed process leaves them
        file.write_bytes(content)
        file.chmod(0o660)
    assert len(warnings(bench.path)) == len(copies) == 4
    keeper = await bench.keeper()
    assert value_of(keeper) is not None
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in files_of(bench.path)}
    assert set(modes.values()) == {0o600}, modes
    assert bench.store is not None
    assert set(bench.store.corrected) == {(file, 0o660) for file in copies}
    assert warnings(bench.path) == []


# --- on which disk --------------------------------------------------------------------------------

MOUNTS = """\
22 28 0:21 / /proc rw - proc proc rw
28 1 254:0 / / rw - {root} /dev/vda rw
40 28 0:50 / {mount} rw shared:1 - {kind} server:/export rw
"""


@pytest.mark.parametrize("kind", sorted(NETWORKED))
def test_a_network_file_system_is_known(tmp_path: Path, kind: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS.format(root="ext4", mount=tmp_path, kind=kind))
    assert network_file_system(tmp_path / "broker.db", mounts) == kind
    assert network_file_system(Path("/elsewhere/broker.db"), mounts) is None
    assert not is_on_container_layer(tmp_path / "broker.db", mounts)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "fuseblk", "overlay"])
def test_a_local_one_is_taken(tmp_path: Path, kind: str) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS.format(root="overlay", mount=tmp_path, kind=kind))
    assert network_file_system(tmp_path / "broker.db", mounts) is None


async def test_a_store_on_a_network_file_system_is_refused(
    monkeypatch: pytest.MonkeyPatch, bench: Bench
) -> None:
    assert network_file_system(bench.path) is None  # as it is
    monkeypatch.setattr("broker.store.sqlite.place.network_file_system", lambda _: "nfs4")
    await refused(bench, "network file system")


@pytest.mark.parametrize("root", ["overlay", "9p"])
def test_a_containers_own_layer_is_warned_of_and_gvisors_is_no_network(
    tmp_path: Path, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS.format(root=root, mount="/data", kind="ext4"))
    assert network_file_system(tmp_path / "broker.db", mounts) is None
    assert is_on_container_layer(tmp_path / "broker.db", mounts)
    assert not is_on_container_layer(Path("/data/broker.db"), mounts)
    monkeypatch.setattr("broker.store.sqlite.check.is_on_container_layer", lambda _: True)
    (said,) = warnings(tmp_path / "broker.db")
    assert "mount a volume" in said
    assert refusals(tmp_path / "broker.db") == []


# --- with what in it ------------------------------------------------------------------------------


def _another_program(db: sqlite3.Connection) -> None:
    db.execute("create table bookmarks (id integer primary key, url text)")
    db.execute("insert into bookmarks (url) values ('https://example.org')")


def _another_program_with_a_version(db: sqlite3.Connection) -> None:
    _another_program(db)
    db.execute("pragma user_version = 1")


@pytest.mark.parametrize("fill", [_another_program, _another_program_with_a_version])
async def test_another_programs_database_is_refused_and_left_as_it_is(
    bench: Bench, fill: Callable[[sqlite3.Connection], None]
) -> None:
    with sqlite3.connect(bench.path) as db:
        fill(db)
    bench.path.chmod(0o600)
    await refused(bench, "no store of token-broker's")
    with sqlite3.connect(bench.path) as db:
        assert db.execute("pragma journal_mode").fetchone() == ("delete",)


LOOSE = (
    "create table accounts_ as select * from accounts; drop table accounts;"
    " alter table accounts_ rename to accounts"
)
LOOSE_CALLS = (
    "create table calls_ as select * from calls; drop table calls;"
    " alter table calls_ rename to calls"
)


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ("drop table calls", "lacks the table calls"),
        ("drop table meta", "lacks the table meta"),
        ("alter table accounts drop column safe_until", "lacks the column accounts.safe_until"),
        ("alter table calls drop column lease_lost", "lacks the column calls.lease_lost"),
        ("delete from meta", "no epoch"),
        ("update meta set value = ''", "no epoch"),
        ("update accounts set boot_at = null", "boot_at is empty"),
        ("update accounts set wall_at = null", "wall_at is empty"),
        ("update accounts set failures = null", "failures is empty"),
        ("update accounts set requested_at = null", "a token without requested_at"),
        ("update accounts set token_call = null", "a token without token_call"),
        ("update accounts set doubt = 'clock'", "a doubt without doubt_since"),
        ("update accounts set doubt = 'moon'", "doubt is none that token-broker writes"),
        ("update accounts set endpoint = 'moon'", "endpoint is none that"),
        ("update accounts set failure = 'moon'", "failure is none that"),
        ("update accounts set expires_at = 9e999", "expires_at is no instant"),
        (f"{LOOSE}; update accounts set called_at = 'noon'", "called_at is of another type"),
        (f"{LOOSE}; update accounts set token = x'00ff'", "token is of another type"),
        ("update calls set lane = 'moon'", "row\\(s\\) of the table calls"),
        ("update calls set boot_at = null", "row\\(s\\) of the table calls"),
        ("update calls set wall_at = 9e999", "row\\(s\\) of the table calls"),
        (f"{LOOSE_CALLS}; update calls set cost = 'many'", "row\\(s\\) of the table calls"),
    ],
)
async def test_a_store_that_is_odd_inside_ends_in_a_sentence_that_check_says_too(
    bench: Bench, odd: str, says: str
) -> None:
    await looked(await bench.keeper())
    await bench.close()
    with sqlite3.connect(bench.path) as db:
        db.executescript(odd)
        db.execute("pragma wal_checkpoint(truncate)")
    await refused(bench, says)


async def test_an_odd_row_that_appears_while_running_stops_calls_and_not_the_serving(
    bench: Bench,
) -> None:
    keeper = await bench.keeper()
    await looked(keeper)
    with sqlite3.connect(bench.path) as other:
        other.execute("update calls set lane = 'moon'")
    bench.clock.pass_(4000)
    await looked(keeper)
    assert "does not write" in str(keeper.store_error)
    assert value_of(keeper) is not None
    assert bench.wechat.calls == 1
    assert not bench.told("crashed")
    with sqlite3.connect(bench.path) as other:
        other.execute("update calls set lane = 'report'")
    bench.clock.pass_(10)
    await looked(keeper)
    assert (bench.wechat.calls, str(keeper.store_error)) == (2, "None")


def test_a_store_that_is_not_there_yet_or_empty_is_good(tmp_path: Path) -> None:
    assert inspect(tmp_path / "broker.db") == []
    (tmp_path / "broker.db").touch(mode=0o600)
    assert inspect(tmp_path / "broker.db") == []
    assert inspect(tmp_path / "nowhere" / "broker.db") != []


def test_nobody_is_let_in_by_the_check_itself(tmp_path: Path) -> None:
    assert inspect(tmp_path / "broker.db") == []
    assert list(tmp_path.iterdir()) == []
