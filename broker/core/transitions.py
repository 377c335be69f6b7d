"""What changes a credential: one pure function per change of state.

A store can apply each inside its own transaction. A function that may find nothing to change
returns None then.
"""

import math
from dataclasses import replace
from typing import Final

from broker.core.credential import (
    CORP_TICKETS,
    NEVER,
    Credential,
    Doubt,
    Endpoint,
    HeldToken,
    Policy,
    Suspicion,
)
from broker.core.decision import DAY, JITTER, check_allowed_at, overlap_over, planned_at
from broker.core.errcodes import Failure
from broker.core.secret import Secret

# Where another program's call can kill our token.
REPLACED_BY_ANY_CALL: Final = (Endpoint.TOKEN, Endpoint.STABLE)


# --- a call ---------------------------------------------------------------------------------------


def reserved(credential: Credential, call: int, now: float) -> Credential:
    """Note that a token call is about to be made."""
    return replace(credential, called_at=now, reserved_call=call)


def minted(
    credential: Credential,
    call: int,
    started_at: float,
    answer: tuple[Secret, float],
    endpoint: Endpoint = Endpoint.TOKEN,
    policy: Policy | None = None,
) -> Credential:
    """Take WeChat's answer: a token and its seconds. Its replacement is planned by `policy` now.

    An answer older than what is held changes nothing but the call's state (the fence).
    """
    value, expires_in = answer
    held, policy = credential.token, policy or Policy()
    done = replace(_closed(credential, call), failures=0, failure=None, not_before=NEVER)
    if held is not None and held.call > call:
        return done
    if held is not None and held.value == value:
        return _repeated(done, held, started_at, expires_in, endpoint)
    token = HeldToken(value, call, started_at, started_at + expires_in)
    planned = planned_at(credential.epoch, token, endpoint, policy)
    planned_token = replace(token, replace_at=planned)
    return replace(done, token=planned_token, suspicion=None, alive_in_a_row=0)


def _repeated(
    done: Credential, held: HeldToken, started_at: float, expires_in: float, endpoint: Endpoint
) -> Credential:
    """Take the same token again: the version stays, the expiry is this answer's.

    One that was refused is repeated dead (WECHAT.md W13). Nobody says whether WeCom tells what is
    left of a token it repeats (WECHAT.md W62), so a repeat is not believed to prolong one.
    """
    expires_at = started_at + expires_in
    if endpoint in {Endpoint.WECOM, *CORP_TICKETS} and started_at < held.expires_at:
        expires_at = min(expires_at, held.expires_at)
    again = replace(held, requested_at=started_at, expires_at=expires_at)
    return replace(done, token=again, suspicion=done.suspicion if done.refused else None)


def failed(
    credential: Credential, call: int, failure: Failure, not_before: float, fingerprint: str
) -> Credential:
    """Note that WeChat did not give a token; the one that is held stays as it was."""
    return replace(
        _closed(credential, call),
        failures=credential.failures + 1,
        failure=failure,
        not_before=max(not_before, credential.not_before),
        fingerprint=fingerprint,
    )


def after_secret_change(credential: Credential, fingerprint: str) -> Credential | None:
    """Drop a pause that was about another AppSecret than the one in use now."""
    if credential.failure is None or credential.fingerprint == fingerprint:
        return None
    return replace(credential, failures=0, failure=None, not_before=NEVER)


def _closed(credential: Credential, call: int) -> Credential:
    return (
        replace(credential, reserved_call=None) if credential.reserved_call == call else credential
    )


# --- a call whose answer is not known -------------------------------------------------------------


def overlap_after_replacement(endpoint: Endpoint, policy: Policy, *, force: bool) -> float:
    """Return the seconds that a token lives on after the call that replaces it (WECHAT.md W7).

    The stable endpoint replaces none before its time unless it is forced to, and then at once.
    WeCom and the ticket interfaces replace none.
    """
    if endpoint is Endpoint.STABLE and force:
        return 0.0
    return policy.overlap if endpoint is Endpoint.TOKEN else math.inf


def lost(credential: Credential, started_at: float, lives_on_s: float) -> Credential:
    """Doubt the held token, since a call's answer is not known and the call may have minted.

    Then the token is dead `lives_on_s` after the call's start.
    """
    if lives_on_s == math.inf or credential.token is None or credential.refused:
        return credential
    earlier, safe_until = credential.suspicion, started_at + lives_on_s
    if earlier is not None and earlier.doubt is Doubt.CLOCK:
        return credential  # nothing but another token ends that doubt
    if earlier is not None:  # WeChat keeps one generation only: the first loss counts
        safe_until = min(safe_until, earlier.safe_until)
    suspicion = Suspicion(Doubt.LOST_ANSWER, started_at, safe_until)
    return replace(credential, suspicion=suspicion)


