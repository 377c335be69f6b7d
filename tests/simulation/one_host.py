"""A broker that lives through days of bad luck in seconds.

The clocks are manual; the store, the client and the sandbox are real.

Two times go on here. WeChat's is true; the broker's steady clock runs with it and its wall clock
may be set wrong. What goes wrong is drawn from one seed. Flights run one at a time, so that a seed
means the same run again.
"""

import asyncio
import contextlib
import heapq
import random
import sqlite3
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeVar

from aiohttp import web

from broker.core.credential import NEVER, Account, Credential, Endpoint, Policy
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
    Verdict,
    Versions,
)
from broker.core.quota import DAY, calls_per_day, day_began
from broker.core.secret import Secret
from broker.core.serving import Served, TokenState, Unavailable, UnavailableReason
from broker.sandbox.faults import parse
from broker.sandbox.options import SandboxOptions
from broker.sandbox.server import create_app
from broker.sandbox.state import STATE
from broker.sandbox.state import SandboxState as Sandbox
from broker.sandbox.tokens import IssuedToken
from broker.store.sqlite.store import SqliteStore
from broker.tokens.dependencies import Dependencies
from broker.tokens.keeper import Keeper
from broker.tokens.registry import Registry
from broker.web.words import english
from broker.wechat import WeChat
from tests.harness.doubles import CANARY, NOON

T = TypeVar("T")

TIMEOUT_S: Final = (
    0.5  # real seconds after which a silent WeChat is given up; the broker's clocks say 10
)
CALL_TIMEOUT: Final = 10.0
PATIENCE_S: Final = 5.0  # real
# Half-life, and a tenth: what a refused token may have to wait for where the quota of reports is
# spent
NEEDLESS: Final = 3960.0
ASLEEP: Final = 60.0  # a pause between two questions that is longer was no service time
USUAL: Final = 3  # incidents of an app in a day
WITHOUT: Final = "longest without a token"
# A token that two of our own lost calls pushed out may be served this long: the look that asks
# WeChat
DOUBT: Final = 30.0
APPS: Final = (
    Account("main", "wxmain", Secret(f"{CANARY}-main")),
    Account(
        "shop", "wxshop", Secret(f"{CANARY}-shop"), daily_quota=30
    ),  # 27 are needed: a bad day reaches it
    Account("mini", "wxmini", Secret(f"{CANARY}-mini"), Endpoint.STABLE),
    Account("game", "wxgame", Secret(f"{CANARY}-game"), Endpoint.STABLE),
)


@dataclass
class Times:
    """What time it is at WeChat (`true`), and what the broker's clocks say."""

    true: float = NOON
    skew: float = 0.0
    steady: float = 5_000.0
    boot_id: str = "boot-1"

    def now(self) -> float:
        return self.steady

    def wall(self) -> float:
        return self.true + self.skew

    def pass_(self, seconds: float) -> None:
        self.true += seconds
        self.steady += seconds

    def reboot(self, off_for: float) -> None:
        self.true += off_for
        self.steady = 3.0
        self.boot_id += "'"


# --- a process that can die at any await ----------------------------------------------------------


class Fate:
    """Counts the awaits of the refresh path down to the one at which the process dies."""

    def __init__(self) -> None:
        self.awaits_left: int | None = None
        self.died = asyncio.Event()

    async def step(self) -> None:
        if self.awaits_left is None:
            return
        self.awaits_left -= 1
        if self.awaits_left <= 0:
            self.died.set()
            await asyncio.get_running_loop().create_future()  # nothing of this process ever goes on


