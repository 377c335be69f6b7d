"""What the sandbox's tests share."""

import pytest
from pytest_aiohttp import AiohttpClient

from tests.harness.sandbox_bench import SandboxBench


@pytest.fixture
async def bench(aiohttp_client: AiohttpClient) -> SandboxBench:
    """A sandbox that has been asked nothing yet."""
    return await SandboxBench().opened(aiohttp_client)
