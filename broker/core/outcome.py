"""What came of a token call, as the change it makes: pure, so that a store can apply it inside its own transaction."""

from dataclasses import dataclass, replace

from broker.core.credential import Account, Credential, Policy, failed, fingerprint, lost, minted, outlives
from broker.core.errcodes import Failure, Kind, pause
from broker.core.ports import Change, Grant, Minted
from broker.core.quota import until_next_day


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges one account's calls under a policy, at one moment (`wall`: unix time); `spread` in [0, 1) keeps brokers apart."""

    account: Account
    policy: Policy
    wall: float
    spread: float

    def answer(self, grant: Grant, answer: Minted | Failure) -> tuple[str, Change]:
        """What an answer is called in the ledger, and what it changes."""
        call, started_at = grant.call, grant.started_at
        safe_for = outlives(self.account.endpoint, self.policy, force=grant.claim.force)
        if isinstance(answer, Minted):
            good = answer.token, answer.expires_in
            return "minted", lambda held, _: minted(held, call, started_at, good)
        failure = replace(answer, wall=self.wall)
        wait = self._pause(failure, grant.credential.failures)
        known = fingerprint(self.account.secret, grant.credential.epoch)

        def change(held: Credential, now: float) -> Credential:
            held = lost(held, started_at, safe_for) if failure.lost else held
            return failed(held, call, failure, now + wait, known)

        return "lost" if failure.lost else f"errcode {failure.errcode}" if failure.errcode else failure.kind.value, change

    def orphan(self, *, force: bool) -> Change:
        """A reserved call whose process died: spent, perhaps minted, and a failure like others, from when it began."""
        safe_for = outlives(self.account.endpoint, self.policy, force=force)
        failure = Failure(Kind.TRANSIENT, "the broker was stopped during a token call", lost=True, wall=self.wall)

        def change(held: Credential, _: float) -> Credential | None:
            if held.reserved_call is None:
                return None
            not_before = held.called_at + self._pause(failure, held.failures)
            suspected = lost(held, held.called_at, safe_for)
            return failed(suspected, held.reserved_call, failure, not_before, fingerprint(self.account.secret, held.epoch))

        return change

    def _pause(self, failure: Failure, failures_before: int) -> float:
        floor, ceiling = self.policy.min_gap, self.policy.max_backoff
        return pause(failure, failures_before + 1, floor, ceiling, until_next_day(self.wall), self.spread)
