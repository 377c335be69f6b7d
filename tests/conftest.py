"""Fixtures that tests of several rooms share."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.harness import cluster as clusters
from tests.harness import small_disk as disks
from tests.harness.crashpoints import ForkServer, fork_server
from tests.harness.doubles import Bench
from tests.harness.processes import House


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Keepers on a real store, a manual clock and a scripted WeChat."""
    bench = Bench(tmp_path / "broker.db")
    yield bench
    await bench.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A configuration in a directory of its own, and a running sandbox; no daemon yet."""
    house = House(tmp_path)
    with house.sandboxed():
        house.configure()
        yield house


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    """A process that has imported the daemon and forks one for each order."""
    with fork_server() as running:
        yield running


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system of two megabytes that no other test uses."""
    with disks.small_disk(tmp_path) as disk:
        yield disk


@pytest.fixture(scope="session")
def cluster() -> Iterator[clusters.Cluster]:
    """A PostgreSQL that all tests of a session share.

    A test makes a database of its own and leaves the server as it was.
    """
    with clusters.cluster() as running:
        yield running


@pytest.fixture
def database(cluster: clusters.Cluster) -> Iterator[str]:
    """The URL of an empty database, as the role that owns it."""
    name = cluster.database()
    yield cluster.dsn(name)
    cluster.sql(f"drop database {name} with (force)")
