"""One call for any number of callers who want the same: they all wait for its answer."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Tasks by key, owned here: a caller who leaves does not end what others wait for."""

    def __init__(self) -> None:
        self._flying: dict[Hashable, asyncio.Task[T]] = {}

    def get(self, key: Hashable) -> "asyncio.Task[T] | None":
        """The flight under way, if any."""
        return self._flying.get(key)

    def start(
        self, keys: tuple[Hashable, ...], work: Callable[[], Coroutine[Any, Any, T]]
    ) -> "asyncio.Task[T]":
        """Start one flight under these keys, none of which may be flying."""
        task = asyncio.create_task(work())
        self._flying.update(dict.fromkeys(keys, task))
        task.add_done_callback(lambda done: self._landed(keys, done))
        return task

    def join(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> "asyncio.Task[T]":
        """The flight of that key, started if need be.

        Wait for it by asyncio.wait or asyncio.shield.
        """
        return self._flying.get(key) or self.start((key,), work)

    async def close(self) -> None:
        """End them all."""
        flying = set(self._flying.values())
        for task in flying:
            task.cancel()
        await asyncio.gather(*flying, return_exceptions=True)

    def _landed(self, keys: tuple[Hashable, ...], task: "asyncio.Task[T]") -> None:
        for key in keys:
            del self._flying[key]
        if not task.cancelled():
            task.exception()  # seen: there may be nobody left who waits
