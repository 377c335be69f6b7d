"""Everything that one sandbox remembers."""

from collections import Counter
from collections.abc import Callable

from aiohttp import web

from .calls import CallGate, CallLog
from .faults import Faults
from .media import Media
from .options import SandboxOptions
from .users import Users
from .world import World


class SandboxState:
    """The platform, what was asked of it, and what was ordered to go wrong."""

    def __init__(self, options: SandboxOptions, now: Callable[[], float]) -> None:
        self.world = World(options, now)
        self.calls = CallLog(self.world.now)
        self.gate = CallGate()
        self.faults = Faults()
        self.media = Media()
        self.users = Users(self.world.now)
        self.login_calls: Counter[str] = Counter()  # by path


STATE = web.AppKey("state", SandboxState)
