"""What the broker holds for one account.

Every instant (`*_at`, `not_before`, `safe_until`) is in seconds on one steady clock that runs
through suspend and that nobody can set. A change of state is a function from one
:class:`Credential` to the next, so that a store can apply it inside its own transaction.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from broker.core.errcodes import Failure
from broker.core.secret import Secret

NEVER: Final = -math.inf
SUSPECTS_SECOND_ISSUER_AT: Final = 3  # scenario 37
SECOND_ISSUER_FADES_AFTER: Final = 7 * 86400.0


class Endpoint(StrEnum):
    """Where a credential comes from.

    WeChat's two isolated token endpoints (WECHAT.md W1), WeCom's (W61), the tickets' (W54).

    A ticket is kept like a token. It is fetched with a token, does not die with it, and no cheap
    call tells if it lives. NONE is that of apps which only log in and have no token (W81).
    """

    TOKEN = "token"  # noqa: S105 -- the endpoint's name, as in the configuration
    STABLE = "stable_token"
    WECOM = "wecom"
    NONE = "none"
    JSAPI = "jsapi"
    WX_CARD = "wx_card"
    CORP_JSAPI = "corp_jsapi"  # WeCom's, one for each company (WECHAT.md W68)
    AGENT_CONFIG = "agent_config"  # WeCom's, one for each app (W69)


CORP_TICKETS: Final = (Endpoint.CORP_JSAPI, Endpoint.AGENT_CONFIG)
TICKETS: Final = (Endpoint.JSAPI, Endpoint.WX_CARD, *CORP_TICKETS)
_TICKET_KINDS: Final = {"jsapi": Endpoint.JSAPI, "wx_card": Endpoint.WX_CARD}
_CORP_TICKET_KINDS: Final = {
    "jsapi": Endpoint.CORP_JSAPI,
    "agent_config": Endpoint.AGENT_CONFIG,
}


def ticket_kinds(app: Endpoint) -> Mapping[str, Endpoint]:
    """Return the tickets that an app may have by what services call them: WeChat's or WeCom's."""
    return _CORP_TICKET_KINDS if app is Endpoint.WECOM else _TICKET_KINDS


@dataclass(frozen=True, slots=True)
class Policy:
    """How the broker behaves; seconds where a time. The defaults are the contract's."""

    tick: float = 5
    refresh_fraction: float = 0.5
    overlap: float = 300
    min_gap: float = 30
    max_backoff: float = 300
    min_serve: float = 15
    verify_gap: float = 10
    verify_quota: int = 500
    report_quota: int = 200


@dataclass(frozen=True, slots=True)
class Account:
    """One of WeChat's accounts as the keeper knows it. `name` is what services call it.

    `id` is what the store knows the account by, together with its endpoint: the AppID, and for
    WeCom the name too, since a corpid has a token per secret and so may have many apps. A
    company's ticket has no name in its `id`: it is the same whatever app asks for it.
    """

    name: str
    appid: str
    secret: Secret
    endpoint: Endpoint = Endpoint.TOKEN
    daily_quota: int = 2000
    id: str = field(init=False, default="")

    def __post_init__(self) -> None:
        is_of_one_app = self.endpoint in {Endpoint.WECOM, Endpoint.AGENT_CONFIG}
        named = f"{self.appid}/{self.name}" if is_of_one_app else self.appid
        object.__setattr__(self, "id", named)


@dataclass(frozen=True, slots=True)
class HeldToken:
    """A token and how long WeChat said it lives.

    `call` is the ledger row of the call that brought it.
    """

    value: Secret
    call: int
    requested_at: float  # before the request was sent: the safe end to count from
    expires_at: float
    replace_at: float = NEVER  # by the plan that was made when it was minted

    @property
    def lifetime(self) -> float:
        """Seconds from request to expiry."""
        return self.expires_at - self.requested_at


class Doubt(StrEnum):
    """Why the token we hold may not be good."""

    # A call may have minted another token: then this one dies within the overlap.
    LOST_ANSWER = "lost-answer"
    CLOCK = "clock"  # no clock can say how old it is
    REFUSED = "refused"  # WeChat itself said so


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A doubt, since when, and until when the token may be served all the same."""

    doubt: Doubt
    since: float
    safe_until: float


@dataclass(frozen=True, slots=True)
class SecondIssuer:
    """Signs of a second issuer: tokens that WeChat refused too early though we replaced none.

    `since` and `last` are wall time, for people.
    """

    count: int = 0
    since: float | None = None
    last: float | None = None

    @property
    def suspected(self) -> bool:
        """True if chance no longer explains it."""
        return self.count >= SUSPECTS_SECOND_ISSUER_AT

    def again(self, wall: float) -> "SecondIssuer":
        """Add one more sign; signs a week apart do not add up."""
        if self.since is None or self.last is None or wall - self.last > SECOND_ISSUER_FADES_AFTER:
            return SecondIssuer(1, wall, wall)
        return SecondIssuer(self.count + 1, self.since, wall)


@dataclass(frozen=True, slots=True)
class Credential:
    """All that is known of one account, and all that is stored of it."""

    epoch: str = ""
    token: HeldToken | None = None
    suspicion: Suspicion | None = None
    called_at: float = NEVER  # start of the last token call, whatever came of it
    reserved_call: int | None = None  # a call that has no outcome yet
    not_before: float = NEVER  # no token call before this, because of `failure`
    failures: int = 0  # in a row
    failure: Failure | None = None
    checked_at: float = NEVER  # last verification
    checks: int = 0  # verifications since `checks_since`, of any token
    checks_since: float = NEVER
    alive_in_a_row: int = 0  # how often WeChat has accepted this token since it was minted
    second_issuer: SecondIssuer = field(default_factory=SecondIssuer)
    # Of the AppSecret that `failure` is about; too short to tell anything of it.
    fingerprint: str = ""

    @property
    def version(self) -> str | None:
        """What clients compare: the store's epoch and the call's number; None without a token."""
        return None if self.token is None else f"{self.epoch}-{self.token.call}"

    @property
    def refused(self) -> bool:
        """True if WeChat said that this token is dead."""
        return self.suspicion is not None and self.suspicion.doubt is Doubt.REFUSED
