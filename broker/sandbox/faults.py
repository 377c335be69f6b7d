"""What can go wrong with an answer: the catalogue of faults, and the queue of ordered ones."""

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

TOKEN_PATHS: Final = ("/cgi-bin/token", "/cgi-bin/stable_token", "/cgi-bin/gettoken")
_MOST = 1000
_REQUIRED: Final = object()

Check = Callable[[Any], bool]


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _seconds(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 0
    )


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _line(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _base64(value: Any) -> bool:
    try:
        return isinstance(value, str) and base64.b64decode(value, validate=True) is not None
    except (binascii.Error, ValueError):
        return False


def _headers(value: Any) -> bool:
    return isinstance(value, dict) and all(
        name and _line(name) and _line(text) for name, text in value.items()
    )


_FIELDS: Final[Mapping[str, tuple[Check, str]]] = {
    "times": (
        lambda v: v is None or (_integer(v) and v > 0),
        "a whole number from 1, or null: until deleted",
    ),
    "appid": (lambda v: v is None or _line(v), "an appid, or null: any"),
    "path": (lambda v: v is None or _line(v), "an exact path, or null: the token endpoints"),
    "mint": (lambda v: isinstance(v, bool), "true: first do what was asked, then lose the answer"),
    "errcode": (_integer, "a whole number"),
    "errmsg": (lambda v: v is None or _text(v), "a text, or null: WeChat's own words"),
    "status": (
        lambda v: _integer(v) and 200 <= v <= 599,  # noqa: PLR2004
        "an HTTP status, 200…599",
    ),
    "body": (_text, "a text"),
    "base64": (lambda v: v is None or _base64(v), "bytes in base64, instead of body"),
    "headers": (_headers, "an object of header names and texts"),
    "content_type": (_line, "a content type"),
    "seconds": (lambda v: v is None or _seconds(v), "seconds of real time"),
    "interval": (_seconds, "seconds of real time between two pieces"),
    "answer": (lambda v: isinstance(v, dict), "an object; null removes a key"),
}
_COMMON: Final[dict[str, Any]] = {"times": 1, "appid": None, "path": None}
_LOST: Final[dict[str, Any]] = {"mint": False}
_JSON: Final[dict[str, Any]] = {"content_type": "application/json; encoding=utf-8"}

KINDS: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "errcode": ("WeChat refuses; the call counts", {"errcode": _REQUIRED, "errmsg": None}),
    "status": ("another HTTP status", _LOST | {"status": _REQUIRED, "body": "", "headers": {}}),
    "silence": ("no answer until the peer hangs up, or for so long", _LOST | {"seconds": None}),
    "drop": ("the connection closed without an answer", _LOST),
    "reset": ("the connection reset", _LOST),
    "garbage": (
        "HTTP 200 with any bytes",
        _LOST | _JSON | {"body": "<html>busy</html>", "base64": None},
    ),
    "drip": ("the answer, byte by byte", _LOST | {"interval": 1.0}),
    "endless_headers": ("headers that never end", _LOST | {"interval": 0.0}),
    "endless_body": ("a body that never ends", _LOST | _JSON | {"interval": 0.0}),
    "gzip_bomb": ("48 KB that inflate to 50 MB", _LOST),
    "slow": ("the true answer, made at once and sent late", {"seconds": _REQUIRED}),
    "same_token": ("the same token again, where a new one was due", {}),
    "answer": ("the true answer with other values", {"answer": _REQUIRED}),
}


class InvalidOrderError(ValueError):
    """Somebody ordered a fault that there is not; the text names what is wrong."""


@dataclass
class Fault:
    """An ordered fault; ``left`` None lasts until deleted."""

    kind: str
    left: int | None
    appid: str | None
    path: str | None
    params: dict[str, Any]

    def concerns(self, appid: str, path: str) -> bool:
        """Tell whether a call of that account to that path is to suffer it."""
        here = path in TOKEN_PATHS if self.path is None else path == self.path
        return here and self.appid in {None, appid}


def parse(order: Mapping[str, Any]) -> Fault:
    """Check an order and fill in what it leaves out; raises `InvalidOrderError`."""
    kind = order.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InvalidOrderError(f"kind: must be one of {', '.join(KINDS)}")
    known = _COMMON | KINDS[kind][1]
    values = known | {name: value for name, value in order.items() if name != "kind"}
    for name, value in values.items():
        if name not in known:
            raise InvalidOrderError(
                f"{name}: unknown field for the kind {kind}; there are {', '.join(known)}"
            )
        if value is _REQUIRED or not _FIELDS[name][0](value):
            raise InvalidOrderError(f"{name}: must be {_FIELDS[name][1]}")
    where = {name: values.pop(name) for name in _COMMON}
    if where["path"] not in {None, *TOKEN_PATHS} and (values.get("mint") or kind == "same_token"):
        raise InvalidOrderError("path: only a token endpoint can mint or repeat a token")
    return Fault(kind, where["times"], where["appid"], where["path"], values)


def catalogue() -> dict[str, Any]:
    """Describe every kind and its fields, for `GET /sandbox`."""
    return {
        kind: {"does": does, "fields": {name: _FIELDS[name][1] for name in {**fields, **_COMMON}}}
        for kind, (does, fields) in KINDS.items()
    }


class Faults:
    """The queue: each call takes the first fault that concerns it."""

    def __init__(self) -> None:
        self._queue: list[Fault] = []

    def order(self, fault: Fault) -> None:
        """Put one at the end."""
        if len(self._queue) >= _MOST:
            raise InvalidOrderError(f"there are {_MOST} faults already")
        self._queue.append(fault)

    def take(self, appid: str, path: str) -> Fault | None:
        """Return what this call is to suffer, and count it."""
        fault = next((fault for fault in self._queue if fault.concerns(appid, path)), None)
        if fault and fault.left is not None:
            fault.left -= 1
            if not fault.left:
                self._queue.remove(fault)
        return fault

    def clear(self, appid: str | None) -> int:
        """Forget all, or those that name this appid; returns how many."""
        kept = [fault for fault in self._queue if appid is not None and fault.appid != appid]
        gone, self._queue = len(self._queue) - len(kept), kept
        return gone

    def queued(self) -> list[dict[str, Any]]:
        """Describe what is waiting, in order."""
        return [vars(fault) | {} for fault in self._queue]
