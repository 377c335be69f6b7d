"""What the proxy's tests share."""

from collections.abc import AsyncIterator

import pytest

from tests.harness.doubles import Bench
from tests.harness.proxy_harness import Hostile, Proxied


@pytest.fixture
async def wechat() -> AsyncIterator[Hostile]:
    """A WeChat that records what it is sent."""
    async with Hostile().serving() as wechat:
        yield wechat


@pytest.fixture
async def broker(bench: Bench, wechat: Hostile) -> AsyncIterator[Proxied]:
    """A broker that proxies for the programs of its machine, with a token."""
    async with Proxied(bench, wechat).serving() as broker:
        await broker.look()
        yield broker
