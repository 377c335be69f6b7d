"""The tick, by APScheduler. It only makes the keepers look; what they start then is theirs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from apscheduler.job import Job
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger


class FromNow(IntervalTrigger):  # type: ignore[misc] # APScheduler ships no types
    """An interval that counts from now.

    APScheduler's own interval lists every run that was missed before it makes one of them. If the
    wall clock begins in 1970 and is then set right, that list has three hundred million entries,
    which is more than memory holds.
    """

    def get_next_fire_time(self, _previous_fire_time: datetime | None, now: datetime) -> datetime:
        """Return the time of the next look."""
        return now + timedelta(seconds=self.interval_length)


@asynccontextmanager
async def every(interval_s: float, look: Callable[[], None]) -> AsyncIterator[Job]:
    """Call `look` now, and then every `interval_s` seconds on the loop, until the context ends.

    A late look is made all the same, and several late ones become one. APScheduler's default would
    drop a job that is a second late (misfire_grace_time), and after a suspend all of them are.
    """
    # UTC, because APScheduler reckons in wall time: a change of zone must not delay a look.
    scheduler = AsyncIOScheduler(
        timezone=UTC,
        job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
    )

    # A coroutine runs on the loop; APScheduler would run a plain function on a thread.
    async def job() -> None:
        look()

    ticking = scheduler.add_job(job, FromNow(seconds=interval_s, timezone=UTC))
    scheduler.start()
    look()
    guard = asyncio.create_task(_keep_time(ticking, interval_s))
    try:
        yield ticking
    finally:
        guard.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await guard
        scheduler.shutdown(wait=False)


async def _keep_time(job: Job, interval_s: float) -> None:
    """Move the next look back after the wall clock was set back.

    APScheduler would wait until the wall clock has caught up.
    """
    while True:
        await asyncio.sleep(interval_s)
        now = datetime.now(UTC)
        if job.next_run_time > now + timedelta(seconds=2 * interval_s):
            job.modify(next_run_time=now)
