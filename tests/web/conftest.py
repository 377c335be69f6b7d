"""What the tests of connections share; tests of other parts start their application themselves."""

from collections.abc import AsyncIterator

import pytest

from tests.harness.doubles import Bench
from tests.harness.peers import Daemon, daemon_on


@pytest.fixture
async def daemon(bench: Bench) -> AsyncIterator[Daemon]:
    """The application on real sockets, without clients' keys."""
    async with daemon_on(bench) as daemon:
        yield daemon
