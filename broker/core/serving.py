"""What a caller gets: a token and its state, or why there is none and when to ask again."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from broker.core.credential import Credential, HeldToken
from broker.core.errcodes import Failure, Kind
from broker.core.ports import Denial, Reason
from broker.core.quota import Limit


class TokenState(StrEnum):
    """How good a token is."""

    FRESH = "fresh"
    STALE = "stale"  # due for replacement, still valid
    SUSPECT = "suspect"  # in doubt, being verified or replaced


class ReportOutcome(StrEnum):
    """What came of a report."""

    SUPERSEDED = "superseded"
    REFRESHED = "refreshed"
    VERIFIED = "verified"


class Code(StrEnum):
    """Why there is no token, no verification or no refresh now: the `code` of the API's errors."""

    STARTING = "starting"
    STOPPING = "stopping"
    STORE_UNAVAILABLE = "store-unavailable"
    QUOTA_EXHAUSTED = "quota-exhausted"
    UPSTREAM_REFUSED = "upstream-refused"
    UPSTREAM_UNAVAILABLE = "upstream-unavailable"
    REPORT_THROTTLED = "report-throttled"
    REFRESH_THROTTLED = "refresh-throttled"
    UNKNOWN_APP = "unknown-app"


class UnavailableReason(StrEnum):
    """The reason behind a :class:`Code`, for people. After the dash: the fact that goes with it."""

    STARTING = "starting"
    STOPPING = "stopping"
    NOT_RECORDED = "not-recorded"  # a call could not be written down - store_error
    LIMIT = "limit"  # our own ledger is full - limit
    CALL_FAILED = "call-failed"  # the last token call failed - failure
    BEING_REPLACED = "being-replaced"  # WeChat refuses the token; another call is not allowed yet
    TOO_LITTLE_LEFT = "too-little-left"  # the token ends sooner than the caller asked for
    NOT_VERIFIED = "not-verified"  # WeChat could not be asked whether the token lives
    NO_VERDICT = "no-verdict"  # WeChat answered, and did not say whether the token lives
    JUST_VERIFIED = "just-verified"
    TOO_SOON = "too-soon"  # min_gap, or a pause that WeChat ordered
    REMOVED = "removed"  # the configuration was read again and does not name the app any more


@dataclass(frozen=True, slots=True)
class Served:
    """A token that may be used for `expires_in` whole seconds from now (rounded down).

    `token_expires_in` counts to WeChat's own end of the token, which is what matters to a client
    when nothing can replace the token any more. `until` is the steady time to which this very
    answer stays true, unless another credential comes. It is at most a second ahead.
    """

    credential: Credential
    expires_in: int
    token_expires_in: int
    state: TokenState
    until: float

    @property
    def token(self) -> HeldToken:
        """The token that is served. There always is one."""
        if self.credential.token is None:
            raise AssertionError("nothing was served")
        return self.credential.token


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Why there is nothing now: a code for programs, a reason and its facts for people.

    `retry_after` is in whole seconds (at least 1): asking again may help then.
    """

    code: Code
    reason: UnavailableReason
    retry_after: int
    failure: Failure | None = None
    limit: Limit | None = None
    store_error: str = ""


PASSING: Final = {Kind.TRANSIENT, Kind.PROXY, Kind.SLOW_DOWN}


def seconds(wait: float) -> int:
    """Return whole seconds for a Retry-After: rounded up, at least 1, at most a day."""
    return min(max(1, math.ceil(wait)), 86400)


def why_not(
    credential: Credential, denial: Denial | None, store_error: str | None, wait: float
) -> Unavailable:
    """Explain that no token can be handed out.

    `wait` is the number of seconds until the next token call, as things stand.
    """
    retry_after, failure = seconds(wait), credential.failure
    reason = UnavailableReason
    if store_error is not None:
        return Unavailable(
            Code.STORE_UNAVAILABLE, reason.NOT_RECORDED, retry_after, store_error=store_error
        )
    if denial is not None and denial.reason is Reason.QUOTA:
        return Unavailable(Code.QUOTA_EXHAUSTED, reason.LIMIT, retry_after, limit=denial.limit)
    if failure is not None:
        code = Code.UPSTREAM_UNAVAILABLE if failure.kind in PASSING else Code.UPSTREAM_REFUSED
        code = Code.QUOTA_EXHAUSTED if failure.kind is Kind.QUOTA else code
        return Unavailable(code, reason.CALL_FAILED, retry_after, failure=failure)
    if credential.token is None:
        return Unavailable(Code.STARTING, reason.STARTING, retry_after)
    if credential.refused:
        return Unavailable(Code.UPSTREAM_UNAVAILABLE, reason.BEING_REPLACED, retry_after)
    return Unavailable(Code.UPSTREAM_UNAVAILABLE, reason.TOO_LITTLE_LEFT, retry_after)
