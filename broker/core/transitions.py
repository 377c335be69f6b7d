"""What changes a credential: one pure function per change of state, so that a store can apply it inside its own transaction."""

import math
from dataclasses import replace
from typing import Final

from broker.core.credential import NEVER, Credential, Doubt, Endpoint, HeldToken, Policy, Suspicion
from broker.core.decision import JITTER, _overlap_over
from broker.core.errcodes import Failure
from broker.core.secret import Secret

REPLACED_BY_ANY_CALL: Final = (
    Endpoint.TOKEN,
    Endpoint.STABLE,
)  # where another program's call can kill our token


def reserved(credential: Credential, call: int, now: float) -> Credential:
    """A token call is about to be made."""
    return replace(credential, called_at=now, reserved_call=call)


def minted(
    credential: Credential,
    call: int,
    started_at: float,
    answer: tuple[Secret, float],
    endpoint: Endpoint = Endpoint.TOKEN,
) -> Credential:
    """WeChat answered with a token and its seconds.

    An answer older than what we hold changes nothing (the fence).
    """
    value, expires_in = answer
    held = credential.token
    done = replace(_closed(credential, call), failures=0, failure=None, not_before=NEVER)
    if held is not None and held.call > call:
        return done
    if held is not None and held.value == value:
        # The same token again: same version, its expiry from this answer. One that was refused is
        # repeated dead. Whether WeCom tells what is left of a token it repeats, nobody says: it is
        # not believed to prolong one.
        expires_at = started_at + expires_in
        if endpoint is Endpoint.WECOM and started_at < held.expires_at:
            expires_at = min(expires_at, held.expires_at)
        again = replace(held, requested_at=started_at, expires_at=expires_at)
        return replace(
            done, token=again, suspicion=credential.suspicion if credential.refused else None
        )
    return replace(
        done, token=HeldToken(value, call, started_at, started_at + expires_in), suspicion=None
    )


def failed(
    credential: Credential, call: int, failure: Failure, not_before: float, fingerprint: str
) -> Credential:
    """WeChat did not give a token; the one we hold stays as it was."""
    return replace(
        _closed(credential, call),
        failures=credential.failures + 1,
        failure=failure,
        not_before=max(not_before, credential.not_before),
        fingerprint=fingerprint,
    )


def after_secret_change(credential: Credential, fingerprint: str) -> Credential | None:
    """Drop a pause that was about another AppSecret than the one in use now; None where there is nothing to drop."""
    if credential.failure is None or credential.fingerprint == fingerprint:
        return None
    return replace(credential, failures=0, failure=None, not_before=NEVER)


def overlap_after_replacement(endpoint: Endpoint, policy: Policy, *, force: bool) -> float:
    """Seconds that a token overlap_after_replacement the call which replaces it (WECHAT.md W7).

    The stable endpoint replaces none before its time, unless it is forced to, and then at once.
    WeCom and tickets none.
    """
    if endpoint is Endpoint.STABLE and force:
        return 0.0
    return policy.overlap if endpoint is Endpoint.TOKEN else math.inf


def lost(credential: Credential, started_at: float, overlap_after_replacement: float) -> Credential:
    """A call's answer is not known.

    It may have minted: what we hold may be dead `overlap_after_replacement` seconds after its
    start.
    """
    if overlap_after_replacement == math.inf or credential.token is None or credential.refused:
        return credential
    earlier, safe_until = credential.suspicion, started_at + overlap_after_replacement
    if earlier is None:
        return replace(credential, suspicion=Suspicion(Doubt.LOST_ANSWER, started_at, safe_until))
    if earlier.doubt is Doubt.CLOCK:  # which nothing but another token ends
        return credential
    # One generation only: the first loss counts.
    return replace(
        credential,
        suspicion=Suspicion(Doubt.LOST_ANSWER, started_at, min(safe_until, earlier.safe_until)),
    )


def lease_lost(
    credential: Credential, started_at: float, answered_at: float, overlap_after_replacement: float
) -> Credential | None:
    """A call of ours that another process took for dead may have minted, and pushed out what is held now.

    It may have done so at any time until its answer came: so long the doubt lasts, and so early the
    token may die. None where it cannot have: the token held was asked for after our answer had
    come.
    """
    token = credential.token
    if token is None or token.requested_at > answered_at:
        return None
    doubted = lost(credential, max(token.requested_at, started_at), overlap_after_replacement)
    if doubted is credential or doubted.suspicion is None:
        return None
    return replace(doubted, suspicion=replace(doubted.suspicion, since=answered_at))


def is_older(one: Credential, other: Credential) -> bool:
    """Whether `one` holds an older token than `other`, or none: by the calls that brought them, across epochs by time."""
    if one.token is None or other.token is None:
        return one.token is None and other.token is not None
    if one.epoch == other.epoch:
        return one.token.call < other.token.call
    if (
        one.token.value == other.token.value
    ):  # given back under another number; read again, it looks a little older
        return False
    return one.token.requested_at < other.token.requested_at


def read_repair(stored: Credential, memory: Credential, number: int = 0) -> Credential | None:
    """What a store that lost our token should hold; None where it holds one as new.

    `number` is what the token's call is called in another epoch than it was made in.
    """
    if memory.token is None or not is_older(stored, memory):
        return None
    is_same = memory.epoch == stored.epoch
    call = memory.token.call if is_same else number
    # A call that was reserved after the token's is still under way, in another process's hands.
    is_open = is_same and stored.reserved_call is not None and stored.reserved_call > call
    token, called_at = replace(memory.token, call=call), max(stored.called_at, memory.called_at)
    reserved_call = stored.reserved_call if is_open else None
    return replace(
        memory, epoch=stored.epoch, token=token, called_at=called_at, reserved_call=reserved_call
    )


def of_unknown_age(credential: Credential, now: float) -> Credential:
    """No clock can say how old the token is."""
    if credential.token is None or credential.refused:
        return credential
    return replace(credential, suspicion=Suspicion(Doubt.CLOCK, now, now))


def begin_check(
    credential: Credential, version: str | None, policy: Policy, now: float
) -> Credential | None:
    """Claim the right to one verification of `version`; None where it was replaced, or checked a moment ago."""
    if credential.version != version or now < credential.checked_at + policy.verify_gap:
        return None
    return replace(credential, checked_at=now)


def found_alive(
    credential: Credential, version: str | None, policy: Policy, now: float
) -> Credential | None:
    """WeChat accepts the token.

    That ends a doubt only when the overlap is over, for until then it may be a dying one.
    """
    suspicion = credential.suspicion
    if (
        credential.version != version
        or suspicion is None
        or suspicion.doubt is not Doubt.LOST_ANSWER
    ):
        return None
    return replace(credential, suspicion=None) if now >= _overlap_over(suspicion, policy) else None


def found_dead(
    credential: Credential,
    version: str | None,
    now: float,
    wall: float,
    endpoint: Endpoint = Endpoint.TOKEN,
) -> Credential | None:
    """WeChat refuses the token.

    Where nothing of ours explains that, somebody else may be calling the endpoint.
    """
    token = credential.token
    if credential.version != version or token is None or credential.refused:
        return None
    dead = replace(credential, suspicion=Suspicion(Doubt.REFUSED, now, now))
    unexplained = credential.suspicion is None and now < token.expires_at - JITTER * token.lifetime
    return (
        replace(dead, second_issuer=credential.second_issuer.again(wall))
        if unexplained and endpoint in REPLACED_BY_ANY_CALL
        else dead
    )


def _closed(credential: Credential, call: int) -> Credential:
    return (
        replace(credential, reserved_call=None) if credential.reserved_call == call else credential
    )
