"""The hosts of shared.py: brokers that may be stopped or die at any await of a refresh.

Their link to the database fails, too.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from broker.core.credential import Account, Credential
from broker.core.errcodes import Failure, FailureCode
from broker.core.ports import (
    Change,
    Decide,
    Denied,
    Grant,
    Held,
    Minted,
    Node,
    OnStoreChanged,
    StoreError,
    Verdict,
    Versions,
)
from broker.core.secret import Secret
from broker.core.serving import Code, Unavailable
from broker.tokens.dependencies import Dependencies
from broker.tokens.refresher import LEASE_SLACK_S
from broker.tokens.registry import Registry
from broker.wechat import WeChat
from tests.harness.manual_postgres import ToldStore
from tests.simulation.one_host import APPS, CALL_TIMEOUT, TIMEOUT_S, Checker, Times

if TYPE_CHECKING:
    from tests.simulation.shared import SharedSimulation

T = TypeVar("T")

LEASE_S: Final = CALL_TIMEOUT + LEASE_SLACK_S
SEES_AGAIN_S: Final = (
    60.0  # after its link was healed, or it went on, a host may be behind for this long
)
UNSEEN: Final = (
    "whose death was known",
    "our own call pushed out",
    "two calls of ours pushed out",
    "longer than the overlap",
)


@dataclass
class CountryTimes(Times):
    """What time it is, and how often a standby was promoted."""

    timeline: int = 1


@dataclass
class HostClock:
    """One host's clock.

    Its steady clock began at another time than the others', and its wall may be set wrong.
    """

    times: CountryTimes
    ahead: float
    skew: float = 0.0

    def now(self) -> float:
        return self.times.steady + self.ahead

    def wall(self) -> float:
        return self.times.true + self.skew

    def database(self) -> float:
        return self.times.true

    def timeline(self) -> int:
        return self.times.timeline


class Fate:
    """A process that may die, or be stopped for a while, at an await of the refresh path."""

    def __init__(self) -> None:
        self.awaits_left: int | None = None
        self.is_fatal = False
        self.is_dead = False
        self.stopped: Callable[[], None] = lambda: None
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    @property
    def hangs(self) -> bool:
        return self.is_dead or not self.goes_on.is_set()

    async def step(self) -> None:
        if self.awaits_left is not None:
            self.awaits_left -= 1
            if self.awaits_left <= 0:
                self.awaits_left = None
                self.is_dead = self.is_fatal
                self.goes_on.clear()
                if not self.is_dead:
                    self.stopped()
        await self.goes_on.wait()


class HostChecker(Checker):
    """One host's answers.

    While it `is_cut`, and until `sees_at`, it cannot know what the others found out.
    """

    is_cut = False
    sees_at = 0.0
    is_spent: Callable[[Account], bool]

    def clouded(self, until: float) -> None:
        self.sees_at = max(self.sees_at, until)

    def _without(self, account: Account, served: Unavailable, now: float) -> None:
        super()._without(account, served, now)
        if served.code is Code.QUOTA_EXHAUSTED and self.is_spent(
            account
        ):  # also by calls that were reserved and not made
            self._needless.pop(account.name, None)

    def _note(self, account: Account, what: str, now: float) -> None:
        if (self.is_cut or now < self.sees_at) and any(unseen in what for unseen in UNSEEN):
            self.unlucky += 1
        else:
            super()._note(account, what, now)


@dataclass
class Link:
    """A host's store, behind a network."""

    host: "Host"
    inner: ToldStore
    is_cut: bool = False
    loses: int = 0  # so many answers from now on
    connects: int = 0
    sole_owner: bool = False

    @property
    def node(self) -> str:
        return self.inner.node

    @property
    def last_error(self) -> str | None:
        return "cut" if self.is_cut else self.inner.last_error

    @property
    def nodes(self) -> Sequence[Node]:
        return self.inner.nodes

    def watch(self, on_store_changed: OnStoreChanged, versions: Versions) -> None:
        self.on_store_changed = on_store_changed
        self.inner.watch(self._heard, versions)

    def _heard(self, account: str | None) -> None:
        self.connects += account is None
        if not self.is_cut:
            self.on_store_changed(account)

    async def load(self, account: Account) -> Held:
        return await self._over(lambda: self.inner.load(account))

    async def reserve(self, account: Account, decide: Decide) -> Grant | Denied:
        async def work() -> Grant | Denied:
            granted = await self.inner.reserve(account, decide)
            if isinstance(granted, Grant):
                self.host.simulation.reserved(self.host, account, granted)
            return granted

        return await self._over(work)

    async def settle(
        self,
        account: Account,
        grant: Grant,
        outcome: str,
        change: Change,
        *,
        emergency: bool = False,
    ) -> Credential:
        async def work() -> Credential:
            held = await self.inner.settle(account, grant, outcome, change, emergency=emergency)
            self.host.simulation.settled(account, grant, outcome)
            return held

        return await self._over(work)

    async def amend(self, account: Account, change: Change) -> tuple[Credential, bool]:
        return await self._over(lambda: self.inner.amend(account, change))

    async def history(self, since: float, account: Account) -> list[dict[str, Any]]:
        return await self.inner.history(since, account)

    async def close(self) -> None:
        await self.inner.close()

    async def _over(self, transaction: Callable[[], Awaitable[T]]) -> T:
        await self.host.fate.step()
        if self.is_cut:
            raise StoreError("cut")
        self.host.simulation.changed = True
        done = await transaction()
        if self.loses:
            self.loses -= 1
            self.host.checker.clouded(self.host.clock.times.true + SEES_AGAIN_S)
            raise StoreError("the answer was lost")
        await self.host.fate.step()
        return done


