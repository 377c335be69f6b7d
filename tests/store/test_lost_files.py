"""The store's files deleted, moved or replaced while the daemon has them open."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.core.ports import StoreBusy
from broker.store.sqlite import name_lock
from broker.store.sqlite.name_lock import claim_name
from broker.store.sqlite.place import files_of
from broker.store.sqlite.store import SqliteStore
from broker.tokens.keeper import Keeper
from tests.harness.doubles import Bench, looked, value_of


def rows_that_people_see(path: Path) -> list[tuple[object, ...]]:
    with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as other:
        return other.execute("select outcome from calls order by id").fetchall()


def _deleted(path: Path) -> None:
    path.unlink()


def _all_deleted(path: Path) -> None:
    for file in files_of(path):
        file.unlink(missing_ok=True)


def _moved(path: Path) -> None:
    path.rename(path.with_name("elsewhere.db"))


def _replaced_by_another(path: Path) -> None:
    other = path.with_name("other.db")
    with sqlite3.connect(path) as source, sqlite3.connect(other) as target:
        source.backup(target)
        target.execute("delete from calls")
    other.chmod(0o600)
    other.rename(path)


def _log_deleted(path: Path) -> None:
    path.with_name(path.name + "-wal").unlink()


def _lock_deleted(path: Path) -> None:
    path.with_name(path.name + ".lock").unlink()


def _whole_directory_replaced(path: Path) -> None:
    _all_deleted(path)
    path.parent.rename(path.parent.with_name("gone"))
    path.parent.mkdir()


LOSSES = [
    _deleted,
    _all_deleted,
    _moved,
    _replaced_by_another,
    _log_deleted,
    _lock_deleted,
    _whole_directory_replaced,
]


@pytest.fixture
async def keeper(bench: Bench, tmp_path: Path) -> Keeper:
    """A keeper with a token, whose store has a directory of its own."""
    bench.path = tmp_path / "store" / "broker.db"
    bench.path.parent.mkdir()
    keeper = await bench.keeper()
    await looked(keeper)
    return keeper


@pytest.mark.parametrize("lose", LOSSES)
async def test_no_call_is_made_that_the_file_people_see_does_not_hold(
    bench: Bench, keeper: Keeper, lose: Callable[[Path], None]
) -> None:
    lose(bench.path)
    bench.clock.pass_(4000)
    seen: list[list[tuple[object, ...]]] = []
    bench.wechat.before_answer = lambda: seen.append(rows_that_people_see(bench.path))
    await looked(keeper)
    assert bench.wechat.calls == 1
    assert "while it was in use" in str(keeper.store_error)  # /health tells of it
    assert value_of(keeper) is not None
    for _ in range(8):
        bench.clock.pass_(40)
        await looked(keeper)
        assert value_of(keeper) is not None
    assert (bench.wechat.calls, keeper.store_error) == (2, None)
    assert seen[0][-1] == (None,)
    assert rows_that_people_see(bench.path)[-1] == ("minted",)
    restarted = await bench.restarted()
    assert value_of(restarted) == value_of(keeper)


async def test_what_a_successor_cannot_know_of_is_taken_for_spent(
    bench: Bench, keeper: Keeper
) -> None:
    _all_deleted(bench.path)
    bench.clock.pass_(4000)
    for _ in range(3):
        await looked(keeper)
        bench.clock.pass_(40)
    assert keeper.usage().remaining == 2000 - 1500 - 1


@pytest.mark.parametrize("lose", [_deleted, _all_deleted, _moved, _lock_deleted])
async def test_no_second_daemon_starts_beside_the_first(
    bench: Bench, keeper: Keeper, lose: Callable[[Path], None]
) -> None:
    lose(bench.path)
    with pytest.raises(StoreBusy):
        await SqliteStore.open(bench.path, bench.clock)
    await looked(keeper)
    assert value_of(keeper) is not None


async def test_where_a_second_daemon_has_the_file_the_first_makes_no_call(
    bench: Bench, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in two containers, each with a network namespace of its own."""
    _all_deleted(bench.path)
    monkeypatch.setattr("broker.store.sqlite.lock.claim_name", lambda _: None)
    second = await SqliteStore.open(bench.path, bench.clock)
    for _ in range(10):
        bench.clock.pass_(400)
        await looked(keeper)
    assert bench.wechat.calls == 1
    # Whichever is found first: that a part of the file is gone, or whose it is now.
    said = str(keeper.store_error)
    assert "another daemon owns" in said or "was deleted or replaced" in said
    await second.close()
    bench.clock.pass_(40)
    await looked(keeper)
    bench.clock.pass_(40)
    await looked(keeper)
    assert (bench.wechat.calls, keeper.store_error) == (2, None)


async def test_a_directory_that_is_gone_for_a_while_stops_calls_for_that_while(
    bench: Bench, keeper: Keeper
) -> None:
    bench.clock.pass_(4000)
    aside = bench.path.parent.with_name("aside")
    bench.path.parent.rename(aside)
    for _ in range(3):
        await looked(keeper)
        bench.clock.pass_(10)
        assert value_of(keeper) is not None
    assert bench.wechat.calls == 1
    assert "No such file" in str(keeper.store_error)
    aside.rename(bench.path.parent)
    await looked(keeper)
    assert (bench.wechat.calls, keeper.store_error) == (2, None)
    assert rows_that_people_see(bench.path) == [("minted",), ("minted",)]


def test_a_strangers_claim_to_the_name_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = claim_name(tmp_path / "broker.db")
    assert held is not None
    with pytest.raises(StoreBusy):
        claim_name(tmp_path / "broker.db")
    monkeypatch.setattr(name_lock, "_owner_of", lambda _: 4242)
    assert claim_name(tmp_path / "broker.db") is None
    monkeypatch.undo()
    held.close()
    again = claim_name(tmp_path / "broker.db")
    assert again is not None
    again.close()