@dataclass
class MortalStore:
    """The real store; the process may die before and after each of its transactions."""

    inner: SqliteStore
    fate: Fate
    sole_owner: bool = True
    last_error: str | None = None
    node: str = ""
    nodes: Sequence[Node] = ()

    def watch(self, on_store_changed: OnStoreChanged, versions: Versions) -> None:
        self.inner.watch(on_store_changed, versions)

    async def load(self, account: Account) -> Held:
        return await self.inner.load(account)

    async def reserve(self, account: Account, decide: Decide) -> Grant | Denied:
        return await self._mortally(lambda: self.inner.reserve(account, decide))

    async def settle(
        self,
        account: Account,
        grant: Grant,
        outcome: str,
        change: Change,
        *,
        emergency: bool = False,
    ) -> Credential:
        return await self._mortally(
            lambda: self.inner.settle(account, grant, outcome, change, emergency=emergency)
        )

    async def amend(self, account: Account, change: Change) -> tuple[Credential, bool]:
        return await self._mortally(lambda: self.inner.amend(account, change))

    async def history(self, since: float, account: Account) -> list[dict[str, Any]]:
        return await self.inner.history(since, account)

    async def close(self) -> None:
        await self.inner.close()

    async def _mortally(self, transaction: Callable[[], Awaitable[T]]) -> T:
        await self.fate.step()
        done = await transaction()
        await self.fate.step()
        return done


# --- the checker ----------------------------------------------------------------------------------


@dataclass
class Gap:
    """A time in which an app had no usable token though the broker ran."""

    seconds: float = 0.0
    why: str = ""


