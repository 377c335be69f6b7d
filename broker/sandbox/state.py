"""Everything that one sandbox remembers."""

from collections.abc import Callable

from aiohttp import web

from .calls import CallLog, Gate
from .faults import Faults
from .media import Media
from .options import Options
from .world import World


class State:
    """The platform, what was asked of it, and what was ordered to go wrong."""

    def __init__(self, options: Options, now: Callable[[], float]) -> None:
        self.world = World(options, now)
        self.calls = CallLog(self.world.now)
        self.gate = Gate()
        self.faults = Faults()
        self.media = Media()


STATE = web.AppKey("state", State)
