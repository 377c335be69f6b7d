"""Small texts that outlive a restart and that all brokers of a shared store agree on."""

from collections.abc import Callable
from typing import Protocol

Rewrite = Callable[[str | None, float], str | None]


class DocumentStore(Protocol):
    """Where named texts are kept."""

    async def rewrite(self, name: str, rewrite: Rewrite) -> None:
        """Replace a text in one transaction that keeps every other broker out meanwhile.

        `rewrite` is given the text (None where there is none yet) and unix time by the store's
        clock. It returns the new text, or None to leave the text as it is. It must be pure and
        fast, and may run on another thread. Raises StoreError, and then nothing is changed.
        """
