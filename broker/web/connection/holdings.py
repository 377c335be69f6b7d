"""Who holds how much of something scarce, so that whoever holds most gives way first."""

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class Holdings(Generic[T]):
    """Things by their owner's name. Of one owner's things the oldest comes first.

    Adding and removing take constant time. An owner without things costs no memory.
    """

    def __init__(self) -> None:
        self._by_owner: dict[str, OrderedDict[T, float]] = {}

    def count(self, owner: str) -> int:
        """Return how many things an owner holds."""
        return len(self._by_owner.get(owner, ()))

    def add(self, owner: str, thing: T, since: float) -> None:
        """Enter a thing that its owner holds since that time."""
        self._by_owner.setdefault(owner, OrderedDict())[thing] = since

    def remove(self, owner: str, thing: T) -> None:
        """Remove a thing. One that is not there, or not there any more, is ignored."""
        held = self._by_owner.get(owner)
        if held is not None and held.pop(thing, None) is not None and not held:
            del self._by_owner[owner]

    def pop_oldest(self, owner: str) -> tuple[T, float]:
        """Remove an owner's oldest thing; return it and since when. KeyError if there is none."""
        held = self._by_owner[owner]
        found = held.popitem(last=False)
        if not held:
            del self._by_owner[owner]
        return found

    def pop_from_largest(self) -> tuple[T, float] | None:
        """Remove the oldest thing of whoever holds most; return it, None if nobody has any."""
        if not self._by_owner:
            return None
        return self.pop_oldest(max(self._by_owner, key=lambda owner: len(self._by_owner[owner])))
