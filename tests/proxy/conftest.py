"""What the proxy's tests share."""

from collections.abc import AsyncIterator

import pytest

from tests.harness.proxy_harness import Hostile


@pytest.fixture
async def wechat() -> AsyncIterator[Hostile]:
    """A WeChat that records what it is sent."""
    async with Hostile().serving() as wechat:
        yield wechat
