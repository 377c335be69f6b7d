"""A token in a file: whole or not at all, for its readers only, never an older one over a newer."""

import asyncio
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from broker.config.schema import SinkFormat
from broker.config.settings import FileSinkSettings
from broker.sinks.file import FileSink
from broker.sinks.formats import Writing
from broker.sinks.outcome import SinkError, SinkFault
from tests.harness.doubles import APPID, CANARY, NOON
from tests.harness.small_disk import fill

TOKEN = f"{CANARY}-token"


def writing(call: int = 1, token: str = TOKEN, **more: Any) -> Writing:
    plain = {
        "app": "main",
        "appid": APPID,
        "epoch": "e",
        "minted_at": NOON + call,
        "expires_in": 3600,
        "ends_at": NOON + 3600,
    }
    return Writing(**{**plain, "token": token, "version": f"e-{call}", "call": call, **more})


def sink(path: Path, form: SinkFormat = SinkFormat.TOKEN, mode: int = 0o640) -> FileSink:
    return FileSink(FileSinkSettings(path, form, mode, None))


async def test_json_says_what_the_api_says(tmp_path: Path) -> None:
    await sink(tmp_path / "main.json", SinkFormat.JSON).write(writing())
    assert json.loads((tmp_path / "main.json").read_text()) == {
        "app": "main",
        "appid": APPID,
        "access_token": TOKEN,
        "expires_at": "2026-09-21T15:13:20Z",
        "version": "e-1",
    }


async def test_the_bare_token_is_nothing_but_the_token(tmp_path: Path) -> None:
    await sink(tmp_path / "main").write(writing())
    assert (tmp_path / "main").read_bytes() == TOKEN.encode()
    assert stat.S_IMODE((tmp_path / "main").stat().st_mode) == 0o640
    assert TOKEN not in (tmp_path / ".main.version").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"main", ".main.version"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to any group")
async def test_the_group_is_the_one_that_is_named(tmp_path: Path) -> None:
    await FileSink(FileSinkSettings(tmp_path / "main", SinkFormat.TOKEN, 0o640, 7)).write(writing())
    assert (tmp_path / "main").stat().st_gid == 7


async def test_readers_see_one_token_or_the_next_and_never_half_of_one(tmp_path: Path) -> None:
    target, path = sink(tmp_path / "main"), tmp_path / "main"
    await target.write(writing(1, "a" * 512))
    seen: set[bytes] = set()
    stop = asyncio.Event()

    async def read() -> None:
        while not stop.is_set():
            seen.add(await asyncio.to_thread(path.read_bytes))

    reading = asyncio.create_task(read())
    for call in range(2, 60):
        await target.write(writing(call, ("b" if call % 2 else "c") * 512))
    stop.set()
    await reading
    assert {(len(one), len(set(one))) for one in seen} == {(512, 1)}


async def test_a_watcher_sees_a_rename(tmp_path: Path) -> None:
    target = sink(tmp_path / "main")
    await target.write(writing(1))
    before = (tmp_path / "main").stat().st_ino
    await target.write(writing(2))
    assert (tmp_path / "main").stat().st_ino != before


async def test_what_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    target, path = sink(tmp_path / "main"), tmp_path / "main"
    await target.write(writing())
    before = path.stat().st_ino
    await target.write(writing(ends_at=NOON + 3601))
    assert path.stat().st_ino == before
    await target.write(writing(ends_at=NOON + 3700))
    assert path.stat().st_ino != before, "the promise has moved"
    path.write_text("somebody else")
    await target.write(writing(ends_at=NOON + 3700))
    assert path.read_text() == TOKEN
    path.unlink()
    await target.write(writing(ends_at=NOON + 3700))
    assert path.read_text() == TOKEN


async def test_an_older_token_is_never_put_over_a_newer_one(tmp_path: Path) -> None:
    one, other, path = sink(tmp_path / "main"), sink(tmp_path / "main"), tmp_path / "main"
    await one.write(writing(2, "newer", ends_at=4e9))
    await other.write(writing(1, "older"))
    assert path.read_text() == "newer"
    await other.write(writing(1, "newest", epoch="f", minted_at=NOON + 60, ends_at=4e9))
    assert path.read_text() == "newest"
    await one.clear()
    assert path.read_text() == "newest", "it is another's"


async def test_what_is_no_longer_served_is_taken_away(tmp_path: Path) -> None:
    target = sink(tmp_path / "main")
    await target.write(writing())
    await target.clear()
    assert not (tmp_path / "main").exists()
    await target.clear()
    await target.write(writing())
    assert (tmp_path / "main").exists()


async def test_a_token_of_an_earlier_process_goes_when_its_time_is_over(tmp_path: Path) -> None:
    await sink(tmp_path / "main").write(writing(ends_at=4e9))
    await sink(tmp_path / "main").clear()
    assert (tmp_path / "main").exists()
    await sink(tmp_path / "main").write(writing(2, ends_at=1e9))
    await sink(tmp_path / "main").clear()
    assert not (tmp_path / "main").exists()


async def fault(target: FileSink, call: int = 1) -> SinkFault:
    with pytest.raises(SinkError) as caught:
        await target.write(writing(call))
    return caught.value.fault


async def test_a_directory_that_opened_up_meanwhile_is_refused(tmp_path: Path) -> None:
    target = sink(tmp_path / "main")
    await target.write(writing())
    tmp_path.chmod(0o777)
    assert await fault(target, 2) is SinkFault.OPEN_TO_OTHERS
    assert (tmp_path / "main").read_text() == TOKEN


async def test_a_link_in_the_place_of_the_version_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".main.version").symlink_to(tmp_path / "elsewhere")
    assert await fault(sink(tmp_path / "main")) is SinkFault.NOT_WRITABLE
    assert not (tmp_path / "elsewhere").exists()


async def test_a_link_in_the_place_of_the_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "main").symlink_to(tmp_path / "elsewhere")
    await sink(tmp_path / "main").write(writing())
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "main").is_symlink()


@pytest.mark.needs("mount")
async def test_a_full_disk_is_said_and_the_old_token_stays_whole(small_disk: Path) -> None:
    small_disk.chmod(0o700)
    target = sink(small_disk / "main")
    await target.write(writing())
    ballast = fill(small_disk)
    assert await fault(target, 2) is SinkFault.DISK_FULL
    assert (small_disk / "main").read_text() == TOKEN
    assert {path.name for path in small_disk.iterdir()} == {"main", ".main.version", "ballast"}
    ballast.unlink()
    await target.write(writing(2, "next"))
    assert (small_disk / "main").read_text() == "next"
