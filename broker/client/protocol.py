"""The conversation with the broker, without I/O.

What to ask, what an answer means, and how long to wait after a failure.
"""

import json
import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

# What WeChat's data APIs say of a bad token (WECHAT.md W31).
REFUSED: Final = frozenset({40001, 40014, 42001})
# Errors that mean that no broker answered. Any other is the broker's word.
OUT_OF_REACH: Final = frozenset({"unreachable", "not-a-broker"})
WATCH_S: Final = 55.0
TIMEOUT_S: Final = 30.0
# So long before its end a copy is asked for anew. Until the end it is still used.
NEAR_EXPIRY_S: Final = 5.0
LONGEST_PAUSE_S: Final = 15.0
# Linux's monotonic clock stands still in suspend, macOS's does not. Windows has no clock_gettime.
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


def now() -> float:
    """Steady seconds that run through suspend where the system has such a clock."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


@dataclass(frozen=True, slots=True)
class Token:
    """A token or ticket.

    `expires_at` is the end of the broker's promise, its own next refresh included;
    `token_expires_at` is WeChat's own end, which counts only while the broker cannot be reached:
    then nobody replaces the token. Both are on :func:`now`'s clock, counted from before the
    request: never later than the truth.
    """

    value: str = field(repr=False)
    version: str
    app: str
    expires_at: float
    token_expires_at: float

    @property
    def expires_in(self) -> int:
        """Whole seconds of the promise that are left, 0 where it is over."""
        return max(0, math.floor(self.expires_at - now()))

    @property
    def token_expires_in(self) -> int:
        """Whole seconds until WeChat's own end, 0 where it is over."""
        return max(0, math.floor(self.token_expires_at - now()))


class Memory:
    """The newest token, and whether the broker can be reached.

    `held` is until when the token may be used without asking, and its value: one attribute, so that
    threads see both or neither. While the broker cannot be reached that is until WeChat's own end:
    the follower goes on asking, and nobody else has to wait for a broker that does not answer.
    """

    __slots__ = ("_as_of", "_is_out_of_reach", "held", "token")

    def __init__(self) -> None:
        self.held: tuple[float, str] = (-1.0, "")
        self.token: Token | None = None
        self._as_of = -1.0
        self._is_out_of_reach = False

    def keep(self, token: Token, asked_at: float) -> Token:
        """Take the token of an answer and return the token that is held now.

        An answer that was asked for before the held one came in may be the older of the two, and is
        not taken.
        """
        if self.token is None or asked_at >= self._as_of or self.token.expires_at <= now():
            self.token, self._as_of = token, now()
        self.came_through(None)
        return self.token

    def came_through(self, error: "BrokerError | None") -> None:
        """Note what came of a request: an answer (None) or an error."""
        self._is_out_of_reach = error is not None and error.code in OUT_OF_REACH
        if self.token is not None:
            margin = 0.0 if self._is_out_of_reach else NEAR_EXPIRY_S
            self.held = (self._end_of(self.token) - margin, self.token.value)

    def good(self, min_ttl: float, margin: float = 0.0) -> Token | None:
        """Return the token held, if it is good for longer than `min_ttl` and a margin."""
        if self.token is None or self._end_of(self.token) - margin <= now() + min_ttl:
            return None
        return self.token

    def _end_of(self, token: Token) -> float:
        return token.token_expires_at if self._is_out_of_reach else token.expires_at

    def taken(self) -> Token:
        """What an answer has just brought."""
        if self.token is None:
            raise BrokerUnavailable("not-a-broker", "an answer without a token")
        return self.token

    @property
    def version(self) -> str | None:
        """What is held, as the broker calls it."""
        return None if self.token is None else self.token.version


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, and when it was asked for and came in."""

    status: int
    body: bytes
    asked_at: float
    arrived_at: float


class BrokerError(Exception):
    """The broker refused.

    `code` is stable and for programs, `detail` is a sentence for people. `retry_after` is the
    number of seconds after which asking again may help, or None.
    """

    def __init__(self, code: str, detail: str, retry_after: float | None = None) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.retry_after = retry_after


class BrokerUnavailable(BrokerError):  # noqa: N818 -- a state
    """Nobody answers, or there is no token now, and memory holds none that is still good."""


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where the broker is: a Unix socket's `path`, or `host` and `port`."""

    base: str
    host: str
    port: int
    path: str | None = None

    @classmethod
    def parse(cls, broker: str) -> "BrokerAddress":
        """Read `http://host:port` or `unix:/path`; raises ValueError."""
        if broker.startswith("unix:/"):
            return cls.of_socket(broker.removeprefix("unix:"))
        parts = urlsplit(broker)
        if (
            parts.scheme != "http"
            or not parts.hostname
            or parts.path not in {"", "/"}
            or parts.query
        ):
            raise ValueError("the broker's address is http://HOST:PORT or unix:/PATH")
        return cls(f"http://{parts.netloc}", parts.hostname, parts.port or 80)

    @classmethod
    def of_socket(cls, path: str) -> "BrokerAddress":
        """Return the address of the Unix socket at `path`."""
        return cls("http://localhost", "localhost", 80, path)


