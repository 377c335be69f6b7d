"""How each reader has a token written: the bytes under the key that its own source reads.

Which source, at which commit, is said in the guide (deploy/docs/notifications-and-sinks.md).
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from broker.config.schema import SinkFormat


@dataclass(frozen=True, slots=True)
class Writing:
    """What is written: a token that is good for `expires_in` seconds, and its version.

    `epoch` and `call` are the version's parts. `minted_at` and `ends_at` are unix time; the first
    tells tokens of different epochs apart.
    """

    app: str
    appid: str
    token: str
    version: str
    epoch: str
    call: int
    minted_at: float
    expires_in: int
    ends_at: float

    def order(self) -> str:
        """Return what is kept beside the token, so that a later writer can tell which is newer.

        It holds no part of the token.
        """
        return f"{self.epoch} {self.call} {self.minted_at:.0f}"


def is_older(order: str, than: str) -> bool:
    """Return True if a token of that order is older than another.

    Within an epoch the number decides, else the time. What is no order is older than everything.
    """
    mine, theirs = _parts(order), _parts(than)
    if mine is None or theirs is None:
        return mine is None and theirs is not None
    if mine[0] == theirs[0]:
        return mine[1] < theirs[1]
    return mine[2] < theirs[2]


def _parts(order: str) -> tuple[str, int, float] | None:
    try:
        epoch, call, minted_at = order.split()[:3]
        return epoch, int(call), float(minted_at)
    except ValueError:
        return None


def _json(writing: Writing) -> str:
    """What GET /v1/tokens says, without what is true for a second only."""
    body: dict[str, Any] = {
        "app": writing.app,
        "appid": writing.appid,
        "access_token": writing.token,
        "expires_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(writing.ends_at)),
        "version": writing.version,
    }
    return json.dumps(body) + "\n"


def _bare(writing: Writing) -> str:
    return writing.token


def _quoted(writing: Writing) -> str:
    """A JSON string, as wechatpy's RedisStorage reads it."""
    return json.dumps(writing.token)


def _serialized(writing: Writing) -> str:
    """A string as PHP's serialize() writes it: Symfony's cache reads that for EasyWeChat."""
    return f's:{len(writing.token.encode())}:"{writing.token}";'


FORMATS: Final[Mapping[SinkFormat, Callable[[Writing], str]]] = MappingProxyType(
    {
        SinkFormat.JSON: _json,
        SinkFormat.TOKEN: _bare,
        SinkFormat.TEXT: _bare,
        SinkFormat.WECHATPY: _quoted,
        SinkFormat.WXJAVA: _bare,
        SinkFormat.SILENCEPER: _bare,
        SinkFormat.EASYWECHAT: _serialized,
    }
)


def encoded(form: SinkFormat, writing: Writing) -> bytes:
    """Return what is written."""
    return FORMATS[form](writing).encode()
