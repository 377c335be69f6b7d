"""What people agreed to, for the rest of the companion: on a thread, and with its failures met.

A file that cannot be read leaves avatars withheld. A consent that cannot be written is not kept,
and the person is told. A deletion that cannot be made is made later; until then nothing of that
person is shown.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from broker.avatars.circuit_breaker import TellEvent
from broker.avatars.consent.store import (
    Consent,
    ConsentFile,
    ConsentStoreError,
    ConsentStoreRefused,
)
from broker.core.secret import Secret

T = TypeVar("T")
MOST_OWED: Final = 100_000


class Consents:
    """The consents in force. `wall` returns unix seconds; `tell` is called when the file fails."""

    def __init__(
        self,
        path: Path,
        key: Secret | None,
        previous_key: Secret | None,
        wall: Callable[[], float],
        tell: TellEvent,
    ) -> None:
        self._open = partial(
            ConsentFile.open,
            path,
            None if key is None else key.reveal(),
            None if previous_key is None else previous_key.reveal(),
        )
        self._wall = wall
        self._tell = tell
        self._file: ConsentFile | None = None
        self._is_well = True
        self._owed: dict[str, tuple[str, float | None]] = {}
        self._thread = ThreadPoolExecutor(1, "consents")

    def now(self) -> float:
        """Return Unix seconds by the clock that consents begin and end by."""
        return self._wall()

    async def start(self) -> None:
        """Open the file, or try again later if it cannot be opened now.

        Raises ConsentStoreRefused for a file that may not be used.
        """
        try:
            await self._run(lambda _: None)
        except ConsentStoreError:
            return

    async def close(self) -> None:
        """Close the file."""
        file = self._file
        if file is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, file.close)
        self._thread.shutdown()

    # --- showing ----------------------------------------------------------------------------------

    async def pictures(self, openids: Sequence[str]) -> Mapping[str, str]:
        """Return the pictures of those who agreed, by openid; none if the file is unreadable."""
        try:
            found = await self._run(lambda file: file.find(openids, self._wall()))
        except ConsentStoreError:
            return {}
        return {openid: one.headimgurl for openid, one in found.items() if openid not in self._owed}

    async def number(self) -> int:
        """Return how many followers agreed; 0 where the file cannot be read."""
        try:
            return await self._run(lambda file: file.number(self._wall()))
        except ConsentStoreError:
            return 0

    # --- keeping and forgetting -------------------------------------------------------------------

    async def keep(self, consent: Consent, text: str) -> None:
        """Keep a consent. Raises ConsentStoreError: then it is not kept."""
        await self._run(lambda file: file.keep(consent, text))
        self._owed.pop(consent.openid, None)

    async def update(self, consent: Consent) -> None:
        """Write a consent anew unless it was taken back meanwhile. Raises ConsentStoreError."""
        await self._run(lambda file: file.update(consent))

    async def all(self) -> list[Consent]:
        """Return every consent. Raises ConsentStoreError."""
        found = await self._run(lambda file: file.all(self._wall()))
        return [one for one in found if one.openid not in self._owed]

    async def forget(
        self, openids: Sequence[str], why: str, agreed_until: float | None = None
    ) -> int:
        """Delete these people's rows and return how many there were.

        With `agreed_until` only consents from before that moment are deleted. Raises
        ConsentStoreError where that cannot be done now: it is done as soon as it can be, and
        nothing of these people is shown until then.
        """
        try:
            return await self._run(
                lambda file: file.forget(openids, why, self._wall(), agreed_until)
            )
        except ConsentStoreError:
            for openid in openids:
                if len(self._owed) < MOST_OWED:
                    self._owed[openid] = why, agreed_until
            raise

    async def gone(self, openid: str) -> None:
        """Delete a picture that WeChat has no more; if that cannot be done now, later."""
        with contextlib.suppress(ConsentStoreError):
            await self.forget([openid], "gone")

    async def settle(self) -> None:
        """Delete what is owed, and what has come to its end. Raises ConsentStoreError."""
        for openid, (why, agreed_until) in list(self._owed.items()):
            await self.forget([openid], why, agreed_until)
            self._owed.pop(openid, None)
        await self._run(lambda file: file.expire(self._wall()))

    # --- within -----------------------------------------------------------------------------------

    async def _run(self, work: Callable[[ConsentFile], T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            done = await loop.run_in_executor(self._thread, self._on_thread, work)
        except ConsentStoreError as error:
            if self._is_well:
                self._tell("consent-store-failed", why=str(error))
            self._is_well = False
            raise
        if not self._is_well:
            self._tell("consent-store-well-again")
        self._is_well = True
        return done

    def _on_thread(self, work: Callable[[ConsentFile], T]) -> T:
        if self._file is None:
            self._file = self._open()
        return work(self._file)


__all__ = ["ConsentStoreError", "ConsentStoreRefused", "Consents"]
