"""The tick, by APScheduler: it only makes the keepers look; what they start is theirs, not a job."""

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

    APScheduler's counts from each time that was missed, and lists them all before it makes one look
    of them: where the clock wakes up in 1970 and is then set right, that is three hundred million,
    and the end of the memory.
    """

    def get_next_fire_time(self, _previous_fire_time: datetime | None, now: datetime) -> datetime:
        """When to look next."""
        return now + timedelta(seconds=self.interval_length)


@asynccontextmanager
async def every(interval_s: float, look: Callable[[], None]) -> AsyncIterator[Job]:
    """Call `look` now and then every `interval_s` seconds, in the event loop, until the context ends.

    A late look is made all the same, and several late ones are made once: APScheduler's default
    would drop a job that is a second late (misfire_grace_time), which is what happens after a
    suspend.
    """
    # UTC: APScheduler reckons in wall time, and a change of zone or to summer time is no reason to
    # look later.
    scheduler = AsyncIOScheduler(
        timezone=UTC,
        job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
    )

    async def job() -> None:  # a coroutine runs in the loop; a plain function would run on a thread
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
    """Pull the next look back when the wall clock was set back: APScheduler would wait until the wall catches up."""
    while True:
        await asyncio.sleep(interval_s)
        now = datetime.now(UTC)
        if job.next_run_time > now + timedelta(seconds=2 * interval_s):
            job.modify(next_run_time=now)