def lease_lost(
    credential: Credential, started_at: float, answered_at: float, lives_on_s: float
) -> Credential | None:
    """Doubt the held token, since a call that another process took for dead may have replaced it.

    The call may have minted at any time between its start and its answer. So the start is assumed
    for when the held token dies, and the answer for when the doubt ends. None where the token was
    asked for after the answer had come.
    """
    token = credential.token
    if token is None or token.requested_at > answered_at:
        return None
    doubted = lost(credential, max(token.requested_at, started_at), lives_on_s)
    if doubted is credential or doubted.suspicion is None:
        return None
    return replace(doubted, suspicion=replace(doubted.suspicion, since=answered_at))


# --- another store, another clock -----------------------------------------------------------------


def is_older(one: Credential, other: Credential) -> bool:
    """Return True if `one` holds an older token than `other`, or none where the other has one.

    Within an epoch the calls that brought the tokens are compared, across epochs their times.
    """
    if one.token is None or other.token is None:
        return one.token is None and other.token is not None
    if one.epoch == other.epoch:
        return one.token.call < other.token.call
    # The same token, restored under another number, may look a little older when it is read again.
    if one.token.value == other.token.value:
        return False
    return one.token.requested_at < other.token.requested_at


def read_repair(stored: Credential, memory: Credential, number: int = 0) -> Credential | None:
    """Return what a store that lost our token should hold; None where it holds one as new.

    `number` becomes the number of the token's call where the store is in another epoch.
    """
    if memory.token is None or not is_older(stored, memory):
        return None
    is_same = memory.epoch == stored.epoch
    call = memory.token.call if is_same else number
    # A call that was reserved after the token's is under way still, in another process's hands.
    is_open = is_same and stored.reserved_call is not None and stored.reserved_call > call
    return replace(
        memory,
        epoch=stored.epoch,
        token=replace(memory.token, call=call),
        called_at=max(stored.called_at, memory.called_at),
        reserved_call=stored.reserved_call if is_open else None,
    )


def of_unknown_age(credential: Credential, now: float) -> Credential:
    """Doubt the held token, since no clock can say how old it is."""
    if credential.token is None or credential.refused:
        return credential
    return replace(credential, suspicion=Suspicion(Doubt.CLOCK, now, now))


# --- verification ---------------------------------------------------------------------------------


def begin_check(
    credential: Credential, version: str | None, policy: Policy, now: float
) -> Credential | None:
    """Claim the right to one verification of `version`.

    It counts against the day's verifications, and the token counts as accepted once more until
    WeChat refuses it. None where the token was replaced meanwhile, where it was verified less than
    `verify_gap` ago, and where the day's verifications are spent.
    """
    if credential.version != version or now < check_allowed_at(credential, policy):
        return None
    is_new_day = now >= credential.checks_since + DAY
    return replace(
        credential,
        checked_at=now,
        checks=1 if is_new_day else credential.checks + 1,
        checks_since=now if is_new_day else credential.checks_since,
        alive_in_a_row=credential.alive_in_a_row + 1,
    )


def found_alive(
    credential: Credential, version: str | None, policy: Policy, now: float
) -> Credential | None:
    """End the doubt after a lost answer, since WeChat accepts the token.

    Only when the overlap is over: until then the token may be a dying one.
    """
    suspicion = credential.suspicion
    if credential.version != version or suspicion is None:
        return None
    if suspicion.doubt is not Doubt.LOST_ANSWER or now < overlap_over(suspicion, policy):
        return None
    return replace(credential, suspicion=None)


def found_dead(
    credential: Credential,
    version: str | None,
    now: float,
    wall: float,
    endpoint: Endpoint = Endpoint.TOKEN,
) -> Credential | None:
    """Note that WeChat refuses the token.

    Where nothing of ours explains that, somebody else may be calling the endpoint (WECHAT.md W15).
    """
    token = credential.token
    if credential.version != version or token is None or credential.refused:
        return None
    suspicion = Suspicion(Doubt.REFUSED, now, now)
    dead = replace(credential, suspicion=suspicion, alive_in_a_row=0)
    lifetime = token.expires_at - token.requested_at
    is_early = credential.suspicion is None and now < token.expires_at - JITTER * lifetime
    if not is_early or endpoint not in REPLACED_BY_ANY_CALL:
        return dead
    return replace(dead, second_issuer=credential.second_issuer.again(wall))