@dataclass
class Checker:
    """Goes over every answer, every call WeChat saw and every ledger row.

    An answer is *bad* if its token, at that moment of WeChat's time,
    - was never issued to this app, or is too old, or is said to live longer than it does;
    - was pushed out by a call of ours, and the overlap is over; or by a forced call, which has no
      overlap;
    - is refused, and WeChat told the broker so, in a verification that came to its end;
    - was pushed out by two calls of ours (one generation only), longer ago than the tick that asks
      WeChat takes;

    or if its version is older than one that was served before, or stood for another token.

    An answer without a token is bad if it lasts longer than the schedule takes to replace a token
    that reports may not replace (their quota is bounded), and neither WeChat nor a quota that is
    truly spent is to blame.

    A token that somebody else pushed out, before a report of it was verified, is *unlucky*: nobody
    could know.
    """

    world: Sandbox
    policy: Policy = field(default_factory=Policy)
    answers: int = 0
    unlucky: int = 0
    bad: list[str] = field(default_factory=list)
    issued: dict[str, IssuedToken] = field(default_factory=dict)
    claimed: dict[str, float] = field(
        default_factory=dict
    )  # by WeChat, in a bent answer: when a token ends
    pushed_out: dict[str, float] = field(default_factory=dict)  # by us: when
    forgotten: dict[str, float] = field(
        default_factory=dict
    )  # by us: when a second call of ours did
    known_dead: set[str] = field(default_factory=set)
    calls: dict[str, list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )  # of ours, as WeChat saw them
    rows: dict[str, list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )  # of the ledger, when they were seen
    incidents: dict[str, list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )  # what may cost a call more
    gaps: dict[str, Gap] = field(default_factory=lambda: defaultdict(Gap))
    wall_wrong_at: float = NEVER  # when the broker's wall clock was wrong last
    _newest: dict[str, tuple[str, int]] = field(default_factory=dict)
    _tokens: dict[tuple[str, int], str] = field(default_factory=dict)
    _gap_since: dict[str, float] = field(default_factory=dict)
    _why: dict[str, str] = field(default_factory=dict)
    _needless: dict[str, tuple[float, float]] = field(
        default_factory=dict
    )  # seconds, and when last looked at
    _seen_call: int = 0
    _seen_row: int = 0

    # --- answers ----------------------------------------------------------------------------------

    def answer(self, account: Account, served: Served | Unavailable, now: float) -> bool:
        """Judge an answer given at WeChat's time `now`.

        Returns True if its token is good for anything.
        """
        if isinstance(served, Unavailable):
            self._without(account, served, now)
            return True
        self._needless.pop(account.name, None)
        if account.name in self._gap_since:
            self._close_gap(account.name, now)
        self.answers += 1
        held = served.credential.token
        if held is None:
            self._note(account, "an answer without a token", now)
            return False
        value = held.value.reveal()
        self._in_order(account, (served.credential.epoch, held.call), value, now)
        token = self.issued.get(value)
        if token is None:
            self._note(account, "a token that WeChat never issued", now)
            return False
        return self._alive(account, served, token, now)

    def _without(self, account: Account, served: Unavailable, now: float) -> None:
        """No token: that may be WeChat's doing, or that of a quota which is truly spent.

        It must not be ours for long.
        """
        if account.name not in self._gap_since:
            self._gap_since[account.name] = now
            self._why[account.name] = f"{served.code}: {english.unavailable(served)}"
        # A call that was reserved by a process that died is spent, though WeChat never saw it. A
        # reboot under a wrong wall clock takes another boot's calls for new: they count a day more.
        window = DAY if self.wall_wrong_at < now - 2 * DAY else 2 * DAY
        spent = sum(now - window < at for at in self.rows[account.name][-account.daily_quota :])
        if served.reason is UnavailableReason.CALL_FAILED or spent >= account.daily_quota:
            self._needless.pop(account.name, None)
            return
        before, at = self._needless.get(account.name, (0.0, now))
        lasted = before + min(now - at, ASLEEP)
        self._needless[account.name] = lasted, now
        if before <= NEEDLESS < lasted:
            self._note(
                account,
                f"no token for {lasted:.0f} s, and nobody else's fault:"
                f" {english.unavailable(served)}",
                now,
            )

    def _in_order(self, account: Account, version: tuple[str, int], value: str, now: float) -> None:
        before = self._newest.get(account.name, version)
        if version[0] == before[0] and version[1] < before[1]:
            self._note(account, f"version {version} after {before}", now)
        self._newest[account.name] = version
        if self._tokens.setdefault(version, value) != value:
            self._note(account, f"two tokens under version {version}", now)

    def _alive(self, account: Account, served: Served, token: IssuedToken, now: float) -> bool:
        ends_at = max(token.expires_at, self.claimed.get(token.value, 0.0))
        if now >= ends_at:
            self._note(account, f"a token too old by {now - ends_at:.0f} s", now)
        elif served.token_expires_in > ends_at - now + 0.001:  # of two clocks' arithmetic
            self._note(
                account,
                f"said to live {served.token_expires_in - ends_at + now:.3f} s more than it does",
                now,
            )
        pushed_out = self.pushed_out.get(token.value)
        if (
            pushed_out is not None
            and served.state is TokenState.SUSPECT
            and served.expires_in > token.refused_from - now
        ):
            self._note(account, "a dying token said to live longer than the overlap", now)
        lineage = self.lineage(account)
        remembered = token is lineage.current or token is lineage.previous
        if remembered and token.errcode(now) == 0:
            return True
        if token.value in self.known_dead:
            self._note(account, "a token whose death was known", now)
        elif pushed_out is not None and now >= pushed_out + self.policy.overlap:
            self._note(
                account, f"a token that our own call pushed out {now - pushed_out:.0f} s ago", now
            )
        elif now >= self.forgotten.get(token.value, now) + DOUBT:
            self._note(account, "a token that two calls of ours pushed out", now)
        else:
            self.unlucky += 1
        return False

    def _close_gap(self, app: str, now: float) -> None:
        gap = Gap(now - self._gap_since.pop(app), self._why[app])
        self.gaps[app] = max(gap, self.gaps[app], key=lambda it: it.seconds)

    # --- calls and rows ---------------------------------------------------------------------------

    def lineage(self, account: Account) -> Any:
        at_wechat = self.world.world.account(account.appid)
        return at_wechat.stable if account.endpoint is Endpoint.STABLE else at_wechat.classic

    @contextlib.contextmanager
    def minting(
        self, account: Account, now: float, *, ours: bool, force: bool = False
    ) -> Iterator[set[str]]:
        """A call to the token endpoint; yields the tokens that it killed at once, by the end."""
        lineage = self.lineage(account)
        before = lineage.current, lineage.previous
        killed: set[str] = set()
        yield killed
        for token in lineage.alive():
            self.issued.setdefault(token.value, token)
        if not ours or lineage.current is before[0]:
            return
        for token in before:
            if (
                token is not None
                and token is not lineage.previous
                and token.value in self.pushed_out
            ):
                self.forgotten.setdefault(token.value, now)
        if before[0] is not None:
            self.pushed_out.setdefault(before[0].value, now)
            if force:
                killed.add(before[0].value)

    def told(self, account: Account, answer: Minted, asked_at: float) -> None:
        """Where a fault changed the answer, believe what WeChat said of a lifetime.

        The broker could not know better.
        """
        *_, call = (
            call
            for call in self.world.calls.since(self._seen_call)
            if call["appid"] == account.appid
        )
        if call["outcome"] == "answer":
            self.claimed[answer.token.reveal()] = asked_at + answer.expires_in

    def go_over(self, ledger: sqlite3.Connection, now: float) -> None:
        """I1 to I3, on what is new at `now` since the last time."""
        names = {account.appid: account.name for account in APPS}
        for row in ledger.execute(
            "select id, appid from calls where id > ? order by id", [self._seen_row]
        ):
            self._seen_row = row[0]
            self.rows[names[row[1]]].append(now)
        for call in self.world.calls.since(self._seen_call):
            self._seen_call = call["n"]
            if call["by"] != "client":
                continue
            app = names[call["appid"]]
            self.calls[app].append(call["at"])
            if call["outcome"] != 0:
                self.incidents[app].append(call["at"])
        for account in APPS:
            if len(self.calls[account.name]) > len(self.rows[account.name]):
                self.bad.append(
                    f"I1 {account.name}: {len(self.calls[account.name])} calls,"
                    f" {len(self.rows[account.name])} rows"
                )
            if self.world.calls.traffic(account.appid).max_in_flight > 1:
                self.bad.append(f"I3 {account.name}: two calls at once")

    def conclude(self, now: float) -> None:
        """I2 over the whole time, and that a day costs no more than its incidents explain."""
        for app in list(self._gap_since):
            self._close_gap(app, now)
        for account in APPS:
            calls = self.calls[account.name]
            for last, at in enumerate(calls):
                # From its row a call may take so long to reach WeChat.
                if (
                    sum(at - DAY + CALL_TIMEOUT < other for other in calls[: last + 1])
                    > account.daily_quota
                ):
                    self.bad.append(f"I2 {account.name}: over {account.daily_quota} calls in 24 h")
                    break
            for day, made in self.by_day(account.name).items():
                due = calls_per_day(account.endpoint, self.policy)
                excuses = self.excuses(account.name, day)
                if made > account.daily_quota:
                    self.bad.append(f"I2 {account.name}: {made} calls in a Beijing day")
                if made > due + excuses:
                    self.bad.append(
                        f"{account.name}: {made} calls in a day with {excuses} incidents, {due}"
                        " are due"
                    )

    def excuses(self, app: str, day: float) -> int:
        """Incidents that may have cost a call more in the Beijing day that began then."""
        return sum(day - 3600 <= at < day + DAY for at in self.incidents[app])

    def by_day(self, app: str) -> Counter[float]:
        return Counter(day_began(at) for at in self.calls[app])

    def _note(self, account: Account, what: str, now: float) -> None:
        self.bad.append(f"{account.name}, day {(now - NOON) / DAY:.3f}: {what}")


