"""Hand-outs and documents, on SQLite and on PostgreSQL alike."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.core.handouts import Handout
from broker.store.encryption import Plain
from broker.store.postgres.store import PostgresStore
from broker.store.sqlite.store import SqliteStore
from tests.harness.doubles import ManualClock

DAY = 86400.0
SideStore = SqliteStore | PostgresStore


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.needs("initdb"))])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SideStore]:
    opened: SideStore
    if request.param == "sqlite":
        opened = await SqliteStore.open(tmp_path / "broker.db", ManualClock(), Plain())
    else:
        opened = await PostgresStore.open(request.getfixturevalue("database"), ManualClock())
    yield opened
    await opened.close()


def handed(client: str, version: str, at: float, count: int = 1) -> Handout:
    return Handout(client, "wx1", version, count, at, at)


async def test_what_was_seen_adds_up(store: SideStore) -> None:
    await store.add_handouts([handed("orders", "e-1", 100.0), handed("shop", "e-1", 105.0)])
    await store.add_handouts([handed("orders", "e-1", 200.0, count=5)])
    await store.add_handouts([Handout("orders", "wx1", "e-1", held=2, held_at=300.0)])
    await store.add_handouts([Handout("orders", "wx1", "e-0", held=1, held_at=250.0)])
    assert await store.handouts("wx1", 10) == [
        Handout("orders", "wx1", "e-1", 6, 100.0, 200.0, 2, 300.0),
        Handout("orders", "wx1", "e-0", 0, None, None, 1, 250.0),
        Handout("shop", "wx1", "e-1", 1, 105.0, 105.0, 0, None),
    ]
    assert await store.handouts("wx2", 10) == []
    assert len(await store.handouts("wx1", 2)) == 2


async def test_an_observation_that_comes_late_moves_the_first_time_back(store: SideStore) -> None:
    await store.add_handouts([Handout("orders", "wx1", "e-1", held=1, held_at=300.0)])
    await store.add_handouts([handed("orders", "e-1", 200.0)])
    await store.add_handouts([handed("orders", "e-1", 100.0)])
    (row,) = await store.handouts("wx1", 10)
    assert (row.first_at, row.last_at, row.held_at) == (100.0, 200.0, 300.0)


async def test_old_rows_are_forgotten_and_the_number_of_rows_is_bounded(store: SideStore) -> None:
    await store.add_handouts([handed("orders", f"e-{n}", n * DAY) for n in range(1, 41)])
    await store.drop_handouts(before=10 * DAY, most=1000)
    assert [row.version for row in await store.handouts("wx1", 1000)][-1] == "e-10"
    await store.drop_handouts(before=0, most=5)
    assert [row.version for row in await store.handouts("wx1", 1000)] == [
        "e-40", "e-39", "e-38", "e-37", "e-36",
    ]  # fmt: skip


async def test_a_document_is_rewritten_by_one_at_a_time(store: SideStore) -> None:
    def plus_one(text: str | None, _now: float) -> str:
        return str(int(text or 0) + 1)

    await asyncio.gather(*(store.rewrite("counter", plus_one) for _ in range(20)))
    seen: list[str | None] = []

    def look(text: str | None, now: float) -> None:
        assert now > 1e9
        seen.append(text)

    await store.rewrite("counter", look)
    await store.rewrite("another", look)
    assert seen == ["20", None]


async def test_a_rewrite_that_fails_changes_nothing(store: SideStore) -> None:
    await store.rewrite("notices", lambda _text, _now: json.dumps({"a": 1}))

    def bug(_text: str | None, _now: float) -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.rewrite("notices", bug)
    seen: list[str | None] = []
    await store.rewrite("notices", lambda text, _now: seen.append(text))
    assert seen == ['{"a": 1}']
