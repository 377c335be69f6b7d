"""THE decision: when the next token call is due, when to verify, and until when a token is good.

Every instant is in seconds on one steady clock that runs through suspend and that nobody can set.

What a client is told of a token's life on the classic endpoint (times in seconds; a token that
lives 7200, the default policy, no jitter)::

    0                        3600     3840   3900                    7200
    |------------------------|--------|------|-----------------------|
    minted, and its          the schedule    dead, if the call       WeChat's own end: only if
    replacement planned      makes a call    at 3600 minted          nobody made another call
                             |<----- overlap ----->|
                             |<- sure ->|
                                        promised: `expires_in` counts to here

Our own call is what kills the token, so the promise ends where the earliest such call may be made
plus the part of the overlap that is sure. While a call is due, or failed and waits to be made
again, that is the next attempt plus the sure part. After a lost answer the next attempt waits until
what was promised before is over: it may push out the token at once, since WeChat keeps one
generation only (WECHAT.md W6, W7).

On the stable endpoint, at WeCom and for tickets no call of ours kills what is held (WECHAT.md W8,
W61, W54): there the promise is WeChat's own end.
"""

import math
from typing import Final
from zlib import crc32

from broker.core.credential import (
    NEVER,
    TICKETS,
    Credential,
    Doubt,
    Endpoint,
    HeldToken,
    Policy,
    Suspicion,
)

# What WeChat grants (WECHAT.md W4). Each answer's own expires_in is what counts.
LIFETIME: Final = 7200.0
# WeCom repeats a token until it has expired; this long after its end there is another one.
RENEWED_AFTER: Final = 2.0
# The stable endpoint hands out another token only in the last 300 s (WECHAT.md W9).
ROTATES_WITHIN: Final = 300.0
TICKET_FRACTION: Final = 0.8
JITTER: Final = 0.1
STEADY_S: Final = 60.0
LONGEST_STEADY_S: Final = 300.0
DAY: Final = 86400.0
SURE_PART: Final = 0.8  # of the overlap, whose edges are fuzzy (WECHAT.md W7)


# --- the next call --------------------------------------------------------------------------------


def refresh_at(credential: Credential, endpoint: Endpoint, policy: Policy) -> float:
    """Return when the next token call is due: as soon as it is wanted and allowed.

    Quota is the ledger's business (quota.py).
    """
    return max(wanted_at(credential, endpoint, policy), allowed_at(credential, policy))


def wanted_at(credential: Credential, endpoint: Endpoint, policy: Policy) -> float:
    """Return when another token is wanted: at once where there is none, or one that is in doubt.

    After a lost answer another call waits until what clients were promised is over.
    """
    token, suspicion = credential.token, credential.suspicion
    if token is None:
        return NEVER
    if suspicion is None:
        return scheduled_at(credential, endpoint, policy)
    if suspicion.doubt is not Doubt.LOST_ANSWER or endpoint is not Endpoint.TOKEN:
        return NEVER
    promised = suspicion.since + sure_overlap(token, endpoint, policy)
    return min(promised, suspicion.safe_until, token.expires_at)


def scheduled_at(credential: Credential, endpoint: Endpoint, policy: Policy) -> float:
    """Return when the schedule alone replaces the token, whether it is in doubt or not.

    On the classic endpoint what was planned when the token was minted holds, since clients were
    told so: another policy moves it later, never earlier.
    """
    token = credential.token
    if token is None:
        return NEVER
    planned = planned_at(credential.epoch, token, endpoint, policy)
    return max(token.replace_at, planned) if endpoint is Endpoint.TOKEN else planned


def planned_at(epoch: str, token: HeldToken, endpoint: Endpoint, policy: Policy) -> float:
    """Return when a policy replaces a token.

    Classic: half-life, ± 10 % so that a thousand apps do not call together. Stable: inside the last
    300 s, before which WeChat repeats the same token (WECHAT.md W8); 10 to 20 % inside, because the
    edge is theirs. WeCom: when it has expired, since until then the same one is repeated (WECHAT.md
    W62). Tickets: as classic, but later: nobody says whether the same one is repeated until its end
    (WECHAT.md W56), and then each time half would be left that costs a call.
    """
    if endpoint is Endpoint.WECOM:
        return token.expires_at + RENEWED_AFTER
    lifetime = token.expires_at - token.requested_at
    # Derived from the version rather than drawn: the same after a restart.
    jitter = crc32(f"{epoch}-{token.call}".encode()) / 2**32
    if endpoint is Endpoint.STABLE:
        inside = ROTATES_WITHIN * (1 - JITTER * (1 + jitter))
        return token.expires_at - min(inside, lifetime * (1 - policy.refresh_fraction))
    fraction = policy.refresh_fraction
    if endpoint in TICKETS:
        fraction = max(fraction, TICKET_FRACTION)
    return token.requested_at + lifetime * fraction * (1 + JITTER * (2 * jitter - 1))