class CarelessLink(Link):
    """What must not be: a call is settled whether or not its reservation is in force.

    The control of the whole.
    """

    async def settle(
        self,
        account: Account,
        grant: Grant,
        outcome: str,
        change: Change,
        *,
        emergency: bool = False,  # noqa: ARG002 -- the port's
    ) -> Credential:
        async def work() -> Credential:
            held, _ = await self.inner.amend(
                account, lambda held, now: change(replace(held, reserved_call=grant.call), now)
            )
            self.host.simulation.settled(account, grant, outcome)
            return held

        return await self._over(work)


@dataclass
class HostClient:
    """The real client of one host, on whose calls time passes for all."""

    host: "Host"
    inner: WeChat

    async def fetch(self, account: Account, *, force: bool) -> Minted | Failure:
        host, simulation = self.host, self.host.simulation
        await host.fate.step()
        await simulation.take_time(simulation.luck.uniform(0, 1.5))
        late = simulation.open.get(account.name) != host.grants.get(account.name)
        async with simulation.wires[account.name]:
            with simulation.checker.minting(
                account, simulation.times.true, ours=not late, force=force
            ) as killed:
                asked_at = simulation.times.true
                answer = await self.inner.fetch(account, force=force)
            await simulation.quiet(account)
        if late:
            simulation.happened["late calls"] += 1
            simulation.excuse([account], 2)
        if isinstance(answer, Minted):
            simulation.checker.told(account, answer, asked_at)
        host.killed |= killed
        silent = isinstance(answer, Failure) and answer.code is FailureCode.NO_ANSWER
        await simulation.take_time(CALL_TIMEOUT if silent else simulation.luck.uniform(0, 1.5))
        await host.fate.step()
        return answer

    async def check(self, account: Account, token: Secret) -> Verdict:
        await self.host.fate.step()
        verdict = await self.inner.check(account, token)
        simulation = self.host.simulation
        if verdict is Verdict.DEAD:
            self.host.dying.add(token.reveal())
        await simulation.take_time(simulation.luck.uniform(0, 1.5))
        await self.host.fate.step()
        return verdict


@dataclass
class Host:
    """One broker."""

    simulation: "SharedSimulation"
    number: int
    clock: HostClock
    checker: HostChecker
    fate: Fate = field(default_factory=Fate)
    grants: dict[str, tuple[str, int]] = field(default_factory=dict)
    dying: set[str] = field(
        default_factory=set
    )  # of what its flights found out; known to all once they have come to their ends
    killed: set[str] = field(default_factory=set)  # by its own forced calls
    found: set[str] = field(
        default_factory=set
    )  # those that it knows to be dead, whether it could tell the others or not
    is_up: bool = False
    registry: Registry = field(init=False)
    link: Link = field(init=False)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def serves(self) -> bool:
        return self.is_up and not self.fate.hangs

    def flights(self) -> "list[asyncio.Task[Any]]":
        current = (keeper._refresher.current for keeper in self.registry)
        return [flight for flight in current if flight is not None]

    def tell(self) -> set[str]:
        """What this host has found out since the last time.

        It holds only what nothing keeps the host from telling the others.
        """
        if self.flights():
            return set()
        self.found |= self.dying
        told = set() if self.link.is_cut else self.dying | self.killed
        self.dying, self.killed = set(), set()
        return told

    async def start(self) -> None:
        simulation = self.simulation
        self.fate, self.stack = Fate(), AsyncExitStack()
        store = await ToldStore.open(simulation.url, self.clock, node=f"host{self.number}")
        assert isinstance(store, ToldStore)
        self.link = simulation.link(self, store)
        client = await self.stack.enter_async_context(WeChat.connect(simulation._base, TIMEOUT_S))
        tools = Dependencies(
            store=self.link,
            upstream=HostClient(self, client),
            clock=self.clock,
            policy=simulation.policy,
            slots=asyncio.Semaphore(1),
            emit=partial(simulation.emit, self),
            call_timeout_s=CALL_TIMEOUT,
            jitter=simulation.luck.random,
        )
        self.registry = Registry(APPS, tools)
        await self.registry.start()
        self.link.watch(self.registry.on_store_changed, self.registry.versions)
        self.is_up = True

    async def die(self) -> None:
        """Gone between two awaits: nothing is put in order."""
        self.is_up = False
        for known in (self.dying, self.killed, self.found):
            known.clear()
        self.registry.stop()  # else a flight that is cancelled may begin another
        flights = self.flights()
        for task in flights:
            task.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        await self.stack.aclose()
        await self.link.close()
