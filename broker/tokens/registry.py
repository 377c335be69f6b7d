"""Every app's keeper, by name and by AppID."""

import asyncio
import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from broker.core.credential import NEVER, Account, Endpoint, Policy
from broker.core.ports import STEP_S, StoreError, wall_offset
from broker.tokens.dependencies import Dependencies
from broker.tokens.keeper import Keeper
from broker.tokens.upkeep import Identity, Upkeep, identity


class Registry:
    """All keepers of one daemon, looked at together: at each tick, those for whom something is due.

    `login_only` are the accounts that keep no token, and so have no keeper (WECHAT.md W81).
    """

    def __init__(self, accounts: Sequence[Account], dependencies: Dependencies) -> None:
        self._dependencies = dependencies
        self.login_only = [one for one in accounts if one.endpoint is Endpoint.NONE]
        self._keepers = {
            account.name: self._new_keeper(Upkeep(account, dependencies))
            for account in accounts
            if account.endpoint is not Endpoint.NONE
        }
        self._left: list[Upkeep] = []  # not in use any more, but with a call under way
        self._index()
        self._wall_offset = wall_offset(dependencies.clock)
        self._looks: dict[str, float] = {}  # by app: when it is looked at next
        # The same as a heap, in which plans that hold no more stay until their time.
        self._agenda: list[tuple[float, str]] = []
        self.ticked_at = NEVER
        self.stopping = False

    def _new_keeper(self, upkeep: Upkeep) -> Keeper:
        keeper = Keeper(
            upkeep.account,
            self._dependencies,
            lambda: self._plan_changed(keeper.account.name),
            upkeep,
            self._leave,
        )
        return keeper

    def _index(self) -> None:
        """List the keepers by name and by AppID. A corpid that has several apps names none."""
        appids = Counter(keeper.account.appid for keeper in self)
        self._by_any_name = {
            keeper.account.appid: keeper for keeper in self if appids[keeper.account.appid] == 1
        } | self._keepers

    async def add(self, account: Account) -> Keeper:
        """Take up one more app. Raises StoreError."""
        keeper = self._new_keeper(await self._begin(account))
        self._keepers[account.name] = self._by_any_name[account.name] = keeper
        self._plan(account.name, NEVER)
        return keeper

    def drop(self, name: str) -> None:
        """Look no more at an app, and tell everyone who waits for its token that it is gone."""
        self._looks.pop(name, None)
        if (keeper := self._keepers.pop(name, None)) is not None:
            keeper.remove()
            self._leave(keeper.upkeep)

    async def apply_accounts(self, accounts: Sequence[Account]) -> dict[str, StoreError]:
        """Keep these accounts from now on. Return by name why one could not be taken up.

        An account that is known keeps its token under another name, secret or quota. Where a name
        gets another account, the token of the account before is served until the new one has a
        token. Nothing is awaited while names change, so nobody sees half of it.
        """
        wanted = {one.name: one for one in accounts if one.endpoint is not Endpoint.NONE}
        upkeeps, failed = await self._upkeeps_of(wanted.values())
        self.login_only = [one for one in accounts if one.endpoint is Endpoint.NONE]
        before, self._keepers = self._keepers, {}
        kept = {identity(account) for account in wanted.values()}
        for name, account in wanted.items():
            keeper, upkeep = before.get(name), upkeeps.get(identity(account))
            is_going = keeper is not None and identity(keeper.account) not in kept
            if upkeep is None:
                if keeper is not None and is_going:
                    self._keepers[name] = keeper
                continue
            upkeep.take(account)
            if keeper is None:
                keeper = self._new_keeper(upkeep)
            else:
                keeper.succeed(upkeep, at_once=not is_going or keeper.serve() is None)
            self._keepers[name] = keeper
        self._let_go(before, upkeeps.values())
        self._looks.clear()
        for name in self._keepers:
            self._plan(name, NEVER)
        return failed

    def being_replaced(self) -> list[str]:
        """Return the names that serve the token of the account before, until there is a new one."""
        return [name for name, keeper in self._keepers.items() if len(keeper.upkeeps()) > 1]

    async def _upkeeps_of(
        self, accounts: Iterable[Account]
    ) -> tuple[dict[Identity, Upkeep], dict[str, StoreError]]:
        """Return all upkeeps there are, begun where an account has none, and what failed."""
        upkeeps = {identity(one.account): one for keeper in self for one in keeper.upkeeps()}
        failed = {}
        for account in accounts:
            if identity(account) not in upkeeps:
                try:
                    upkeeps[identity(account)] = await self._begin(account)
                except StoreError as error:
                    failed[account.name] = error
        return upkeeps, failed

    async def _begin(self, account: Account) -> Upkeep:
        """Return the upkeep of an account that has none. Raises StoreError."""
        # The account may have been dropped a moment ago, in the middle of a call.
        for upkeep in self._left:
            if identity(upkeep.account) == identity(account):
                await upkeep.drain()
        upkeep = Upkeep(account, self._dependencies)
        await upkeep.start()
        return upkeep

    def _let_go(self, before: Mapping[str, Keeper], upkeeps: Iterable[Upkeep]) -> None:
        """Remove the keepers whose names are gone, and stop the upkeeps that nobody uses."""
        for name, keeper in before.items():
            if name not in self._keepers:
                keeper.remove()
        in_use = {upkeep for keeper in self for upkeep in keeper.upkeeps()}
        for upkeep in upkeeps:
            if upkeep not in in_use:
                self._leave(upkeep)
        self._index()

    def _leave(self, upkeep: Upkeep) -> None:
        """Stop an upkeep that is not in use any more; its call under way is seen to its end."""
        upkeep.stop()
        self._left = [one for one in {*self._left, upkeep} if one.refresher.current is not None]
        self._index()

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
        """True while the schedule is alive. It counts as dead three ticks and five seconds late."""
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
        await asyncio.gather(*(one.drain() for one in (*self, *self._left)))
