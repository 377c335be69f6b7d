"""What came of a token call, as the change it makes.

The changes are pure functions, so that a store can apply them inside its own transaction.
"""

from dataclasses import dataclass, replace

from broker.core.credential import Account, Credential, Policy
from broker.core.errcodes import Failure, FailureCode, Kind, pause
from broker.core.ports import Change, Grant, Minted
from broker.core.quota import until_next_day
from broker.core.secret import fingerprint
from broker.core.transitions import failed, lease_lost, lost, minted, overlap_after_replacement


@dataclass(frozen=True, slots=True)
class OutcomeRules:
    """Judges one account's calls under a policy, at one moment (`now`: steady, `wall`: unix time).

    `jitter` in [0, 1) keeps brokers apart. Where the store is `shared`, others may have taken us
    for dead meanwhile.
    """

    account: Account
    policy: Policy
    now: float
    wall: float
    jitter: float
    shared: bool = False

    def answer(self, grant: Grant, answer: Minted | Failure) -> tuple[str, Change]:
        """What an answer is called in the ledger, and what it changes."""
        outcome, change = self._answer(grant, answer)
        may_have_minted = isinstance(answer, Minted) or answer.lost
        safe_for = overlap_after_replacement(
            self.account.endpoint, self.policy, force=grant.claim.force
        )

        def fenced(held: Credential, now: float) -> Credential | None:
            if held.reserved_call == grant.call:
                return change(held, now)
            return (
                lease_lost(held, grant.started_at, self.now, safe_for) if may_have_minted else None
            )

        return outcome, fenced if self.shared else change

    @staticmethod
    def withheld(grant: Grant) -> tuple[str, Change]:
        """Return the outcome of a call that was not made, since it would have come too late.

        It counts as spent and changes nothing else.
        """

        def change(held: Credential, _: float) -> Credential | None:
            return replace(held, reserved_call=None) if held.reserved_call == grant.call else None

        return "withheld", change

    def _answer(self, grant: Grant, answer: Minted | Failure) -> tuple[str, Change]:
        call, started_at = grant.call, grant.started_at
        safe_for = overlap_after_replacement(
            self.account.endpoint, self.policy, force=grant.claim.force
        )
        if isinstance(answer, Minted):
            good = answer.token, answer.expires_in
            return "minted", lambda held, _: minted(
                held, call, started_at, good, self.account.endpoint, self.policy
            )
        failure = replace(answer, wall=self.wall)
        wait = self._pause(failure, grant.credential)
        known = fingerprint(self.account.secret, grant.credential.epoch)

        def change(held: Credential, now: float) -> Credential:
            held = lost(held, started_at, safe_for) if failure.lost else held
            return failed(held, call, failure, now + wait, known)

        return (
            (
                "lost"
                if failure.lost
                else f"errcode {failure.errcode}"
                if failure.errcode
                else failure.kind.value
            ),
            change,
        )

    def abandoned(self, call: int | None, *, force: bool) -> Change:
        """Return the outcome of a reserved call whose process died.

        The call counts as spent, may have minted a token, and is a failure from when it began.
        """
        safe_for = overlap_after_replacement(self.account.endpoint, self.policy, force=force)
        failure = Failure(Kind.TRANSIENT, FailureCode.STOPPED_IN_CALL, lost=True, wall=self.wall)

        def change(held: Credential, _: float) -> Credential | None:
            if held.reserved_call is None or held.reserved_call != call:
                return None
            not_before = held.called_at + self._pause(failure, held)
            suspected = lost(held, held.called_at, safe_for)
            return failed(
                suspected,
                held.reserved_call,
                failure,
                not_before,
                fingerprint(self.account.secret, held.epoch),
            )

        return change

    def _pause(self, failure: Failure, held: Credential) -> float:
        before, policy = held.failure, self.policy
        return pause(
            failure,
            held.failures + 1,
            policy.min_gap,
            policy.max_backoff,
            until_next_day(self.wall),
            self.jitter,
            is_first=before is None or before.kind is not failure.kind,
        )
