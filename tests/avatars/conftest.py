"""What the companion's tests share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness.companion import Scene, scene


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Scene]:
    """A companion, its daemon and a sandbox, all running."""
    async with scene(tmp_path) as there:
        yield there
