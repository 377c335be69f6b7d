"""Why avatars cannot be shown: a code, an HTTP status, and when to ask again.

The sentences are in messages.py, in two languages. Nothing of a foreign error's text travels on: it
may hold a token.
"""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from broker.client import BrokerError
from broker.core.text import address_in, visible

DAY_S: Final = 86_400
BEIJING_S: Final = 8 * 3600  # ahead of UTC
DEAD: Final = frozenset({40001, 40014, 42001})


class _Kind(NamedTuple):
    status: HTTPStatus
    pause_s: float  # for so long nobody is asked again


KINDS: Final[Mapping[str, _Kind]] = {
    "account-not-verified": _Kind(HTTPStatus.BAD_GATEWAY, 60),
    "quota-exhausted": _Kind(HTTPStatus.SERVICE_UNAVAILABLE, 600),
    "ip-not-allowed": _Kind(HTTPStatus.SERVICE_UNAVAILABLE, 60),
    "token-refused": _Kind(HTTPStatus.SERVICE_UNAVAILABLE, 10),
    "slow-down": _Kind(HTTPStatus.SERVICE_UNAVAILABLE, 60),
    "upstream-refused": _Kind(HTTPStatus.BAD_GATEWAY, 60),
    "upstream-unavailable": _Kind(HTTPStatus.SERVICE_UNAVAILABLE, 5),
    "broker-unavailable": _Kind(HTTPStatus.SERVICE_UNAVAILABLE, 0),
    "no-token": _Kind(HTTPStatus.SERVICE_UNAVAILABLE, 0),
    "broker-refused": _Kind(HTTPStatus.BAD_GATEWAY, 0),
    "budget-spent": _Kind(HTTPStatus.SERVICE_UNAVAILABLE, 0),
    "image-unavailable": _Kind(HTTPStatus.BAD_GATEWAY, 0),
}
_BY_ERRCODE: Final = {
    48001: "account-not-verified",
    45009: "quota-exhausted",
    40164: "ip-not-allowed",
    61004: "ip-not-allowed",
    45011: "slow-down",
    -1: "upstream-unavailable",
} | dict.fromkeys(DEAD, "token-refused")
_OUR_FAULT: Final = {
    "missing-key",
    "invalid-key",
    "insufficient-scope",
    "unknown-app",
    "host-not-allowed",
}
_NOBODY: Final = {"unreachable", "not-a-broker"}
_SOON_S: Final = 5


class AvatarError(Exception):
    """A reason why avatars cannot be shown.

    `code` is stable. `facts` fill the sentence. `retry_after` is in whole seconds, or None
    where waiting does not help.
    """

    def __init__(self, code: str, retry_after: float | None = None, **facts: object) -> None:
        super().__init__(code)
        self.code = code
        self.facts = facts
        self.status, self.pause_s = KINDS[code]
        if retry_after is None and self.status == HTTPStatus.SERVICE_UNAVAILABLE:
            retry_after = self.pause_s or _SOON_S
        self.retry_after = None if retry_after is None else max(1, round(retry_after))


def refused(answer: Mapping[str, Any], errcode: int, wall: Callable[[], float]) -> AvatarError:
    """What an errcode of WeChat's data APIs means.

    `wall` tells Unix seconds: a spent quota comes back with the Beijing day.
    """
    code = _BY_ERRCODE.get(errcode, "upstream-refused")
    until = DAY_S - (wall() + BEIJING_S) % DAY_S if code == "quota-exhausted" else None
    ip = address_in(str(answer.get("errmsg", ""))) or ""
    return AvatarError(code, until, errcode=errcode, ip=ip, why="busy")


def unreachable(why: str, amount: float = 0) -> AvatarError:
    """Return the error for a WeChat that cannot be reached or does not give an answer.

    `why` is a key of messages.WHY, and `amount` the number in that sentence.
    """
    return AvatarError("upstream-unavailable", why=why, amount=amount)


def of_broker(error: BrokerError, broker: str) -> AvatarError:
    """What the daemon's refusal, or its absence, means."""
    away = error.code in _NOBODY
    code = (
        "broker-refused"
        if error.code in _OUR_FAULT
        else "broker-unavailable"
        if away
        else "no-token"
    )
    return AvatarError(
        code, error.retry_after, broker=broker, why=visible(error.detail), broker_code=error.code
    )
