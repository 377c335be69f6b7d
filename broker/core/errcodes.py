"""WeChat's and WeCom's errcodes: what each asks of the broker (WECHAT.md W29).

WeCom's numbers mean something of their own even where they look alike (WECHAT.md W65). This module
holds codes only. Sentences for people are in `broker/web/words/`, one module per language.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final


class Kind(StrEnum):
    """What a failed token call asks of the broker."""

    TRANSIENT = "transient"  # time cures it: back off
    PROXY = "proxy"  # the HTTP proxy on the way out failed; WeChat was not asked
    SLOW_DOWN = "slow-down"
    QUOTA = "quota"  # nothing until the next quota day
    CONFIGURATION = "configuration"  # a person must act
    ADMISSION = "admission"  # a person must whitelist our IP
    CONFIRMATION = "confirmation"  # a person must confirm at WeChat's side
    BLOCKED = "blocked"  # wait exactly as long as the code says


class Advice(StrEnum):
    """What a person can do about a failure."""

    WAIT = "wait"
    PROXY = "proxy"
    SECRET = "secret"  # noqa: S105 -- the name of an advice
    APPID = "appid"
    RIGHTS = "rights"
    REQUEST = "request"
    FROZEN = "frozen"
    WHITELIST = "whitelist"
    CONFIRM = "confirm"
    BLOCKED_A_DAY = "blocked-a-day"
    BLOCKED_AN_HOUR = "blocked-an-hour"
    QUOTA = "quota"
    TOO_MANY_A_MINUTE = "too-many-a-minute"
    TOO_MANY = "too-many"
    WECOM_SECRET = "wecom-secret"  # noqa: S105 -- the same
    WECOM_CORPID = "wecom-corpid"
    WECOM_RIGHTS = "wecom-rights"
    WECOM_TRUSTED_IP = "wecom-trusted-ip"
    WECOM_OTHER_TICKET = "wecom-other-ticket"


class FailureCode(StrEnum):
    """Why a token call brought no token. After the dash: the facts that come with it."""

    ERRCODE = "errcode"  # WeChat refused; `Failure.errcode` says how
    HTTP_STATUS = "http-status"  # an answer that is no 200 - status
    NO_ANSWER = "no-answer"  # the call timed out - seconds
    CERTIFICATE = "certificate"  # the TLS certificate is not trusted
    TLS = "tls"
    NAME = "name"  # the host's name does not resolve
    CONNECT = "connect"
    CONNECTION_BROKE = "connection-broke"
    PROXY_UNREACHABLE = "proxy-unreachable"  # the HTTP proxy on the way out
    PROXY_NAME = "proxy-name"  # its name does not resolve
    PROXY_PASSWORD = "proxy-password"  # noqa: S105 -- it wants another user and password
    PROXY_REFUSED = "proxy-refused"  # - status
    PROXY_TUNNEL = "proxy-tunnel"  # it hung up, or what came through is not TLS
    PROXY_NOT_HTTP = "proxy-not-http"
    NOT_HTTP = "not-http"  # - error, the name of the exception's class
    UNREADABLE = "unreadable"  # an answer too large, or not packed as it says
    NOT_AN_ANSWER = "not-an-answer"  # a body that WeChat would not send - flaw, field
    STOPPED_IN_CALL = "stopped-in-call"
    STOPPED_IN_EMERGENCY = "stopped-in-emergency"
    NO_TOKEN_FOR_TICKET = "no-token-for-ticket"  # noqa: S105 -- the name of a code
    TICKET_TOKEN_REFUSED = "ticket-token-refused"  # noqa: S105 -- the same
    UNKNOWN = "unknown"  # stored by another version of the broker


class Flaw(StrEnum):
    """What is wrong with a body that is not an answer of WeChat's. After the dash: its facts."""

    NOT_UTF8 = "not-utf8"
    TOO_DEEP = "too-deep"
    NOT_JSON = "not-json"
    NOT_AN_OBJECT = "not-an-object"
    KEY_TWICE = "key-twice"
    NOT_FINITE = "not-finite"
    ERRCODE = "errcode"  # the errcode is no integer
    MISSING = "missing"  # - field
    MALFORMED = "malformed"  # empty, too long, or with blanks - field
    EXPIRES_IN = "expires-in"  # not a positive number of seconds


