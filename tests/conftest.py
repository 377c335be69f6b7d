"""Fixtures that tests of several rooms share, and what each test needs of the machine."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.harness import cluster as clusters
from tests.harness import small_disk as disks
from tests.harness.chromium import Browser, chromium
from tests.harness.crashpoints import ForkedDaemon, ForkServer, fork_server
from tests.harness.doubles import Bench
from tests.harness.redis_server import RedisServer
from tests.harness.tools import mark_of, need

# A fixture cannot carry a mark. Who uses one of these needs this of the machine.
NEEDED_BY_FIXTURE: Final = {"cluster": ("initdb",), "small_disk": ("mount",)}


def _needed_by(item: pytest.Item) -> list[str]:
    fixtures = getattr(item, "fixturenames", ())
    needed = [name for fixture in fixtures for name in NEEDED_BY_FIXTURE.get(fixture, ())]
    return needed + [str(name) for mark in item.iter_markers("needs") for name in mark.args]


@pytest.hookimpl(tryfirst=True)  # before pytest selects by mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with what it needs: postgres, browser, node, root."""
    for item in items:
        for name in _needed_by(item):
            if mark := mark_of(name):
                item.add_marker(mark)


@pytest.hookimpl(tryfirst=True)  # before the fixtures, which use what is needed
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what cannot be run here; with CI=true, fail it."""
    need(*_needed_by(item))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Keepers on a real store, a manual clock and a scripted WeChat."""
    bench = Bench(tmp_path / "broker.db")
    yield bench
    await bench.close()


@pytest.fixture
def house(tmp_path: Path, forks: ForkServer) -> Iterator[ForkedDaemon]:
    """A configuration in a directory of its own, and a running sandbox; no daemon yet."""
    house = ForkedDaemon(tmp_path, fork_server=forks)
    with house.simulating():
        house.configure()
        yield house


@pytest.fixture(scope="session")
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


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A running redis-server that nobody else uses."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A Chromium of a module's tests, with a profile of its own."""
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser
