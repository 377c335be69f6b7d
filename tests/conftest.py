"""What tests share: keepers on real SQLite, and a PostgreSQL cluster."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.harness import cluster as clusters
from tests.harness.doubles import Bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Keepers on a real store, a told clock, a scripted WeChat."""
    bench = Bench(tmp_path / "broker.db")
    yield bench
    await bench.close()


@pytest.fixture(scope="session")
def cluster() -> Iterator[clusters.Cluster]:
    """A PostgreSQL that all tests of a session share: make a database of your own, and leave the server as it was."""
    with clusters.cluster() as running:
        yield running


@pytest.fixture
def database(cluster: clusters.Cluster) -> Iterator[str]:
    """The URL of an empty database, as the role that owns it."""
    name = cluster.database()
    yield cluster.dsn(name)
    cluster.sql(f"drop database {name} with (force)")