def allowed_at(credential: Credential, policy: Policy) -> float:
    """Return from when a call may be made, whatever wants it."""
    return max(credential.called_at + policy.min_gap, credential.not_before)


# --- what is held ---------------------------------------------------------------------------------


def safe_end(credential: Credential) -> float:
    """Return until when the token may be handed out, if nobody replaces it."""
    token, suspicion = credential.token, credential.suspicion
    if token is None:
        return NEVER
    return token.expires_at if suspicion is None else min(token.expires_at, suspicion.safe_until)


def promised_until(credential: Credential, endpoint: Endpoint, policy: Policy, now: float) -> float:
    """Return until when the token is surely good, our own next call included.

    Never later than :func:`safe_end`. The drawing at the top of this module shows why.
    """
    token, end = credential.token, safe_end(credential)
    if token is None or endpoint is not Endpoint.TOKEN:
        return end
    sure = sure_overlap(token, endpoint, policy)
    if (suspicion := credential.suspicion) is not None:
        # The next call may push it out at once. Beyond the sure part the lost one may have.
        next_call = max(refresh_at(credential, endpoint, policy), now)
        # With a second call nothing is sure, while it is under way and after its answer is lost:
        # both calls may have minted (WECHAT.md W6).
        is_lost_twice = suspicion.safe_until < suspicion.since + policy.overlap - 1
        if is_lost_twice or credential.reserved_call is not None:
            return min(end, now)
        return min(end, next_call, max(suspicion.since + sure, now))
    if credential.reserved_call is not None:  # a call is under way
        return min(end, credential.called_at + sure)
    # A policy that moves the call later may be followed by one that takes this back, so the promise
    # goes by the plan that was made when the token was minted.
    wanted = token.replace_at
    if wanted == NEVER:  # another version of the broker stored no plan
        wanted = wanted_at(credential, endpoint, policy)
    return min(end, max(wanted, allowed_at(credential, policy), now) + sure)


def sure_overlap(token: HeldToken, endpoint: Endpoint, policy: Policy) -> float:
    """Return the seconds that a token surely lives on after a call that replaces it.

    WeChat keeps one generation only, so no longer than until its successor may be replaced.
    """
    if endpoint is not Endpoint.TOKEN:
        return math.inf
    lifetime = token.expires_at - token.requested_at
    successor = lifetime * policy.refresh_fraction * (1 - JITTER)
    return min(policy.overlap * SURE_PART, max(successor, policy.min_gap))


# --- verification ---------------------------------------------------------------------------------


def check_at(credential: Credential, policy: Policy) -> float:
    """Return when to ask WeChat if the held token is alive; infinite where nothing calls for it.

    After a lost answer it is asked twice: at once, since a refusal ends the matter; and when the
    overlap is surely over (its edge is fuzzy, WECHAT.md W7), since a token that still lives then
    was never pushed out.
    """
    suspicion, token = credential.suspicion, credential.token
    if suspicion is None or token is None or suspicion.doubt is not Doubt.LOST_ANSWER:
        return math.inf
    over = overlap_over(suspicion, policy)
    if credential.checked_at < suspicion.since:
        wanted = suspicion.since
    else:
        wanted = over if credential.checked_at < over else math.inf
    at = max(wanted, check_allowed_at(credential, policy))
    return at if at < token.expires_at else math.inf


def check_allowed_at(credential: Credential, policy: Policy) -> float:
    """Return from when a verification may be made, whatever wants it.

    No limit of WeChat's is published, so they have a budget of their own (WECHAT.md W35).
    """
    if credential.checks >= policy.verify_quota:
        return credential.checks_since + DAY
    return credential.checked_at + policy.verify_gap


def steady_check_at(credential: Credential, policy: Policy) -> float:
    """Return when clients that ask steadily cause a verification of the token in force.

    A minute after the token was minted or verified; up to five minutes while WeChat keeps accepting
    it; and never more than half of the day's verifications.
    """
    token = credential.token
    if token is None:
        return math.inf
    if credential.checks >= policy.verify_quota / 2:
        return credential.checks_since + DAY
    pause_s = min(LONGEST_STEADY_S, STEADY_S * 2.0 ** min(credential.alive_in_a_row, 10))
    return max(credential.checked_at, token.requested_at) + pause_s


def overlap_over(suspicion: Suspicion, policy: Policy) -> float:
    """Return from when a token that lives was not pushed out by any of the calls in question.

    The last call's overlap counts.
    """
    return max(suspicion.safe_until, suspicion.since + policy.overlap) + policy.overlap / 5
