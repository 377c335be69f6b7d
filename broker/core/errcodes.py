"""WeChat's errcodes: what class each belongs to, and what that asks of the broker (WECHAT.md W29); and WeCom's.

WeCom's numbers are its own even where they look alike:
WECHAT.md W65.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """What a failed token call asks of us."""

    TRANSIENT = "transient"  # time cures it: back off
    SLOW_DOWN = "slow-down"
    QUOTA = "quota"  # nothing until the next quota day
    CONFIGURATION = "configuration"  # a person must act
    ADMISSION = "admission"  # a person must whitelist our IP
    CONFIRMATION = "confirmation"  # a person must confirm at WeChat's side
    BLOCKED = "blocked"  # wait exactly as long as the code says


@dataclass(frozen=True, slots=True)
class Rule:
    """A class, its pause in seconds (a floor; exact where `kind` is BLOCKED), and a sentence for the operator."""

    kind: Kind
    pause: float
    advice: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a token call brought no token.

    Nothing in it is WeChat's or a library's own text (that may hold the secret).
    """

    kind: Kind
    reason: str
    errcode: int | None = None
    ip: str | None = None  # the caller's address as WeChat saw it (40164)
    rid: str | None = None  # WeChat's request id
    retry_after: float | None = None
    lost: bool = False  # the request went out and no answer to it is known
    wall: float = 0.0  # when, for people
    wecom: bool = False  # the errcode is WeCom's

    @property
    def advice(self) -> str:
        """What a person can do about it."""
        advice = (
            rule_for(self.errcode, wecom=self.wecom).advice
            if self.errcode is not None
            else TRANSIENT.advice
        )
        return f"{advice} WeChat saw this broker as {self.ip}." if self.ip else advice


TRANSIENT: Final = Rule(Kind.TRANSIENT, 0, "Nothing to do: it is tried again, ever more slowly.")
_TEN_MINUTES: Final = 600.0
_FIVE_MINUTES: Final = 300.0


def _configuration(advice: str) -> Rule:
    return Rule(Kind.CONFIGURATION, _TEN_MINUTES, advice)


_SECRET: Final = _configuration(
    "WeChat does not accept the AppSecret: put the current one into the app's secret file and"
    " restart."
)
_APPID: Final = _configuration(
    "WeChat does not know this AppID: correct `appid` in the configuration."
)
_RIGHTS: Final = _configuration(
    "The account may not use this interface: see its permissions in WeChat's console."
)
_REQUEST: Final = _configuration(
    "WeChat calls the request malformed: check `endpoint` and `api_base`; else this broker needs an"
    " update."
)
_FROZEN: Final = _configuration(
    "The account or its secret is frozen: unfreeze it in WeChat's console."
)
_WHITELIST: Final = Rule(
    Kind.ADMISSION,
    _FIVE_MINUTES,
    "Add this host's public IP to the account's IP whitelist in WeChat's console.",
)
_CONFIRM: Final = Rule(
    Kind.CONFIRMATION,
    _FIVE_MINUTES,
    "An administrator must confirm this server: see the message WeChat sent them.",
)
_DENIED: Final = (
    "An administrator denied this server's request: it is blocked for {}; ask them before it ends."
)

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
    45009: Rule(
        Kind.QUOTA,
        0,
        "The day's token calls are spent: calls resume with the next quota day. Look for a second"
        " issuer.",
    ),
    45011: Rule(Kind.SLOW_DOWN, 60, "Too many calls a minute: the broker slows down by itself."),
    48001: _RIGHTS,
    48004: _RIGHTS,
    50002: _FROZEN,
    50004: _FROZEN,
    50007: _FROZEN,
    61004: _WHITELIST,
    61024: _REQUEST,
    89501: _CONFIRM,
    89503: _CONFIRM,
    89506: Rule(Kind.BLOCKED, 86400, _DENIED.format("24 hours")),
    89507: Rule(Kind.BLOCKED, 3600, _DENIED.format("an hour")),
}

_SLOWER: Final = Rule(Kind.SLOW_DOWN, 60, "Too many calls: the broker slows down by itself.")

WECOM_RULES: Final[dict[int, Rule]] = {
    -1: TRANSIENT,
    40001: _configuration(
        "WeCom does not accept the secret: put the app's current one into its secret file and"
        " restart."
    ),
    40013: _configuration("WeCom does not know this corpid: correct `appid` in the configuration."),
    41002: _configuration("WeCom does not know this corpid: correct `appid` in the configuration."),
    41004: _configuration(
        "WeCom does not accept the secret: put the app's current one into its secret file and"
        " restart."
    ),
    42012: _configuration(
        "The ticket is another app's, or of the other kind: wx.config takes the company's (jsapi),"
        " wx.agentConfig the app's own (agent_config)."
    ),
    45009: _SLOWER,  # a rate, not a day's quota
    48002: _configuration(
        "The app may not use this interface: see its permissions in WeCom's console."
    ),
    60020: Rule(
        Kind.ADMISSION,
        _FIVE_MINUTES,
        "Add this host's public IP to the app's trusted IPs in WeCom's console.",
    ),
}

TOKEN_REFUSED: Final = frozenset(
    {40001, 40014, 42001}
)  # on data APIs: the token may be bad (WECHAT.md W31)

LONGEST_RETRY_AFTER: Final = (
    3600.0  # an answer may ask for more; it is a proxy's word, not WeChat's
)


def rule_for(errcode: int, *, wecom: bool = False) -> Rule:
    """What the code asks of us; codes nobody listed are taken as passing."""
    return (WECOM_RULES if wecom else RULES).get(errcode, TRANSIENT)


def pause(
    failure: Failure,
    failures: int,
    floor: float,
    ceiling: float,
    until_next_day: float,
    jitter: float,
) -> float:
    """Seconds to wait after a failure, the `failures`-th in a row (from 1).

    `floor` and `ceiling` bound what time can cure (doubling in between); `until_next_day` is what
    is left of the quota day; `jitter` in [0, 1) keeps many brokers apart. Never less than `floor`,
    and never less than the class asks.
    """
    rule = (
        rule_for(failure.errcode, wecom=failure.wecom) if failure.errcode is not None else TRANSIENT
    )
    asked = min(failure.retry_after or 0.0, LONGEST_RETRY_AFTER)
    if rule.kind is Kind.BLOCKED:
        return rule.pause
    if rule.kind is Kind.QUOTA:
        return max(until_next_day, floor, asked)
    grown = min(ceiling, floor * 2.0 ** min(failures - 1, 30))
    return max(rule.pause, min(ceiling, grown * (1 + 0.2 * jitter)), floor, asked)
