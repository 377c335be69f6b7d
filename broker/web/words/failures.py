"""Tells of a failed token call in a language: why it failed, and what a person can do about it."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from broker.core.errcodes import Advice, Failure, FailureCode, Flaw, Kind
from broker.core.quota import Usage


@dataclass(frozen=True, slots=True)
class FailureWords:
    """The sentences of one language; in a sentence, `{name}` stands for the fact of that name.

    `gap` stands between two sentences. `token` is the word for the `{thing}` that was asked for,
    where it is not said to be another.
    """

    reasons: Mapping[FailureCode, str]
    flaws: Mapping[Flaw, str]
    advices: Mapping[Advice, str]
    seen_as: str
    drift: str
    gap: str
    token: str

    def reason(self, failure: Failure) -> str:
        """Say why a call failed, in a phrase without a full stop."""
        # Another version may have stored other facts than this one knows.
        facts = defaultdict(lambda: "?", failure.facts)
        facts["errcode"] = str(failure.errcode)
        if (flaw := facts["flaw"]) in set(Flaw):
            facts["flaw"] = self.flaws[Flaw(flaw)].format_map(facts)
        return self.reasons[failure.code].format_map(facts)

    def advice(self, failure: Failure, thing: str | None = None) -> str:
        """Say what a person can do; `thing` is what was asked for where it is not a token."""
        advice = self.advices[failure.advice].format(thing=thing or self.token)
        seen_as = self.seen_as.format(ip=failure.ip) if failure.ip else ""
        return self.gap.join(filter(None, [advice, seen_as]))

    def advice_beside(self, failure: Failure, spent: Usage, thing: str | None = None) -> str:
        """Say what a person can do, and how far WeChat's count of calls is ahead of ours.

        `spent` is what our own ledger says. Where WeChat calls the quota spent and our ledger does
        not, somebody else makes calls.
        """
        advice = self.advice(failure, thing)
        if failure.kind is not Kind.QUOTA or not spent.remaining:
            return advice
        drift = self.drift.format(known=spent.last_24h, unknown=spent.remaining)
        return self.gap.join([advice, drift])
