"""The ledger's arithmetic: which calls count, against which limit, and when a slot frees.

Nobody says when WeChat's quota day begins or whether failed calls count (WECHAT.md W17, W18), so a
call counts for 24 hours from its start, whatever came of it. No day, wherever it begins, is longer:
what holds over any 24 hours holds for each of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from broker.core.credential import Endpoint, Policy
from broker.core.decision import JITTER, LIFETIME, ROTATES_WITHIN

DAY: Final = 86400.0
HOUR: Final = 3600.0
BEIJING: Final = 8 * 3600.0
FORCED_A_DAY: Final = 20  # force_refresh on the stable endpoint (WECHAT.md W12)
FORCED_GAP: Final = 30.0
HOURLY: Final = {Endpoint.CORP_JSAPI: 400, Endpoint.AGENT_CONFIG: 100}  # WECHAT.md W70


class Lane(StrEnum):
    """On whose behalf a call is made."""

    SCHEDULED = "scheduled"
    REPORT = "report"
    ADMIN = "admin"


class Limit(StrEnum):
    """What calls are counted against; the values are the names that people know."""

    DAILY_QUOTA = "daily_quota"
    REPORT_QUOTA = "report_quota"
    SCHEDULE_SHARE = "schedule_share"  # what is left is the schedule's
    FORCE_REFRESH = "force_refresh"
    HOURLY_QUOTA = "hourly_quota"  # of WeCom's tickets


@dataclass(frozen=True, slots=True)
class Entry:
    """One call in the ledger: when it began, by both clocks, and how many calls it counts as."""

    at: float
    wall: float
    lane: Lane
    forced: bool = False
    cost: int = 1


@dataclass(frozen=True, slots=True)
class QuotaLimits:
    """What an account may spend, in calls within any 24 hours.

    `report` is what reports may cause. `share` is what the schedule needs: reports and people
    together leave it that much of `total`. `hourly` is what WeChat allows within any hour; None
    where it counts by the day only.
    """

    total: int
    report: int
    hourly: int | None = None
    share: int = 0

    @classmethod
    def of(cls, daily_quota: int, endpoint: Endpoint, policy: Policy) -> "QuotaLimits":
        """Limits of an account under a policy."""
        share = calls_per_day(endpoint, policy)
        report = max(0, min(policy.report_quota, daily_quota - share))
        return cls(daily_quota, report, HOURLY.get(endpoint), share)


@dataclass(frozen=True, slots=True)
class Usage:
    """What has been spent, for people."""

    limit: int
    today: int
    last_24h: int

    @property
    def remaining(self) -> int:
        """Calls that may still be made now."""
        return max(0, self.limit - max(self.today, self.last_24h))


@dataclass(frozen=True, slots=True)
class Full:
    """No call now: which limit is reached, and the steady time at which a slot frees."""

    limit: Limit
    until: float


def calls_per_day(endpoint: Endpoint, policy: Policy) -> int:
    """Token calls that a day without incidents needs at most."""
    if endpoint is Endpoint.NONE:
        return 0
    if endpoint is Endpoint.STABLE:
        return math.ceil(DAY / (LIFETIME - ROTATES_WITHIN))
    if endpoint is Endpoint.WECOM:
        return math.ceil(DAY / LIFETIME) + 1
    return math.ceil(DAY / (LIFETIME * policy.refresh_fraction * (1 - JITTER)))


def day_began(wall: float) -> float:
    """Wall time at which the Beijing day of `wall` began. China has no summer time."""
    return (wall + BEIJING) // DAY * DAY - BEIJING


def until_next_day(wall: float) -> float:
    """Seconds until the next Beijing midnight."""
    return day_began(wall) + DAY - wall


def usage(entries: Sequence[Entry], limit: int, now: float, wall: float) -> Usage:
    """Count what was spent."""
    today, rolling = _today(entries, now, wall), _rolling(entries, now)
    return Usage(limit, sum(e.cost for e in today), sum(e.cost for e in rolling))


def full(
    entries: Sequence[Entry], limits: QuotaLimits, lane: Lane, now: float, *, force: bool = False
) -> Full | None:
    """Return the limit that a call in `lane` would break; None if it may be made."""
    rolling = _rolling(entries, now)
    checks = [(Limit.DAILY_QUOTA, rolling, limits.total)]
    if lane is not Lane.SCHEDULED:
        others = [e for e in rolling if e.lane is not Lane.SCHEDULED]
        checks.append((Limit.SCHEDULE_SHARE, others, max(0, limits.total - limits.share)))
    if lane is Lane.REPORT:
        checks.append(
            (Limit.REPORT_QUOTA, [e for e in rolling if e.lane is Lane.REPORT], limits.report)
        )
    forced = [e for e in rolling if e.forced]
    if force:
        checks.append((Limit.FORCE_REFRESH, forced, FORCED_A_DAY))
    found = [
        Full(name, _frees_at(counted, limit, now))
        for name, counted, limit in checks
        if sum(e.cost for e in counted) >= limit
    ]
    last_hour = [e for e in rolling if e.at > now - HOUR]
    if limits.hourly is not None and sum(e.cost for e in last_hour) >= limits.hourly:
        found.append(Full(Limit.HOURLY_QUOTA, _frees_at(last_hour, limits.hourly, now, HOUR)))
    if force and forced:
        found.append(Full(Limit.FORCE_REFRESH, max(e.at for e in forced) + FORCED_GAP))
    return max((it for it in found if it.until > now), key=lambda it: it.until, default=None)


def _rolling(entries: Sequence[Entry], now: float) -> list[Entry]:
    return [e for e in entries if e.at > now - DAY]


def _today(entries: Sequence[Entry], now: float, wall: float) -> list[Entry]:
    began = day_began(wall)
    # Only what the steady clock puts into the last 24 hours: after the wall clock was set back by a
    # day, it would take yesterday's calls for today's. A call that it puts into the future was made
    # before it was set back: it counts.
    return [e for e in _rolling(entries, now) if e.wall >= began]


def _frees_at(counted: Sequence[Entry], limit: int, now: float, window: float = DAY) -> float:
    """When enough of the oldest calls have left the window for one more."""
    over = sum(e.cost for e in counted) - limit + 1
    for entry in sorted(counted, key=lambda e: e.at):
        over -= entry.cost
        if over <= 0:
            return entry.at + window
    return now + DAY  # a limit of nothing never frees; look again in a day
