"""What tests share: keepers on real SQLite."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.doubles import Bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Keepers on a real store, a told clock, a scripted WeChat."""
    bench = Bench(tmp_path / "broker.db")
    yield bench
    await bench.close()
