"""A Redis for the tests of this room."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.redis_server import RedisServer


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A running redis-server that nobody else uses."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()