@dataclass(frozen=True, slots=True)
class Rule:
    """The class of an errcode, and what follows from it.

    `pause` is in seconds: a floor, and exact where `kind` is BLOCKED. After the first failure of
    its kind in a row, `first_pause` counts instead.
    """

    kind: Kind
    pause: float
    advice: Advice
    first_pause: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a token call brought no token.

    Nothing in it is WeChat's or a library's own text, since that may hold the secret: `facts` are
    numbers and names of our own, by the names that :class:`FailureCode` lists.
    """

    kind: Kind
    code: FailureCode
    errcode: int | None = None
    ip: str | None = None  # the caller's address as WeChat saw it (40164)
    rid: str | None = None  # WeChat's request id
    retry_after: float | None = None
    lost: bool = False  # the request went out and no answer to it is known
    wall: float = 0.0  # when, for people
    wecom: bool = False  # the errcode is WeCom's
    facts: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def advice(self) -> Advice:
        """What a person can do about it."""
        if self.kind is Kind.PROXY:
            return Advice.PROXY
        if self.errcode is None:
            return Advice.WAIT
        return rule_for(self.errcode, wecom=self.wecom).advice

    @classmethod
    def from_stored(cls, fields: Mapping[str, Any]) -> "Failure":
        """Read what `dataclasses.asdict` made of a failure, perhaps in another version.

        Older versions stored a sentence (`reason`) in place of the code. The errcode still says
        what it was; without one the code is UNKNOWN, until the next call replaces the failure.
        Raises ValueError where it is none of any version.
        """
        if "kind" not in fields:
            raise ValueError("this is no failure that was stored")
        known = {name: fields[name] for name in cls.__slots__ if name in fields}
        by_errcode = FailureCode.UNKNOWN if fields.get("errcode") is None else FailureCode.ERRCODE
        kind, code = fields.get("kind"), fields.get("code", by_errcode)
        known["kind"] = Kind(kind) if kind in set(Kind) else Kind.TRANSIENT
        known["code"] = FailureCode(code) if code in set(FailureCode) else FailureCode.UNKNOWN
        return cls(**known)


TRANSIENT: Final = Rule(Kind.TRANSIENT, 0, Advice.WAIT)
_TEN_MINUTES: Final = 600.0
_FIVE_MINUTES: Final = 300.0


def _configuration(advice: Advice) -> Rule:
    return Rule(Kind.CONFIGURATION, _TEN_MINUTES, advice)


def _correctable(advice: Advice) -> Rule:
    """Return the rule for what a person often corrects at once: a wrong AppID or secret.

    WeChat also answers so for a moment after a secret was reset. One more call costs little.
    """
    return Rule(Kind.CONFIGURATION, _TEN_MINUTES, advice, first_pause=60.0)


_SECRET: Final = _correctable(Advice.SECRET)
_APPID: Final = _correctable(Advice.APPID)
_RIGHTS: Final = _configuration(Advice.RIGHTS)
_REQUEST: Final = _configuration(Advice.REQUEST)
_FROZEN: Final = _configuration(Advice.FROZEN)
_WHITELIST: Final = Rule(Kind.ADMISSION, _FIVE_MINUTES, Advice.WHITELIST)
_CONFIRM: Final = Rule(Kind.CONFIRMATION, _FIVE_MINUTES, Advice.CONFIRM)

RULES: Final[dict[int, Rule]] = {
    -1: TRANSIENT,
    40001: _SECRET,  # on the token endpoints this is the secret, not the token
    40002: _REQUEST,
    40013: _APPID,
    40125: _SECRET,
    40164: _WHITELIST,
    40243: _FROZEN,
    41002: _APPID,
    41004: _SECRET,
    43002: _REQUEST,
    45009: Rule(Kind.QUOTA, 0, Advice.QUOTA),
    45011: Rule(Kind.SLOW_DOWN, 60, Advice.TOO_MANY_A_MINUTE),
    48001: _RIGHTS,
    48004: _RIGHTS,
    50002: _FROZEN,
    50004: _FROZEN,
    50007: _FROZEN,
    61004: _WHITELIST,
    61024: _REQUEST,
    89501: _CONFIRM,
    89503: _CONFIRM,
    89506: Rule(Kind.BLOCKED, 86400, Advice.BLOCKED_A_DAY),
    89507: Rule(Kind.BLOCKED, 3600, Advice.BLOCKED_AN_HOUR),
}

_WECOM_SECRET: Final = _correctable(Advice.WECOM_SECRET)
_WECOM_CORPID: Final = _correctable(Advice.WECOM_CORPID)

WECOM_RULES: Final[dict[int, Rule]] = {
    -1: TRANSIENT,
    40001: _WECOM_SECRET,
    40013: _WECOM_CORPID,
    41002: _WECOM_CORPID,
    41004: _WECOM_SECRET,
    45009: Rule(Kind.SLOW_DOWN, 60, Advice.TOO_MANY),  # a rate, not a day's quota
    42012: _configuration(Advice.WECOM_OTHER_TICKET),
    48002: _configuration(Advice.WECOM_RIGHTS),
    60020: Rule(Kind.ADMISSION, _FIVE_MINUTES, Advice.WECOM_TRUSTED_IP),
}

# On data interfaces: the token may be bad (WECHAT.md W31).
TOKEN_REFUSED: Final = frozenset({40001, 40014, 42001})

# Seconds. An answer may ask for more; but such a header is a proxy's word, not WeChat's.
LONGEST_RETRY_AFTER: Final = 3600.0


def rule_for(errcode: int, *, wecom: bool = False) -> Rule:
    """Return what the code asks of us. A code that is not listed counts as passing."""
    return (WECOM_RULES if wecom else RULES).get(errcode, TRANSIENT)


def pause(
    failure: Failure,
    failures: int,
    floor: float,
    ceiling: float,
    until_next_day: float,
    jitter: float,
    *,
    is_first: bool = False,
) -> float:
    """Return the seconds to wait after a failure, the `failures`-th in a row (from 1).

    `floor` and `ceiling` bound the pause after what time can cure; in between it doubles.
    `is_first` says that the failure before, if there was one, was of another kind. `until_next_day`
    is what is left of the quota day, in seconds. `jitter` in [0, 1) keeps many brokers apart. The
    pause is never shorter than `floor`, nor than the class asks.
    """
    rule = TRANSIENT
    if failure.errcode is not None:
        rule = rule_for(failure.errcode, wecom=failure.wecom)
    least = rule.first_pause if is_first and rule.first_pause is not None else rule.pause
    asked = min(failure.retry_after or 0.0, LONGEST_RETRY_AFTER)
    if rule.kind is Kind.BLOCKED:
        return rule.pause
    if rule.kind is Kind.QUOTA:
        return max(until_next_day, floor, asked)
    grown = min(ceiling, floor * 2.0 ** min(failures - 1, 30))
    return max(least, min(ceiling, grown * (1 + 0.2 * jitter)), floor, asked)
