"""What the companion's tests share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.harness.companion import Scene, scene
from tests.harness.consent import Asking, asking_scene


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Scene]:
    """A companion, its daemon and a sandbox, all running."""
    async with scene(tmp_path) as there:
        yield there


@pytest.fixture
async def asking(tmp_path: Path) -> AsyncIterator[Asking]:
    """A companion that asks people for their avatar, with daemon and sandbox."""
    async with asking_scene(tmp_path) as asking:
        yield asking
