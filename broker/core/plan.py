"""What a look has to do, computed once from what is known and kept as data.

A look at an app does not decide anything: it compares the clock with the instants of its
:class:`Plan`. The plan changes only when the credential, the policy or a denial does, so a look at
a healthy app is one comparison.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from broker.core.credential import NEVER, Credential, Endpoint, Policy
from broker.core.decision import check_at, refresh_at, scheduled_at
from broker.core.ports import Claim, Denial
from broker.core.quota import Lane


@dataclass(frozen=True, slots=True)
class Plan:
    """When each thing is due, in steady seconds; infinite where there is no reason to do it.

    `check_at`: ask WeChat whether the held token lives, which costs no token call.
    `by_reports_at`, `by_schedule_at`: make a token call at the expense of reports (only for a token
    that WeChat refused, and only before `scheduled_at`), or of the schedule.
    `abandoned_at`: close a reservation that nobody can still be working on.
    """

    check_at: float
    by_reports_at: float
    by_schedule_at: float
    abandoned_at: float
    scheduled_at: float
    is_refused: bool
    forces: bool  # the stable endpoint repeats a refused token unless forced (WECHAT.md W13)

    def call_at(self, now: float) -> float:
        """Return when the next token call is due, as seen at `now`."""
        return self.by_reports_at if now < self.scheduled_at else self.by_schedule_at

    def look_at(self, now: float) -> float:
        """Return when the next look finds something to do, as seen at `now`."""
        return min(self.check_at, self.call_at(now), self.abandoned_at)

    def claim(self, now: float) -> Claim:
        """Return on whose behalf a call made `now` would be.

        A refused token is replaced at the expense of reports until its schedule is up anyway, so
        that reports, however many, never take what the schedule needs.
        """
        if self.is_refused and now < self.scheduled_at:
            return Claim(Lane.REPORT, force=self.forces)
        return Claim(Lane.SCHEDULED)


def make_plan(
    credential: Credential,
    endpoint: Endpoint,
    policy: Policy,
    denials: Mapping[Lane, Denial],
    lease_s: float,
) -> Plan:
    """Compute the plan. `lease_s`: seconds after which an open call of somebody else's is over."""
    scheduled, is_refused = scheduled_at(credential, endpoint, policy), credential.refused
    due = refresh_at(credential, endpoint, policy)
    by_schedule = max(due, _denied_until(denials, Lane.SCHEDULED))
    by_reports = by_schedule
    if is_refused:
        by_schedule = max(by_schedule, scheduled)
        by_reports = min(max(due, _denied_until(denials, Lane.REPORT)), by_schedule)
    is_open = credential.reserved_call is not None
    return Plan(
        check_at=check_at(credential, policy),
        by_reports_at=by_reports,
        by_schedule_at=by_schedule,
        abandoned_at=credential.called_at + lease_s if is_open else math.inf,
        scheduled_at=scheduled,
        is_refused=is_refused,
        forces=endpoint is Endpoint.STABLE,
    )


def _denied_until(denials: Mapping[Lane, Denial], lane: Lane) -> float:
    denial = denials.get(lane)
    return NEVER if denial is None else denial.until
