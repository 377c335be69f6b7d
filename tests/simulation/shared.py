"""Several brokers that share a database live through days of bad luck in seconds.

one_host.py does the same for a single broker.

Real rows, locks and notifications in a real PostgreSQL on manual clocks; the real client and a
real sandbox. Hosts are stopped, and go on, at any await of a refresh; they die there; their link is
cut, or loses the answer to what was committed; the database is replaced by a standby that lacks the
last minutes. What everybody is told goes through one_host.py's checker.
"""

import asyncio
import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg

from broker.core.credential import Account
from broker.core.ports import Grant
from broker.core.quota import DAY
from broker.core.serving import Served, Unavailable
from broker.tokens.keeper import Keeper
from tests.simulation.one_host import APPS, PATIENCE_S, PER_DAY, Checker, Simulation
from tests.simulation.shared_hosts import (
    LEASE_S,
    SEES_AGAIN_S,
    CountryTimes,
    Host,
    HostChecker,
    HostClock,
    Link,
)

SHARED: Final = ("issued", "claimed", "pushed_out", "forgotten", "known_dead", "calls", "incidents")
TELLS: Final = 0.3  # of those who were refused, at each tick
REAL_S: Final = 20.0
SPINS: Final = 5  # of the event loop, in which nobody begins anything any more
HOSTS: Final = 3
NAMES: Final = {account.appid: account.name for account in APPS}
FOR_HOSTS: Final[dict[str, float]] = {  # a day, for one host or all
    "crash": 6.0,
    "kill": 2.0,
    "stop": 15.0,
    "freeze": 3.0,
    "cut": 8.0,
    "cut_all": 0.7,
    "lose_answer": 15.0,
    "set_wall": 1.0,
    "restart_database": 3.0,
    "failover": 2.0,
}