# --- the simulation -------------------------------------------------------------------------------


@dataclass
class Client:
    """The real client, on whose calls the broker's time passes.

    The broker may die before and after each call.
    """

    simulation: "Simulation"
    inner: WeChat

    async def fetch(self, account: Account, *, force: bool) -> Minted | Failure:
        simulation = self.simulation
        await simulation.fate.step()
        await simulation.take_time(simulation.luck.uniform(0, 1.5))
        with simulation.checker.minting(
            account, simulation.times.true, ours=True, force=force
        ) as killed:
            asked_at = simulation.times.true
            answer = await self.inner.fetch(account, force=force)
        await simulation.quiet(account)
        if isinstance(answer, Minted):
            simulation.checker.told(account, answer, asked_at)
        simulation.dying |= killed
        silent = isinstance(answer, Failure) and answer.code is FailureCode.NO_ANSWER
        await simulation.take_time(CALL_TIMEOUT if silent else simulation.luck.uniform(0, 1.5))
        await simulation.fate.step()
        return answer

    async def check(self, account: Account, token: Secret) -> Verdict:
        await self.simulation.fate.step()
        verdict = await self.inner.check(account, token)
        if verdict is Verdict.DEAD:
            self.simulation.dying.add(token.reveal())
        await self.simulation.take_time(self.simulation.luck.uniform(0, 1.5))
        await self.simulation.fate.step()
        return verdict