class ClientKey:
    """This client's bearer key: given, or in a file that is read again when the key is refused.

    Without one, a header.
    """

    def __init__(self, key: str | None, key_file: str | Path | None) -> None:
        self._file = Path(key_file) if key_file else None
        self._key = key

    def headers(self) -> dict[str, str]:
        """What shows our intent; raises OSError where the file cannot be read."""
        if self._key is None and self._file is not None:
            self._key = self._file.read_text().strip()
        return {
            "X-Token-Broker": "1",
            **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
        }

    def reread(self) -> bool:
        """Return True if the file holds another key now."""
        if self._file is None:
            return False
        before, self._key = self._key, self._file.read_text().strip()
        return before != self._key


def timeout(path: str) -> float:
    """Seconds an answer may take."""
    return TIMEOUT_S + (WATCH_S if "wait=" in path else 0.0)


def token_path(app: str, min_ttl: float = 0, *, watch: bool = False) -> str:
    """The path that asks for a token, now or when it is another."""
    query = (
        f"?wait={WATCH_S:g}" if watch else f"?min_ttl={math.ceil(min_ttl)}" if min_ttl > 0 else ""
    )
    return f"/v1/tokens/{quote(app, safe='')}{query}"


def ticket_path(app: str, kind: str) -> str:
    """The path that asks for a ticket."""
    return f"/v1/tickets/{quote(app, safe='')}/{quote(kind, safe='')}"


def login_path(app: str) -> str:
    """The path that exchanges login codes."""
    return f"/v1/logins/{quote(app, safe='')}"


def login_body(kind: str, code: str) -> bytes:
    """What a login says."""
    return json.dumps({"kind": kind, "code": code}).encode()


def report_path(app: str) -> str:
    """The path that takes reports."""
    return f"/v1/tokens/{quote(app, safe='')}/report"


def report_body(token: str, errcode: int | None) -> bytes:
    """What a report says."""
    known = {} if errcode not in REFUSED else {"errcode": errcode}
    return json.dumps({"access_token": token, **known}).encode()


def read(answer: Answer, *, waited: bool) -> tuple[Token | None, dict[str, Any]]:
    """Return an answer's token or ticket and all its fields; for a 304 there is no token.

    The seconds in an answer count from when the broker wrote it. For a request that `waited` that
    is close to its arrival, for any other no sooner than when it was asked. Raises BrokerError for
    a problem.
    """
    if answer.status == 304:  # noqa: PLR2004 -- not modified
        if waited and answer.arrived_at - answer.asked_at < WATCH_S / 2:
            raise BrokerUnavailable(
                "ended-early", "the broker ended the wait before its time: it is stopping"
            )
        return None, {}
    from_then = answer.arrived_at - 1.0 if waited else answer.asked_at
    try:
        fields = json.loads(answer.body)
        if answer.status == 200:  # noqa: PLR2004 -- good
            value = fields["ticket"] if "ticket" in fields else fields["access_token"]
            ends = fields.get("token_expires_in", fields["expires_in"])  # tickets have one end only
            token = Token(
                value,
                fields["version"],
                fields["app"],
                from_then + fields["expires_in"],
                from_then + ends,
            )
            return token, fields
    except (ValueError, KeyError, TypeError):
        raise _not_a_broker(answer) from None
    raise problem_of(answer)


def read_login(answer: Answer) -> dict[str, Any]:
    """Return what WeChat answered to a login, errcodes included.

    Raises BrokerError where the broker refuses, or WeChat gave no answer.
    """
    if answer.status != 200:  # noqa: PLR2004 -- good
        raise problem_of(answer)
    try:
        fields = json.loads(answer.body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise _not_a_broker(answer)
    return fields


def problem_of(answer: Answer) -> BrokerError:
    """Return the broker's refusal as an exception."""
    try:
        fields = json.loads(answer.body)
        code, detail, wait = fields["code"], fields["detail"], fields.get("retry_after")
    except (ValueError, KeyError, TypeError):
        return _not_a_broker(answer)
    # Server errors
    kind = BrokerUnavailable if answer.status >= 500 else BrokerError  # noqa: PLR2004
    return kind(code, detail, wait)


def _not_a_broker(answer: Answer) -> BrokerUnavailable:
    sentence = f"what answers there (HTTP {answer.status}) is not a token-broker"
    return BrokerUnavailable("not-a-broker", sentence)


def unreachable(error: Exception) -> BrokerUnavailable:
    """The same for a broken connection, without the library's text."""
    return BrokerUnavailable("unreachable", f"no broker answers ({type(error).__name__})", 1.0)


def pause(failures: int, error: BrokerError) -> float:
    """Seconds until the next try after the `failures`-th failure in a row."""
    grown = min(LONGEST_PAUSE_S, 0.2 * 2.0 ** min(failures, 10))
    wanted = min(LONGEST_PAUSE_S, max(grown, error.retry_after or 0.0))
    return float(wanted * random.uniform(0.7, 1.0))  # noqa: S311


def refusal(answer: object) -> int | None:
    """WeChat's errcode, where an answer of a data API says that the token is bad."""
    code = answer.get("errcode") if isinstance(answer, Mapping) else None
    number = int(code) if isinstance(code, str) and code.lstrip("-").isdecimal() else code
    return number if isinstance(number, int) and number in REFUSED else None
