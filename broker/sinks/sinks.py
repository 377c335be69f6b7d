"""Keeps every sink at the token in force.

It is written at the start, at each change, and again when a sink comes back.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from broker.config.settings import FileSinkSettings, SinkSettings
from broker.core.serving import Served
from broker.sinks.file import FileSink
from broker.sinks.formats import Writing
from broker.sinks.outcome import Sink, SinkError, SinkFault
from broker.sinks.redis import RedisSink
from broker.system import log
from broker.tokens.keeper import Keeper

LOOK_S: Final = 10.0  # a sink that lost the token has it again after so long
AGAIN_AFTER_S: Final = (1.0, 2.0, 5.0, 10.0)  # failures in a row; the last for good
EMPTY: Final = ""  # the version of no token

Iso = Callable[[float], str]
Find = Callable[[str], Keeper | None]


def sink_of(settings: SinkSettings) -> Sink:
    """Return the sink that the settings describe."""
    return FileSink(settings) if isinstance(settings, FileSinkSettings) else RedisSink(settings)


@dataclass(eq=False)
class Place:
    """A sink of an app, and how it stands; times are unix time."""

    app: str
    sink: Sink
    settings: SinkSettings
    version: str | None = None  # what it holds as far as we know; EMPTY where nothing may be served
    written_at: float | None = None
    fault: SinkFault | None = None
    fault_since: float | None = None
    failures: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    task: "asyncio.Task[None] | None" = None
    is_stopping: bool = False


class Sinks:
    """All sinks of a daemon. `find` gives an app's keeper, `wall` is unix time, `iso` writes it."""

    def __init__(
        self, find: Find, wall: Callable[[], float], now: Callable[[], float], iso: Iso
    ) -> None:
        self._find = find
        self._wall = wall
        self._now = now
        self._iso = iso
        self._places: list[Place] = []

    async def apply(self, settings: Mapping[str, Sequence[SinkSettings]]) -> None:
        """Have these sinks from now on; those that stay as they were go on undisturbed."""
        wanted = [(app, one) for app, several in settings.items() for one in several]
        kept = [place for place in self._places if (place.app, place.settings) in wanted]
        gone = [place for place in self._places if place not in kept]
        known = [(place.app, place.settings) for place in kept]
        added = [Place(app, sink_of(one), one) for app, one in wanted if (app, one) not in known]
        self._places = kept + added
        await _stop(gone)
        for place in added:
            place.task = asyncio.create_task(self._keep(place), name="sink")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep them until the context ends; the tokens stay where they are."""
        try:
            yield
        finally:
            places, self._places = self._places, []
            await _stop(places)

    # --- one sink ---------------------------------------------------------------------------------

    async def _keep(self, place: Place) -> None:
        while True:
            keeper = self._find(place.app)
            await self.look(place, keeper)
            if place.is_stopping:  # redis-py may take being cancelled for a broken connection
                return
            pause = LOOK_S
            if place.failures:
                pause = AGAIN_AFTER_S[min(place.failures, len(AGAIN_AFTER_S)) - 1]
            if keeper is None or place.failures:
                await asyncio.sleep(pause)
            else:
                await keeper.changed(pause)

    async def look(self, place: Place, keeper: Keeper | None) -> None:
        """Bring one sink up to date with what may be served now."""
        served = None if keeper is None else keeper.serve()
        try:
            if keeper is None or served is None:
                await place.sink.clear()
                version = EMPTY
            else:
                await place.sink.write(self._writing(keeper, served))
                version = served.credential.version or EMPTY
        except SinkError as error:
            self._failed(place, error.fault)
            return
        # A bug in it costs nobody a token; its text may quote one
        except Exception as error:  # noqa: BLE001
            log.tell("sink-behind", app=place.app, sink=place.sink.label, why=type(error).__name__)
            self._failed(place, SinkFault.BUG)
            return
        if place.version != version or place.fault is not None:
            place.written_at = self._wall()
            place.outcomes["written"] += 1
        if place.fault is not None:
            log.tell("sink-caught-up", app=place.app, sink=place.sink.label)
        place.version = version
        place.fault = place.fault_since = None
        place.failures = 0

    def _writing(self, keeper: Keeper, served: Served) -> Writing:
        token, credential, wall = served.token, served.credential, self._wall()
        return Writing(
            app=keeper.account.name,
            appid=keeper.account.appid,
            token=token.value.reveal(),
            version=credential.version or EMPTY,
            epoch=credential.epoch,
            call=token.call,
            minted_at=wall - (self._now() - token.requested_at),
            expires_in=served.expires_in,
            ends_at=wall + served.expires_in,
        )

    def _failed(self, place: Place, fault: SinkFault) -> None:
        place.failures += 1
        place.outcomes[fault.value] += 1
        if place.fault is None:
            place.fault_since = self._wall()
        if place.fault is not fault:
            log.tell("sink-behind", app=place.app, sink=place.sink.label, why=fault.value)
        place.fault = fault

    # --- for people -------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places)

    @property
    def behind(self) -> list[tuple[str, str]]:
        """App and label of each sink that does not hold what it should."""
        return [(place.app, place.sink.label) for place in self._places if place.fault is not None]

    def status(self, app: str) -> list[dict[str, Any]]:
        """How an app's sinks stand, without a token or a password."""
        return [
            {
                "sink": place.sink.label,
                "state": _state(place),
                "version": place.version or None,
                "written": None if place.written_at is None else self._iso(place.written_at),
                "trouble": (
                    None
                    if place.fault is None
                    else {
                        "code": place.fault.value,
                        "since": self._iso(place.fault_since or 0.0),
                    }
                ),
            }
            for place in self._places
            if place.app == app
        ]


def _state(place: Place) -> str:
    if place.fault is not None:
        return "behind"
    if place.version is None:
        return "waiting"
    return "empty" if place.version == EMPTY else "current"


async def _stop(places: Iterable[Place]) -> None:
    tasks = [place.task for place in places if place.task is not None]
    for place in places:
        place.is_stopping = True
        if place.task is not None:
            place.task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for place in places:
        await place.sink.close()
