"""THE decision: when the next token call is due, when to verify, and until when a token may be handed out.

Every instant is in seconds on one steady clock that runs through suspend and that nobody can set.
"""

import math
from typing import Final
from zlib import crc32

from broker.core.credential import NEVER, TICKETS, Credential, Doubt, Endpoint, Policy, Suspicion

LIFETIME: Final = (
    7200.0  # what WeChat grants (WECHAT.md W4); each answer's own expires_in is what counts
)
RENEWED_AFTER: Final = (
    2.0  # WeCom repeats a token until it has expired; this long after its end there is another one
)
ROTATES_WITHIN: Final = (
    300.0  # the stable endpoint hands out another token only in the last 300 s (WECHAT.md W9)
)
TICKET_FRACTION: Final = 0.8
JITTER: Final = 0.1


def refresh_at(credential: Credential, endpoint: Endpoint, policy: Policy) -> float:
    """When the next token call is due: as soon as it is wanted and allowed.

    Quota is the ledger's business (quota.py).
    """
    return max(wanted_at(credential, endpoint, policy), allowed_at(credential, policy))


def wanted_at(credential: Credential, endpoint: Endpoint, policy: Policy) -> float:
    """When we would like another token; at once where there is none, or one in doubt."""
    if credential.token is None or credential.suspicion is not None:
        return NEVER
    return scheduled_at(credential, endpoint, policy)


def scheduled_at(credential: Credential, endpoint: Endpoint, policy: Policy) -> float:
    """When the schedule alone replaces the token, doubt or no doubt.

    Classic: half-life, ± 10 % so that a thousand apps do not call together. Stable: inside the last
    300 s, before which WeChat repeats the same token (WECHAT.md W8); 10 to 20 % inside, because the
    edge is theirs. WeCom: when it has expired, since until then the same one is repeated (WECHAT.md
    W62). Tickets: as classic, but later: nobody says whether the same one is repeated until its end
    (WECHAT.md W56), and then each time half would be left that costs a call.
    """
    token = credential.token
    if token is None:
        return NEVER
    if endpoint is Endpoint.WECOM:
        return token.expires_at + RENEWED_AFTER
    # Derived from the version rather than drawn: the same after a restart, with nothing to store.
    jitter = crc32(f"{credential.version}".encode()) / 2**32
    if endpoint is Endpoint.STABLE:
        margin = min(
            ROTATES_WITHIN * (1 - JITTER * (1 + jitter)),
            token.lifetime * (1 - policy.refresh_fraction),
        )
        return token.expires_at - margin
    fraction = (
        max(policy.refresh_fraction, TICKET_FRACTION)
        if endpoint in TICKETS
        else policy.refresh_fraction
    )
    return token.requested_at + token.lifetime * fraction * (1 + JITTER * (2 * jitter - 1))


def allowed_at(credential: Credential, policy: Policy) -> float:
    """From when a call may be made, whatever wants it."""
    return max(credential.called_at + policy.min_gap, credential.not_before)


def safe_end(credential: Credential) -> float:
    """Until when the token may be handed out."""
    if credential.token is None:
        return NEVER
    if credential.suspicion is None:
        return credential.token.expires_at
    return min(credential.token.expires_at, credential.suspicion.safe_until)


def seconds_left(credential: Credential, policy: Policy, now: float) -> int | None:
    """Whole seconds the token may still be used, rounded down; None where it must not be handed out."""
    left = safe_end(credential) - now
    return math.floor(left) if left >= max(policy.min_serve, 1) else None


def check_at(credential: Credential, policy: Policy) -> float:
    """When to ask WeChat if the held token is alive, which is free; never where there is no reason to.

    After a lost answer it is asked twice: at once, since a refusal ends the matter; and when the
    overlap is surely over (its edge is fuzzy, WECHAT.md W7), since a token that still lives then
    was never pushed out.
    """
    suspicion, token = credential.suspicion, credential.token
    if suspicion is None or token is None or suspicion.doubt is not Doubt.LOST_ANSWER:
        return math.inf
    overlap_over, allowed = (
        _overlap_over(suspicion, policy),
        credential.checked_at + policy.verify_gap,
    )
    if credential.checked_at < suspicion.since:
        wanted = suspicion.since
    else:
        wanted = overlap_over if credential.checked_at < overlap_over else math.inf
    at = max(wanted, allowed)
    return at if at < token.expires_at else math.inf


def _overlap_over(suspicion: Suspicion, policy: Policy) -> float:
    """From when a token that lives was not pushed out by any of the calls in question: the last one's overlap counts."""
    return max(suspicion.safe_until, suspicion.since + policy.overlap) + policy.overlap / 5
