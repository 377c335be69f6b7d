"""Every app's keeper, by name and by AppID."""

import asyncio
from collections.abc import Iterator, Sequence

from broker.core.credential import NEVER, Account, Policy
from broker.flight import Tools
from broker.keeper import Keeper


class Roster:
    """All keepers of one daemon, looked at together."""

    def __init__(self, accounts: Sequence[Account], tools: Tools) -> None:
        self._tools = tools
        self._keepers = {account.name: Keeper(account, tools) for account in accounts}
        self._by_any_name = {keeper.account.appid: keeper for keeper in self._keepers.values()} | self._keepers
        self.ticked_at = NEVER
        self.stopping = False
        self._stumbled: dict[str, float] = {}  # by app: no look before

    def find(self, app: str) -> Keeper | None:
        """The keeper of an app, named by name or AppID."""
        return self._by_any_name.get(app)

    def __iter__(self) -> Iterator[Keeper]:
        return iter(self._keepers.values())

    def __len__(self) -> int:
        return len(self._keepers)

    async def start(self) -> None:
        """Take up what the store holds; calls nobody. Raises StoreError."""
        for keeper in self:
            await keeper.start()

    def tick(self) -> None:
        """Look at every app; none of the looks waits for anything."""
        self.ticked_at = self._tools.clock.now()
        for keeper in self:
            if self.ticked_at >= self._stumbled.get(keeper.account.name, NEVER):
                self._look(keeper)

    def _look(self, keeper: Keeper) -> None:
        """One keeper's look; a bug in it is told, costs that app a pause, and the others nothing."""
        try:
            keeper.tick()
        except Exception as error:  # noqa: BLE001 -- the daemon outlives its bugs
            self._stumbled[keeper.account.name] = self.ticked_at + self._tools.policy.max_backoff
            self._tools.witness("crashed", keeper.account.name, error=error)

    def govern(self, policy: Policy) -> None:
        """Go by another policy from now on; calls nobody."""
        self._tools.policy = policy
        for keeper in self:
            keeper.govern(policy)

    @property
    def ticking(self) -> bool:
        """Whether the schedule is alive: three ticks late, and five seconds, is dead."""
        return self._tools.clock.now() <= self.ticking_until

    @property
    def ticking_until(self) -> float:
        """Steady time to which the schedule counts as alive."""
        return self.ticked_at + 3 * self._tools.policy.tick + 5

    def halt(self) -> None:
        """Begin no more calls and wake everyone who waits."""
        self.stopping = True
        for keeper in self:
            keeper.halt()

    async def landed(self) -> None:
        """See the calls under way to their end."""
        await asyncio.gather(*(keeper.landed() for keeper in self))
