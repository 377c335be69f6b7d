"""May this token call be made? The question every call passes inside the store's transaction."""

from collections.abc import Sequence

from broker.core.credential import Account, Credential, Policy
from broker.core.decision import allowed_at
from broker.core.errcodes import Kind
from broker.core.ports import Claim, Decide, Denial, Reason
from broker.core.quota import Entry, Lane, QuotaLimits, full


def admit(account: Account, policy: Policy, seen: str | None, claim: Claim, lease: float) -> Decide:
    """Return the decision for a store to take: it looks again at everything, since time has passed.

    `seen` is the version the wish was based on; `lease` the seconds after which an open call of
    somebody else's is over.
    """

    def decide(credential: Credential, entries: Sequence[Entry], now: float) -> Claim | Denial:
        if credential.version != seen:
            return Denial(Reason.SUPERSEDED, now)
        if credential.reserved_call is not None and now < credential.called_at + lease:
            return Denial(Reason.IN_FLIGHT, credential.called_at + lease)
        if now < (allowed := _allowed_at(credential, policy, claim.lane)):
            return Denial(Reason.TOO_SOON, allowed)
        limits = QuotaLimits.of(account.daily_quota, account.endpoint, policy)
        if reached := full(entries, limits, claim.lane, now, force=claim.force):
            return Denial(Reason.QUOTA, reached.until, reached.limit)
        return claim

    return decide


def _allowed_at(credential: Credential, policy: Policy, lane: Lane) -> float:
    """Return from when a call in this lane may be made, in steady seconds.

    A person need not sit out a pause that is ours. `min_gap` and a pause that WeChat ordered bind
    people too.
    """
    ordered = credential.failure is not None and credential.failure.kind in {
        Kind.QUOTA,
        Kind.BLOCKED,
        Kind.SLOW_DOWN,
    }
    if lane is Lane.ADMIN and not ordered:
        return credential.called_at + policy.min_gap
    return allowed_at(credential, policy)
