"""What a caller gets: a token and its state, or why there is none and when to ask again."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from broker.core.credential import Credential, HeldToken
from broker.core.errcodes import Kind
from broker.core.ports import Denial, Reason


class TokenState(StrEnum):
    """What a token is worth."""

    FRESH = "fresh"
    STALE = "stale"  # due for replacement, still valid
    SUSPECT = "suspect"  # in doubt, being verified or replaced


class ReportOutcome(StrEnum):
    """What came of a report."""

    SUPERSEDED = "superseded"
    REFRESHED = "refreshed"
    VERIFIED = "verified"


class Code(StrEnum):
    """Why there is no token, no verification or no refresh now."""

    STARTING = "starting"
    STOPPING = "stopping"
    STORE_UNAVAILABLE = "store-unavailable"
    QUOTA_EXHAUSTED = "quota-exhausted"
    UPSTREAM_REFUSED = "upstream-refused"
    UPSTREAM_UNAVAILABLE = "upstream-unavailable"
    REPORT_THROTTLED = "report-throttled"
    REFRESH_THROTTLED = "refresh-throttled"


@dataclass(frozen=True, slots=True)
class Served:
    """A token that may be used for `expires_in` whole seconds from now (rounded down).

    `token_expires_in`: until WeChat's own end, which is what counts where the broker can replace
    nothing. `until`: steady time to which this very answer stays true, at most a second ahead, unless
    another credential comes.
    """

    credential: Credential
    expires_in: int
    token_expires_in: int
    state: TokenState
    until: float

    @property
    def token(self) -> HeldToken:
        """What is served: there always is one."""
        if self.credential.token is None:
            raise AssertionError("nothing was served")
        return self.credential.token


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Why not, in a sentence for people, and the whole seconds (at least 1) after which asking again may help."""

    code: Code
    detail: str
    retry_after: int


PASSING: Final = {Kind.TRANSIENT, Kind.SLOW_DOWN}


def seconds(wait: float) -> int:
    """Whole seconds for a Retry-After: rounded up, at least 1, at most a day."""
    return min(max(1, math.ceil(wait)), 86400)


def why_not(
    credential: Credential, denial: Denial | None, store_error: str | None, wait: float
) -> Unavailable:
    """Explain that no token can be handed out.

    `wait`: seconds until the next token call, as things stand.
    """
    retry_after = seconds(wait)
    failure = credential.failure
    if store_error is not None:
        return Unavailable(
            Code.STORE_UNAVAILABLE,
            f"No call can be recorded, so none is made: {store_error}",
            retry_after,
        )
    if denial is not None and denial.reason is Reason.QUOTA:
        return Unavailable(
            Code.QUOTA_EXHAUSTED,
            f"{denial.limit} is spent; the broker's own ledger says so.",
            retry_after,
        )
    if failure is not None:
        code = Code.UPSTREAM_UNAVAILABLE if failure.kind in PASSING else Code.UPSTREAM_REFUSED
        code = Code.QUOTA_EXHAUSTED if failure.kind is Kind.QUOTA else code
        return Unavailable(
            code, f"WeChat gave no token: {failure.reason}. {failure.advice}", retry_after
        )
    if credential.token is None:
        return Unavailable(Code.STARTING, "The first token is being fetched.", retry_after)
    if credential.refused:
        sentence = (
            "WeChat refuses the current token; it is replaced as soon as min_gap and the quota"
            " allow."
        )
        return Unavailable(Code.UPSTREAM_UNAVAILABLE, sentence, retry_after)
    return Unavailable(
        Code.UPSTREAM_UNAVAILABLE,
        "No token with that much time left; the next one is not due yet.",
        retry_after,
    )
