"""The value that binds a form or an answer of WeChat's to the browser that asked (WECHAT.md W107).

It has letters and digits only and at most 128 of them, since WeChat carries nothing else
(WECHAT.md W104): what it is for, when it was made, a number that is used once, the version of the
text that was read, and a signature over these and the browser's cookie.
"""

import hashlib
import hmac
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple

STATE_S: Final = 600
FORM_S: Final = 3600  # people may read before they agree
MOST_USED: Final = 100_000  # some 15 MB; strangers cannot use up states without WeChat's help
_FORM: Final = re.compile(r"([afw])([0-9a-f]{8})([0-9a-f]{32})([0-9a-f]{12})([0-9a-f]{48})")


class StatePurpose(StrEnum):
    """What a state is for."""

    FORM = "f"  # a button on the page was pressed; good for an hour, more than once
    AGREE = "a"
    WITHDRAW = "w"


class OpenedState(NamedTuple):
    """A state that is genuine, of this browser and in time."""

    kind: StatePurpose
    text_version: str


class States:
    """Makes states and recognises them.

    `clock` tells steady seconds. The key is drawn anew at each start, so a state does not outlive
    the process, and neither does the memory of those that were used.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._used: OrderedDict[str, float] = OrderedDict()

    def make(self, kind: StatePurpose, browser: str, text_version: str) -> str:
        """Return a state for the browser with this cookie."""
        head = f"{kind}{int(self._clock()):08x}{secrets.token_hex(16)}{text_version}"
        return head + self._signature(head, browser)

    def open(self, state: str, browser: str) -> OpenedState | None:
        """Return what a state says; None if it is forged, late, or of another browser.

        A state that WeChat brings back is good once: the second time None is returned. One that
        arrives in the wrong browser stays good in its own.
        """
        found = _FORM.fullmatch(state)
        if found is None or not browser:
            return None
        kind, made_at, nonce, text_version, signature = found.groups()
        head = state[: -len(signature)]
        if not hmac.compare_digest(signature, self._signature(head, browser)):
            return None
        age_s = self._clock() - int(made_at, 16)
        if age_s >= (FORM_S if kind == StatePurpose.FORM else STATE_S):
            return None
        if kind != StatePurpose.FORM and not self._use(nonce):
            return None
        return OpenedState(StatePurpose(kind), text_version)

    def _use(self, nonce: str) -> bool:
        """Return True if this number has not been used, and note it."""
        now = self._clock()
        while self._used and next(iter(self._used.values())) <= now:
            self._used.popitem(last=False)
        # Forgetting one early would let it be used twice, so none is taken while there is no room.
        if nonce in self._used or len(self._used) >= MOST_USED:
            return False
        self._used[nonce] = now + STATE_S
        return True

    def _signature(self, head: str, browser: str) -> str:
        text = f"{head}/{browser}".encode("utf-8", "replace")
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()[:48]