@dataclass(order=True)
class Event:
    """Something that goes wrong, or right again, at WeChat's time `at`."""

    at: float
    number: int
    do: Callable[[], Awaitable[None]] = field(compare=False)


PER_DAY: Final[dict[str, float]] = {  # for each app
    "fault": 1.4,
    "outage": 0.1,
    "grave": 0.07,
    "check_fault": 0.4,
    "second_issuer": 0.4,
    "killed_at_wechat": 0.1,
    "false_report": 1.0,
    "order": 0.15,
}
FOR_ALL: Final[dict[str, float]] = {
    "restart": 0.5,
    "kill": 1.0,
    "crash": 1.5,
    "reboot": 0.3,
    "set_wall": 0.6,
    "suspend": 0.4,
}
GARBAGE: Final = (
    "",
    "null",
    "[]",
    "<html>busy</html>",
    '{"access_token":"',
    '{"errcode":"x"}',
    '{"a":NaN}',
    "[" * 10_000,
)
BENT: Final[tuple[dict[str, Any], ...]] = (
    {"expires_in": "7200"},
    {"expires_in": 900},
    {"expires_in": 7200.5},
    {"expires_in": 0},
    {"expires_in": None},
    {"expires_in": True},
    {"access_token": ""},
    {"access_token": None},
    {"access_token": "two words"},
    {"access_token": "line\r\nbreak"},
)
PASSING: Final = (-1, 45011, 40164, 61004, 89503, 12345)
GRAVE: Final = (45009, 89507, 40125, 50002, 48001)


