"""Every app's keeper, by name and by AppID."""

import asyncio
import heapq
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

from broker.core.credential import NEVER, Account, Endpoint, Policy
from broker.core.ports import STEP_S, wall_offset
from broker.tokens.dependencies import Dependencies
from broker.tokens.keeper import Keeper


class Registry:
    """All keepers of one daemon, looked at together: at each tick, those for whom something is due.

    `login_only` are the accounts that keep no token, and so have no keeper (WECHAT.md W81).
    """

    def __init__(self, accounts: Sequence[Account], dependencies: Dependencies) -> None:
        self._dependencies = dependencies
        self.login_only = [one for one in accounts if one.endpoint is Endpoint.NONE]
        accounts = [one for one in accounts if one.endpoint is not Endpoint.NONE]
        self._keepers = {
            account.name: Keeper(account, dependencies, partial(self._plan_changed, account.name))
            for account in accounts
        }
        appids = Counter(
            account.appid for account in accounts
        )  # a corpid may have many apps: then it names none
        self._by_any_name = {
            k.account.appid: k for k in self._keepers.values() if appids[k.account.appid] == 1
        } | self._keepers
        self._wall_offset = wall_offset(dependencies.clock)
        self._looks: dict[str, float] = {}  # by app: when it is looked at next
        self._agenda: list[
            tuple[float, str]
        ] = []  # the same as a heap, with plans that are no more
        self.ticked_at = NEVER
        self.stopping = False

    async def add(self, account: Account) -> Keeper:
        """Take up one more app. Raises StoreError."""
        keeper = Keeper(account, self._dependencies, partial(self._plan_changed, account.name))
        await keeper.start()
        self._keepers[account.name] = self._by_any_name[account.name] = keeper
        self._plan(account.name, NEVER)
        return keeper

    def drop(self, name: str) -> None:
        """Look no more at an app that was added."""
        self._looks.pop(name, None)
        self._keepers.pop(name, None)
        self._by_any_name.pop(name, None)

    def find(self, app: str) -> Keeper | None:
        """The keeper of an app, named by name or AppID."""
        return self._by_any_name.get(app)

    def is_login_only(self, app: str) -> bool:
        """Return True if the app of that name or AppID keeps no token."""
        return any(app in {one.name, one.appid} for one in self.login_only)

    def __iter__(self) -> Iterator[Keeper]:
        return iter(self._keepers.values())

    def __len__(self) -> int:
        return len(self._keepers)

    async def start(self) -> None:
        """Take up what the store holds; calls nobody. Raises StoreError."""
        for keeper in self:
            await keeper.start()
            self._plan(keeper.account.name, NEVER)

    def on_store_changed(self, account: str | None) -> None:
        """Note that another process may have changed this account, or any account for None."""
        for keeper in self:
            if account in {None, keeper.account.id}:
                keeper.on_store_changed()

    def versions(self) -> dict[str, str | None]:
        """What each account's keeper serves, by the account's id."""
        return {keeper.account.id: keeper.credential.version for keeper in self}

    def tick(self) -> None:
        """Look at every app that may need it; none of the looks waits for anything."""
        now = self.ticked_at = self._dependencies.clock.now()
        if self.stopping:  # nobody would act on what is found
            return
        if abs(offset := wall_offset(self._dependencies.clock) - self._wall_offset) > STEP_S:
            self._wall_offset += offset
            for name in self._keepers:
                self._plan(name, NEVER)
        while self._agenda and self._agenda[0][0] <= now:
            at, name = heapq.heappop(self._agenda)
            if self._looks.get(name) == at:
                self._plan(name, self._look(self._keepers[name], now))

    def _look(self, keeper: Keeper, now: float) -> float:
        """Have one keeper look; return when it is looked at next.

        A bug in it is told, costs that app a pause, and the others nothing.
        """
        try:
            due_at = keeper.tick()
        except Exception as error:  # noqa: BLE001 -- the daemon outlives its bugs
            self._dependencies.emit("crashed", keeper.account.name, error=error)
            return now + self._dependencies.policy.max_backoff
        return max(due_at, math.nextafter(now, math.inf))  # what is due still: at the next tick

    def _plan_changed(self, name: str) -> None:
        """Look at an app with the next tick, since its plan is another than before."""
        if self._looks.get(name, math.inf) > self.ticked_at:
            self._plan(name, self.ticked_at)

    def _plan(self, name: str, at: float) -> None:
        self._looks[name] = at
        heapq.heappush(self._agenda, (at, name))

    def apply_policy(self, policy: Policy) -> None:
        """Go by another policy from now on; calls nobody."""
        self._dependencies.policy = policy
        for keeper in self:
            keeper.apply_policy(policy)

    @property
    def ticking(self) -> bool:
        """Whether the schedule is alive: three ticks late, and five seconds, is dead."""
        return self._dependencies.clock.now() <= self.ticking_until

    @property
    def ticking_until(self) -> float:
        """Steady time to which the schedule counts as alive."""
        return self.ticked_at + 3 * self._dependencies.policy.tick + 5

    def stop(self) -> None:
        """Begin no more calls and wake everyone who waits."""
        self.stopping = True
        for keeper in self:
            keeper.stop()

    async def drain(self) -> None:
        """See the calls under way to their end."""
        await asyncio.gather(*(keeper.drain() for keeper in self))