class SharedSimulation(Simulation):
    """Hosts, their database, WeChat, and the people who use them.

    What one_host.py's events do to the broker, they do to one of several.
    """

    def __init__(self, url: str, seed: int, days: float, link: type[Link] = Link) -> None:
        super().__init__(Path("/"), seed, days)
        self.times: CountryTimes = CountryTimes()
        self.url, self.link, self.changed = url, link, False
        self.rates = dict(FOR_HOSTS)
        self.open: dict[str, tuple[str, int]] = {}
        self.opened_at: dict[str, float] = {}
        self.ours: set[tuple[str, str, int]] = (
            set()
        )  # calls that were settled in time, and those that were too late
        self.late: set[tuple[str, str, int]] = set()
        self.lost: Counter[str] = Counter()
        self.wires = {account.name: asyncio.Lock() for account in APPS}
        self.hosts: list[Host] = []
        self.here: Host
        self.overseer: psycopg.Connection

    # --- the course of things ---------------------------------------------------------------------

    async def live(self) -> Checker:
        async with self._wechat():
            with psycopg.connect(self.url, autocommit=True) as self.overseer:
                try:
                    await self._found()
                    self._draw_events()
                    while self.times.true < self.end and not self.checker.bad:
                        await self._tick()
                    self._conclude()
                finally:
                    for host in self.hosts:
                        if host.is_up:
                            await host.die()
        return self.checker

    async def _found(self) -> None:
        mine = self.checker
        for number in range(HOSTS):
            shared = {name: getattr(mine, name) for name in SHARED}
            checker = HostChecker(mine.world, self.policy, bad=mine.bad, **shared)
            checker._tokens, checker.is_spent = mine._tokens, self._is_spent
            host = Host(self, number, HostClock(self.times, 1e6 * number), checker)
            await host.start()
            self.hosts.append(host)
        self.here, self.registry, self.changed = self.hosts[0], self.hosts[0].registry, True

    async def _tick(self) -> None:
        early = self.luck.uniform(0, self.policy.tick)
        self.times.pass_(early)
        await self._ask_everywhere()
        self.times.pass_(self.policy.tick - early)
        if self._events and self._events[0].at <= self.times.true:
            self._go_somewhere()
            await heapq.heappop(self._events).do()
        for host in self.hosts:
            if host.serves:
                host.registry.tick()
        await self._land()

    def _go_somewhere(self) -> None:
        if serving := [host for host in self.hosts if host.serves]:
            self.here = self.luck.choice(serving)
            self.registry = self.here.registry

    async def take_time(self, seconds: float) -> None:
        self.times.pass_(seconds)
        for host in self.hosts:
            if host.serves:
                for keeper in host.registry:
                    self._judge(host, keeper.account, keeper.serve())

    async def _ask_everywhere(self) -> None:
        for host in self.hosts:
            for keeper in host.registry if host.serves else ():
                served = keeper.serve() or keeper._unavailable()
                if not self._judge(host, keeper.account, served) and self.luck.random() < TELLS:
                    self.happened["true reports"] += 1
                    self.here, self.registry = host, host.registry
                    await self._report(keeper)

    def _judge(self, host: Host, account: Account, served: Served | Unavailable | None) -> bool:
        if served is None:
            return True
        if isinstance(served, Served):
            self.checker.answers += 1
            if (account.appid, served.credential.epoch, served.token.call) in self.late:
                self.checker.bad.append(
                    f"{account.name}: host{host.number} serves what a deposed holder brought"
                )
            if served.token.value.reveal() in host.found:
                self.checker.bad.append(
                    f"{account.name}: host{host.number} serves a token whose death it had found"
                )
        if isinstance(served, Unavailable) and host.link.is_cut:  # nobody's fault of ours
            return True
        return host.checker.answer(account, served, self.times.true)

    async def _report(self, keeper: Keeper) -> None:
        if keeper.credential.version is None:
            return
        before, now = keeper.credential.second_issuer, self.times.true
        await self._land(
            asyncio.create_task(keeper.report(PATIENCE_S, version=keeper.credential.version))
        )
        if keeper.credential.second_issuer != before:
            self.happened["deaths found"] += 1
            self.checker.incidents[keeper.account.name].append(now)

    async def _land(self, *tasks: "asyncio.Task[Any]") -> bool:
        """Wait until nobody flies who could, and all have heard.

        Nobody waits any more for a host that hangs.
        """
        if (
            not tasks
            and not self.changed
            and not any(host.flights() for host in self.hosts if host.is_up)
        ):
            return True
        spins = 0
        async with asyncio.timeout(REAL_S):
            while spins < SPINS:
                for host in self.hosts:
                    if host.is_up and host.fate.is_dead:
                        await self._bury(host)
                busy = (
                    any(host.flights() for host in self.hosts if host.serves)
                    or not self._all_have_heard()
                )
                spins = 0 if busy else spins + 1
                await asyncio.sleep(0.0005 if busy else 0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for host in self.hosts:
            self.checker.known_dead |= host.tell()
        self._go_over()
        return True

    def _all_have_heard(self) -> bool:
        if not self.changed:
            return True
        counters = {
            (row[0], row[1]): row[2]
            for row in self._sql("select appid, endpoint, changes from token_broker.accounts")
        }
        if all(
            host.link.inner.known == counters
            for host in self.hosts
            if host.serves and not host.link.is_cut
        ):
            self.changed = False
        return not self.changed

    def _sql(self, statement: str) -> list[Any]:
        cursor = self.overseer.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []

    def _go_over(self) -> None:
        """I1, as far as rows were not lost."""
        rows = {
            NAMES[appid]: number
            for appid, number in self._sql(
                "select appid, count(*) from token_broker.calls group by appid"
            )
        }
        for call in self.sandbox.calls.since(self.checker._seen_call):
            self.checker._seen_call = call["n"]
            if call["by"] == "client":
                self.checker.calls[NAMES[call["appid"]]].append(call["at"])
                if call["outcome"] != 0:
                    self.checker.incidents[NAMES[call["appid"]]].append(call["at"])
        for account in APPS:
            made, held = (
                len(self.checker.calls[account.name]),
                rows.get(account.name, 0) + self.lost[account.name],
            )
            if made > held:
                self.checker.bad.append(f"I1 {account.name}: {made} calls, {held} rows")

    def _conclude(self) -> None:
        self.checker.conclude(self.times.true)
        self.checker.unlucky = sum(host.checker.unlucky for host in self.hosts)
        settled = (
            "select appid, epoch, id, outcome, lease_lost from token_broker.calls"
            " where outcome is not null"
        )
        for appid, epoch, call, outcome, lease_lost in self._sql(settled):
            named = appid, epoch, call
            if (named in self.late and not lease_lost) or (named in self.ours and lease_lost):
                self.checker.bad.append(
                    f"fence: {appid} {epoch}-{call} was settled as {outcome}, {lease_lost=}"
                )

    def emit(self, host: Host, event: str, app: str, **facts: object) -> None:
        self._emit(event, app, host=host.number, **facts)

    def _is_spent(self, account: Account) -> bool:
        day = f"appid = '{account.appid}' and at > {self.times.true - DAY}"
        ((spent,),) = self._sql(
            f"select coalesce(sum(cost), 0) from token_broker.calls where {day}"
        )
        return bool(spent >= account.daily_quota)

    # --- reservations -----------------------------------------------------------------------------

    def reserved(self, host: Host, account: Account, grant: Grant) -> None:
        """One at a time: a reservation is over when it is settled, or its lease is."""
        call, now = (grant.credential.epoch, grant.call), self.times.true
        if account.name in self.open and now < self.opened_at[account.name] + LEASE_S - 0.01:
            self.checker.bad.append(
                f"I3 {account.name}: {call} while {self.open[account.name]} is open"
            )
        self.open[account.name], self.opened_at[account.name] = call, now
        host.grants[account.name] = call

    def settled(self, account: Account, grant: Grant, outcome: str) -> None:
        """By its holder, or by a deposed one: then our late call pushed out another's token.

        Who settles when the lease is over, and nobody has reserved again, may be either.
        """
        call, named = (
            (grant.credential.epoch, grant.call),
            (account.appid, grant.credential.epoch, grant.call),
        )
        is_open = self.open.get(account.name) == call
        if named in self.ours or named in self.late:  # again, since the answer was lost
            return
        if is_open:
            del self.open[account.name]
            if self.times.true < self.opened_at[account.name] + LEASE_S - 0.01:
                self.ours.add(named)
        elif outcome != "given back":
            self.happened["late settlements"] += 1
            self.late.add(named)
            if (
                previous := self.checker.lineage(account).previous
            ) is not None and outcome == "minted":
                self.checker.pushed_out.setdefault(previous.value, self.times.true)

    def excuse(self, accounts: Iterable[Account], number: int) -> None:
        """What may cost so many calls more."""
        for account in accounts:
            self.checker.incidents[account.name].extend([self.times.true] * number)

    # --- what happens -----------------------------------------------------------------------------

    def _draw_events(self) -> None:
        for name, rate in self.rates.items():
            self._strew(name, rate, getattr(self, f"_{name}"))
        for account in APPS:
            for name, rate in PER_DAY.items():
                self._strew(name, rate, getattr(self, f"_{name}"), account)

    async def _bury(self, host: Host) -> None:
        self.excuse([keeper.account for keeper in host.registry if keeper._refresher.current], 1)
        await host.die()
        self._at(self.times.true + self.luck.uniform(0.2, 600), "start", partial(self._raise, host))

    async def _raise(self, host: Host) -> None:
        host.checker._newest.clear()  # its memory is gone
        host.checker.clouded(self.times.true + SEES_AGAIN_S)
        host.checker.is_cut = False
        await host.start()
        self.changed = True

    async def _kill(self) -> None:
        if self.here.serves:
            await self._bury(self.here)

    async def _crash(self) -> None:
        self.here.fate.awaits_left, self.here.fate.is_fatal = self.luck.randint(1, 6), True

    async def _stop(self) -> None:
        """It will be stopped in its next refresh, for less or more than a reservation's lease."""
        host, seconds = self.here, self.luck.uniform(1, 3 * LEASE_S)
        host.fate.awaits_left, host.fate.is_fatal = self.luck.randint(1, 6), False
        host.fate.stopped = lambda: self._at(
            self.times.true + seconds, "go on", partial(self._go_on, host)
        )

    async def _freeze(self) -> None:
        self.here.fate.goes_on.clear()
        self._at(
            self.times.true + self.luck.choice([30.0, 600.0, 10_800.0]),
            "go on",
            partial(self._go_on, self.here),
        )

    async def _go_on(self, host: Host) -> None:
        if host.is_up and not host.fate.is_dead:
            host.checker.clouded(self.times.true + SEES_AGAIN_S)
            self.excuse(APPS, 1)
            host.fate.goes_on.set()

    async def _cut(self) -> None:
        await self._cut_off([self.here], self.luck.uniform(5, 1200))

    async def _cut_all(self) -> None:
        await self._cut_off(self.hosts, self.luck.uniform(5, 5400))

    async def _cut_off(self, hosts: Sequence[Host], seconds: float) -> None:
        self.excuse(APPS, 1)
        for host in hosts:
            if host.is_up:
                host.link.is_cut = host.checker.is_cut = True
                self._at(self.times.true + seconds, "heal", partial(self._heal, host, host.link))

    async def _heal(self, host: Host, link: Link) -> None:
        if host.link is link and host.is_up and link.is_cut:
            link.is_cut = host.checker.is_cut = False
            host.checker.clouded(self.times.true + SEES_AGAIN_S)
            link.on_store_changed(None)

    async def _lose_answer(self) -> None:
        self.here.link.loses = self.luck.randint(1, 2)
        self.excuse(APPS, 1)

    async def _set_wall(self) -> None:
        host = self.here
        host.clock.skew = self.luck.choice([86_400.0, -86_400.0, 3600.0, -3600.0])
        self._at(
            self.times.true + self.luck.uniform(600, 43_200),
            "wall set right",
            partial(self._set_right, host),
        )

    async def _set_right(self, host: Host) -> None:
        host.clock.skew = 0.0

    async def _restart_database(self) -> None:
        """All connections break, also those in a transaction."""
        before = {host.number: host.link.connects for host in self.hosts if host.is_up}
        self._sql(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like"
            " 'token-broker%' and datname = current_database()"
        )
        async with asyncio.timeout(REAL_S):
            while any(
                host.link.connects == before[host.number]
                for host in self.hosts
                if host.number in before
            ):
                await asyncio.sleep(0.005)
        self.changed = True

    async def _failover(self) -> None:
        """The standby falls behind from now on; some minutes later it is promoted."""
        self._sql("drop table if exists old_accounts, old_calls")
        self._sql("create table old_accounts as table token_broker.accounts")
        self._sql("create table old_calls as table token_broker.calls")
        self._at(self.times.true + self.luck.uniform(1, 5400), "promote", self._promote)

    async def _promote(self) -> None:
        key = "(appid, endpoint, epoch, id)"
        gone = f"{key} not in (select {key[1:-1]} from old_calls)"
        lost = f"select appid, count(*) from token_broker.calls where {gone} group by appid"
        for appid, number in self._sql(lost):
            self.lost[NAMES[appid]] += number
            self.happened["lost rows"] += number
        self._sql(
            "begin; delete from token_broker.calls; insert into token_broker.calls table old_calls;"
            " delete from token_broker.accounts; insert into token_broker.accounts table"
            " old_accounts; commit"
        )
        self.times.timeline += 1
        self.open.clear()
        self.excuse(APPS, 2)
        for host in self.hosts:
            host.checker.clouded(self.times.true + SEES_AGAIN_S)
        await self._restart_database()