class Simulation:
    """A broker, the machine it runs on, WeChat, and the people who use it."""

    def __init__(self, home: Path, seed: int, days: float) -> None:
        self.path = home / "broker.db"
        self.luck = random.Random(seed)
        self.times = Times()
        self.end = self.times.true + days * DAY
        self.policy = Policy()
        self.fate = Fate()
        self.dying: set[str] = (
            set()
        )  # of what the flight under way found out; known once it has come to its end
        self.happened: Counter[str] = Counter()
        self.diary: list[str] = []
        self.said: Counter[str] = Counter()
        self.leaks: list[str] = []
        self.sandbox: Sandbox
        self.checker: Checker
        self.registry: Registry
        self._store: SqliteStore
        self._base = ""
        self._stack = contextlib.AsyncExitStack()
        self._events: list[Event] = []
        self._numbers = count()

    # --- the course of things ---------------------------------------------------------------------

    async def live(self) -> Checker:
        """Live through it all; the checker has the last word."""
        async with self._wechat():
            await self._first_store()
            await self._start()
            self._draw_events()
            while self.times.true < self.end:
                early = self.luck.uniform(0, self.policy.tick)
                self.times.pass_(early)
                await self._ask_everywhere()
                self.times.pass_(self.policy.tick - early)
                if (
                    self._events and self._events[0].at <= self.times.true
                ):  # one at a time: what slept through several, ticks
                    await heapq.heappop(self._events).do()
                self.registry.tick()
                await self._land()
            await self._stop()
        self.checker.conclude(self.times.true)
        return self.checker

    async def take_time(self, seconds: float) -> None:
        """Time passes while a call is under way, and people ask meanwhile."""
        self.times.pass_(seconds)
        for keeper in self.registry:
            self.checker.answer(keeper.account, await keeper.get(), self.times.true)

    async def quiet(self, account: Account) -> None:
        """Wait until the sandbox has seen that we hung up.

        Between two calls no real time passes here.
        """
        async with asyncio.timeout(PATIENCE_S):
            while self.sandbox.calls.traffic(account.appid).in_flight:
                await asyncio.sleep(0)

    async def _ask_everywhere(self) -> None:
        """Every service asks; one that is refused by WeChat reports it, sooner or later."""
        for keeper in self.registry:
            served = keeper.serve() or await keeper.get()
            if (
                not self.checker.answer(keeper.account, served, self.times.true)
                and self.luck.random() < 0.3
            ):
                self.happened["true reports"] += 1
                await self._report(keeper)

    async def _report(self, keeper: Keeper) -> None:
        if keeper.credential.version is None:
            return
        before, now = keeper.credential.second_issuer, self.times.true
        report = asyncio.create_task(keeper.report(PATIENCE_S, version=keeper.credential.version))
        if not await self._land(report):
            return
        answer = report.result()
        if not isinstance(answer, Unavailable):
            self.checker.answer(keeper.account, answer[1], self.times.true)
        if keeper.credential.second_issuer != before:
            self.happened["deaths found"] += 1
            self.checker.incidents[keeper.account.name].append(now)

    async def _land(self, *tasks: "asyncio.Task[Any]") -> bool:
        """Run refreshes, and who waits for them, to their end or to the broker's.

        Returns True if the broker lives.
        """
        if not tasks and not _flights():
            return True
        landed = asyncio.ensure_future(
            asyncio.gather(*tasks, self.registry.drain(), return_exceptions=True)
        )
        died = asyncio.ensure_future(self.fate.died.wait())
        await asyncio.wait({landed, died}, return_when=asyncio.FIRST_COMPLETED)
        died.cancel()
        if not (lives := not self.fate.died.is_set()):
            landed.cancel()
            await asyncio.gather(landed, return_exceptions=True)
            await self._die(*tasks)
        else:
            self.checker.known_dead |= self.dying
            self.dying.clear()
        if self.times.skew:
            self.checker.wall_wrong_at = self.times.true
        with contextlib.closing(
            sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True)
        ) as ledger:
            self.checker.go_over(ledger, self.times.true)
        return lives

    # --- the broker's life ------------------------------------------------------------------------

    async def _first_store(self) -> None:
        """Draw a new store's epoch from the seed.

        The epoch moves the schedule, and the same seed must mean the same run.
        """
        await (await SqliteStore.open(self.path, self.times)).close()
        with contextlib.closing(sqlite3.connect(self.path)) as db, db:
            db.execute("update meta set value = 'soak' where key = 'epoch'")

    async def _start(self) -> None:
        self.fate = Fate()
        self._stack = contextlib.AsyncExitStack()
        self._store = await SqliteStore.open(self.path, self.times)
        client = await self._stack.enter_async_context(WeChat.connect(self._base, TIMEOUT_S))
        tools = Dependencies(
            store=MortalStore(self._store, self.fate),
            upstream=Client(self, client),
            clock=self.times,
            policy=self.policy,
            slots=asyncio.Semaphore(1),
            emit=self._emit,
            call_timeout_s=CALL_TIMEOUT,
            jitter=self.luck.random,
        )
        self.registry = Registry(APPS, tools)
        await self.registry.start()

    async def _stop(self) -> None:
        self.registry.stop()
        await self._land()
        await self._stack.aclose()
        await self._store.close()

    async def _die(self, *waiting: "asyncio.Task[Any]") -> None:
        """The process is gone between two awaits: nothing is put in order."""
        tasks = [*waiting, *_flights()]
        for account in APPS:
            if any(task.get_name() == f"flight {account.name}" for task in tasks):
                self.checker.incidents[account.name].append(self.times.true)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.dying.clear()
        await self._stack.aclose()
        await self._store.close()
        self.times.pass_(self.luck.uniform(0.2, 30))
        await self._start()

    def _emit(self, event: str, app: str, **facts: object) -> None:
        self.said[event] += 1
        line = f"{event} {app} {facts}"
        self.diary.append(f"{(self.times.true - NOON) / DAY:.4f} {line}")
        if CANARY in line or "97_" in line:
            self.leaks.append(line)

    # --- what happens -----------------------------------------------------------------------------

    def _draw_events(self) -> None:
        for name, rate in FOR_ALL.items():
            self._strew(name, rate, getattr(self, f"_{name}"))
        for account in APPS:
            for name, rate in PER_DAY.items():
                self._strew(name, rate, getattr(self, f"_{name}"), account)

    def _strew(
        self, name: str, rate: float, act: Callable[..., Awaitable[None]], *what: Account
    ) -> None:
        at = self.times.true
        while (at := at + self.luck.expovariate(rate / DAY)) < self.end:
            self._at(at, name, act, *what)

    def _at(
        self, when: float, name: str, act: Callable[..., Awaitable[None]], *what: Account
    ) -> None:
        async def do() -> None:
            self.happened[name.replace("_", " ")] += 1
            self.diary.append(
                f"{(self.times.true - NOON) / DAY:.4f} {name} {[it.name for it in what]}"
            )
            await act(*what)

        heapq.heappush(self._events, Event(when, next(self._numbers), do))

    async def _restart(self) -> None:
        await self._stop()
        self.times.pass_(self.luck.uniform(0.5, 30))
        await self._start()

    async def _kill(self) -> None:
        await self._die()

    async def _crash(self) -> None:
        """It will die in the next refresh, at any of its awaits."""
        self.fate.awaits_left = self.luck.randint(1, 6)

    async def _reboot(self) -> None:
        """The machine goes down; its clock may have lost its battery, until somebody sets it."""
        await self._stop()
        self.times.reboot(self.luck.uniform(30, 900))
        if self.luck.random() < 0.4:
            self.happened["boots in 1970"] += 1
            self.times.skew = 100 - self.times.true
            self._at(
                self.times.true + self.luck.uniform(20, 3600), "wall set right", self._right_wall
            )
        for account in APPS:
            self.checker.incidents[account.name].append(self.times.true)
        await self._start()

    async def _set_wall(self) -> None:
        if self.times.skew == 0:
            self.times.skew = self.luck.choice([DAY, -DAY, 3600, -3600])
            self._at(
                self.times.true + self.luck.uniform(600, DAY / 2),
                "wall set right",
                self._right_wall,
            )

    async def _right_wall(self) -> None:
        self.times.skew = 0

    async def _suspend(self) -> None:
        self.times.pass_(self.luck.choice([600.0, 3600.0, 10_800.0, 20_000.0]))
        await self._ask_everywhere()  # before anything has looked at the clock

    async def _fault(self, account: Account) -> None:
        self._order_fault(account, **self._draw_fault())

    async def _outage(self, account: Account) -> None:
        self._order_fault(account, kind="status", status=503, times=self.luck.randint(2, 5))

    async def _grave(self, account: Account) -> None:
        self._order_fault(account, kind="errcode", errcode=self.luck.choice(GRAVE))

    async def _check_fault(self, account: Account) -> None:
        kinds: Sequence[dict[str, Any]] = (
            {"kind": "status", "status": 502},
            {"kind": "errcode", "errcode": 45009},
            {"kind": "errcode", "errcode": 40001},  # a false one (WECHAT.md W32)
            {"kind": "garbage"},
            {"kind": "reset"},
        )
        self._order_fault(account, path="/cgi-bin/get_api_domain_ip", **self.luck.choice(kinds))

    def _draw_fault(self) -> dict[str, Any]:
        """Any fault of the sandbox's but an HTTP error that hides a minted token.

        WECHAT.md W29 calls that one a plain failure.
        """
        kind = self.luck.choice(
            [
                *sorted(LOSING),
                "errcode",
                "errcode",
                "status",
                "status",
                "answer",
                "answer",
                "slow",
                "same_token",
            ]
        )
        match kind:
            case "errcode":
                return {"kind": kind, "errcode": self.luck.choice(PASSING)}
            case "status":
                headers = self.luck.choice(
                    [
                        {},
                        {"Retry-After": "120"},
                        {"Retry-After": "99999999"},
                        {"Retry-After": "soon"},
                    ]
                )
                return {
                    "kind": kind,
                    "status": self.luck.choice([429, 500, 502, 503, 302]),
                    "headers": headers,
                }
            case "answer":
                return {"kind": kind, "answer": self.luck.choice(BENT)}
            case "slow":
                return {"kind": kind, "seconds": 0.01}
            case "same_token":
                return {"kind": kind}
        more = {"body": self.luck.choice(GARBAGE)} if kind == "garbage" else LOSING[kind]
        return {"kind": kind, "mint": self.luck.random() < 0.5, **more}

    def _order_fault(self, account: Account, **fault: Any) -> None:
        self.sandbox.faults.order(parse({"appid": account.appid, **fault}))
        if "path" in fault:
            self.checker.incidents[account.name].append(self.times.true)

    async def _second_issuer(self, account: Account) -> None:
        if account.endpoint is Endpoint.STABLE:
            return
        at_wechat = self.sandbox.world.account(account.appid)
        with (
            self.checker.minting(account, self.times.true, ours=False),
            self.sandbox.calls.arriving(account.appid, "token", by="second-issuer"),
        ):
            at_wechat.spend("token", self.times.true)
            self.sandbox.world.classic(at_wechat)
        self.checker.incidents[account.name].append(self.times.true + self.policy.overlap)

    async def _killed_at_wechat(self, account: Account) -> None:
        self.sandbox.world.kill(self.sandbox.world.account(account.appid))
        self.checker.incidents[account.name].append(self.times.true)

    async def _false_report(self, account: Account) -> None:
        if (keeper := self.registry.find(account.name)) is not None:
            await self._report(keeper)

    async def _order(self, account: Account) -> None:
        """An administrator wants another token now."""
        if (keeper := self.registry.find(account.name)) is None:
            return
        self.checker.incidents[account.name].append(self.times.true)
        refresh = asyncio.create_task(keeper.refresh(PATIENCE_S, force=self.luck.random() < 0.5))
        await self._land(refresh)

    # --- WeChat -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _wechat(self) -> AsyncIterator[None]:
        app = create_app(SandboxOptions(), lambda: self.times.true)
        self.sandbox = app[STATE]
        self.checker = Checker(self.sandbox, self.policy)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self._base = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield
        finally:
            await runner.cleanup()


