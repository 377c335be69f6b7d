"""What it means that a client asks again for a token on WeChat's own paths.

An SDK cannot say which token was refused: it only asks again (WECHAT.md W92). Whether that means
anything depends on how the client behaves:

- It had kept the current token for a while, or asks for it for the second time only, and comes back
  before the promise it was given is over. It is taken to doubt the token, which is verified
  promptly.
- It asks steadily, since it never keeps a token, or since many processes share its key and cannot
  be told apart. It is served from memory. All such clients of an app together cause one
  verification a minute at most, and fewer while WeChat keeps accepting the token. Whoever was
  taken to doubt MOST_IN_VAIN times although the token lived is one of them: a notifier that asks
  once an hour, or a fleet of slow services, would else spend the day's verifications.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from broker.core.serving import Served
from broker.tokens.keeper import Keeper

KEPT_S: Final = 60.0  # a client that asks more often does not keep what it is given
TOGETHER_S: Final = 0.0  # a second request may be that of an SDK whose token was refused
MOST_IN_VAIN: Final = 3
MOST_KNOWN: Final = 4096  # pairs of a client and an app; of more, the latest


@dataclass(slots=True)
class LastAnswer:
    """What a client was given last: the version, when, and until when it was promised.

    `times` counts the answers of this version, as long as they come within KEPT_S. `in_vain` counts
    the doubts that WeChat did not share; each new version takes one away.
    """

    version: str | None
    at: float
    promised_until: float
    times: int = 1
    in_vain: int = 0
    is_doubting: bool = False


class Askers:
    """Remembers each client's last answer for each app. `now` gives steady seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._last: OrderedDict[tuple[str, str], LastAnswer] = OrderedDict()

    def doubts(self, client: str, keeper: Keeper) -> bool:
        """Return True if the client is taken to doubt the token in force by asking now."""
        last, now = self._last.get((client, keeper.account.name)), self._now()
        if last is None or last.version != keeper.credential.version:
            return False
        kept_s = TOGETHER_S if last.times == 1 else KEPT_S
        came_back = last.at + kept_s < now < last.promised_until
        last.is_doubting = came_back and last.in_vain < MOST_IN_VAIN
        return last.is_doubting

    def has_asked(self, client: str, keeper: Keeper) -> bool:
        """Return True if the client was given the token in force before."""
        last = self._last.get((client, keeper.account.name))
        return last is not None and last.version == keeper.credential.version

    def note(self, client: str, keeper: Keeper, served: Served) -> None:
        """Note what a client is given now."""
        key, now = (client, keeper.account.name), self._now()
        version, before = served.credential.version, self._last.get(key)
        last = LastAnswer(version, now, now + served.expires_in)
        if before and before.version == version:
            last.times = before.times + 1 if now <= before.at + KEPT_S else 1
            was_checked = keeper.credential.checked_at > before.at
            last.in_vain = before.in_vain + (before.is_doubting and was_checked)
        elif before:
            last.in_vain = max(0, before.in_vain - 1)
        self._last[key] = last
        self._last.move_to_end(key)
        if len(self._last) > MOST_KNOWN:
            self._last.popitem(last=False)
