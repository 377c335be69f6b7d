"""Everything that one sandbox remembers."""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable

from aiohttp import web

from .calls import CallGate, CallLog
from .faults import Faults
from .media import Media
from .options import SandboxOptions
from .pictures import Portraits
from .users import Phone, Users
from .world import World


class RobotMemory:
    """The last messages that robots took, when keys were used, and what all refuse with."""

    def __init__(self) -> None:
        self.said: deque[dict[str, str]] = deque(maxlen=1000)
        self.refusing = 0
        self._used: OrderedDict[str, list[float]] = OrderedDict()

    def recent(self, key: str, now: float) -> list[float]:
        """When a key was used within a minute; a hundred keys are remembered."""
        used = [at for at in self._used.pop(key, []) if now - 60 < at <= now]
        self._used[key] = used
        if len(self._used) > 100:  # noqa: PLR2004 -- enough
            self._used.popitem(last=False)
        return used


class SandboxState:
    """The platform, what was asked of it, and what was ordered to go wrong."""

    def __init__(self, options: SandboxOptions, now: Callable[[], float]) -> None:
        self.world = World(options, now)
        self.calls = CallLog(self.world.now)
        self.gate = CallGate()
        self.faults = Faults()
        self.media = Media()
        self.users = Users(self.world.now)
        self.portraits = Portraits()
        self.phones: dict[str, Phone] = {}  # who opens the authorise page, by appid
        self.login_calls: Counter[str] = Counter()  # by path
        self.robots = RobotMemory()
        self.messages: deque[dict[str, str]] = deque(maxlen=1000)  # what WeCom's apps sent


STATE = web.AppKey("state", SandboxState)