LOSING: Final[dict[str, dict[str, Any]]] = {
    "drop": {},
    "reset": {},
    "garbage": {},
    "silence": {},
    "drip": {"interval": 0.0},
    "endless_headers": {},
    "endless_body": {},
    "gzip_bomb": {},
}


def _flights() -> "list[asyncio.Task[Any]]":
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("flight ")]


def table(simulation: Simulation, days: float, took_s: float) -> str:
    """What the soak found, for people."""
    checker = simulation.checker
    answers = (
        f"{checker.answers} answers, of them bad: {len(checker.bad)}, unlucky: {checker.unlucky}"
    )
    happened = ", ".join(
        f"{number} × {name}" for name, number in sorted(simulation.happened.items())
    )
    said = ", ".join(f"{number} × {name}" for name, number in sorted(simulation.said.items()))
    lines = [
        f"{days:g} days in {took_s:.0f} s; {answers} (pushed out by others, not verified yet)",
        f"what happened: {happened}",
        f"what it said: {said}",
        (
            f"{'app':6}{'endpoint':14}{'calls':>6}{'a day: mean':>13}"
            f"{'max, at most 3 incidents':>26}{'max':>5}  {WITHOUT}"
        ),
    ]
    for account in APPS:
        a_day = checker.by_day(account.name)
        usual = max(
            (made for day, made in a_day.items() if checker.excuses(account.name, day) <= USUAL),
            default=0,
        )
        made, gap = len(checker.calls[account.name]), checker.gaps[account.name]
        lines.append(
            f"{account.name:6}{account.endpoint.value:14}{made:6}{made / days:13.1f}{usual:26}"
            f"{max(a_day.values(), default=0):5}  {gap.seconds:.0f} s: {gap.why}"
        )
    return "\n".join(lines)
