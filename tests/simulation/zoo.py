"""Clients with the caching rules of real SDKs, on a broker, through simulated days.

Real are the keepers and their store, WeChat's own token paths (`broker/web/api/compat.py`, which
judges who asks again) and the sandbox's accounts, whose classic tokens die an overlap after the
next one was minted; the overlap is fuzzy. Only the clock, the network and the clients are made up.

What is noted: each token that was handed out, with until when it was promised; when and why each
token died; and whatever a client met that was no success.
"""

import asyncio
import contextlib
import hashlib
import heapq
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from broker.core.credential import Account, Endpoint, Policy
from broker.core.errcodes import Failure, FailureCode, Kind
from broker.core.ports import Minted, Verdict
from broker.core.quota import DAY
from broker.core.secret import Secret
from broker.sandbox.answers import WeChatRefusal
from broker.sandbox.options import SandboxOptions
from broker.sandbox.tokens import IssuedToken
from broker.sandbox.world import World
from broker.store.postgres.store import PostgresStore
from broker.store.sqlite.store import SqliteStore
from broker.tokens.dependencies import Dependencies
from broker.tokens.keeper import Keeper
from broker.tokens.registry import Registry
from broker.tokens.tickets import Tickets
from broker.web.api.compat import Compat
from broker.web.dialect import ErrcodeError
from broker.web.gate import Client, Gate
from tests.harness.doubles import CANARY, NOON, ScriptedWeChat
from tests.harness.manual_postgres import ToldStore

REAL_S: Final = 20.0  # bounds what waits for the store
PATIENCE_S: Final = 12.0  # a daemon's own, by default
CALL_TIMEOUT_S: Final = 10.0
OVERLAP_S: Final = (0.8, 1.1)  # of the overlap: its edges are fuzzy (WECHAT.md W7)
SECOND_S: Final = 1.0
SPINS: Final = 200  # of the event loop: an answer from memory takes a few
AWAKE: Final = 20  # spins in which those who waited for a refresh have their answers
JUST_BEFORE_S: Final = 0.001
DOWN: Final = Failure(Kind.TRANSIENT, FailureCode.CONNECT)
LOST: Final = Failure(Kind.TRANSIENT, FailureCode.NO_ANSWER, lost=True)
ACCOUNTS: Final = (
    Account("main", "wxclassic", Secret(f"{CANARY}-main")),
    Account("mini", "wxstable", Secret(f"{CANARY}-mini"), Endpoint.STABLE),
    Account("corp", "ww0123456789", Secret(f"{CANARY}-corp"), Endpoint.WECOM),
)


@dataclass(frozen=True)
class Rule:
    """How an SDK keeps a token (WECHAT.md W91, W92, W95).

    `keeps` says for how many seconds, by the `expires_in` it was told. `asks_again` is how often it
    asks anew, and calls again, after a refusal. `every_s` is the mean pause between two calls.
    `processes` share one key and keep a token each. `by_proxy` means that it has no token: the
    proxy takes one for each of its calls.
    """

    name: str
    keeps: Callable[[float], float]
    asks_again: int = 0
    every_s: float = 300.0
    starts_within_s: float = 300.0
    processes: int = 1
    by_proxy: bool = False


def less(margin: float) -> Callable[[float], float]:
    """Keep a token until so many seconds before its end."""
    return lambda expires_in: expires_in - margin


def _senparc(expires_in: float) -> float:
    margins = {3600: 600, 1800: 300, 300: 30}
    return expires_in - next((less for floor, less in margins.items() if expires_in > floor), 0)


def _chanxuehong(expires_in: float) -> float:
    margins = {3600: 600, 1800: 300, 300: 60, 60: 10}
    return expires_in - next((less for floor, less in margins.items() if expires_in > floor), 0)


def _never(_expires_in: float) -> float:
    return 0


ZOO: Final = (
    Rule("EasyWeChat 6", less(0)),
    Rule("node-easywechat", less(0)),
    Rule("EasyWeChat 5", less(500)),
    Rule("PowerWeChat", less(0), asks_again=1),
    Rule("WxJava", less(200), asks_again=1),
    Rule("co-wechat-api", less(10), asks_again=3),
    Rule("wechatpy", less(60), asks_again=5),
    Rule("WeRoBot", less(60), asks_again=1),
    Rule("Senparc", _senparc),
    Rule("chanxuehong", _chanxuehong, asks_again=1),
    Rule("silenceper", less(1500)),
    Rule("onepush", _never, every_s=900.0),
    Rule("a steady asker", _never, every_s=40.0),
    Rule("a fleet", less(0), every_s=1200.0, processes=20),
    Rule("by the proxy", _never, every_s=120.0, by_proxy=True),
)


@dataclass(frozen=True)
class Setting:
    """Who asks for what. `longest_way_s` is the longest that a message takes to WeChat, or back."""

    rules: Sequence[Rule] = ZOO
    accounts: Sequence[Account] = ACCOUNTS
    policy: Policy = field(default_factory=Policy)
    expires_in: int = 7200
    longest_way_s: float = 0.7


@dataclass
class ZooClock:
    """One host's clock. Each host's steady clock began at another time."""

    zoo: "Zoo"
    began: float
    boot_id: str = "boot-1"

    def now(self) -> float:
        return self.zoo.now - NOON + self.began

    def wall(self) -> float:
        return self.zoo.now

    def database(self) -> float:
        return self.zoo.now

    def timeline(self) -> int:
        return 1


@dataclass
class Handed:
    """A token that was handed out, and until when it was promised."""

    rule: str
    app: str
    token: str
    at: float
    until: float


@dataclass
class Met:
    """What a client met that was no success: WeChat's errcode, or the broker's."""

    rule: str
    app: str
    errcode: int
    at: float
    token: str


@dataclass
class Ended:
    """When a token died, and whether an incident was the reason."""

    at: float
    by_incident: bool = False


class ZooWeChat:
    """WeChat as the broker's upstream: the sandbox's accounts, and time that passes on the way."""

    def __init__(self, zoo: "Zoo", setting: "Setting") -> None:
        self.zoo, self.longest_s = zoo, setting.longest_way_s
        self.world = World(SandboxOptions(expires_in=setting.expires_in), lambda: zoo.now)
        self.ends: dict[str, Ended] = {}
        self.tokens: dict[str, IssuedToken] = {}
        self.calls: Counter[str] = Counter()
        self.checks: Counter[str] = Counter()
        self.checked_at: list[float] = []
        self.is_down = False
        self.loses_answers = 0

    async def fetch(self, account: Account, *, force: bool) -> Minted | Failure:
        await self._way()
        if self.is_down:
            return DOWN
        self.calls[account.name] += 1
        answer = self.mint(account, force=force)
        if self.loses_answers:
            self.loses_answers -= 1
            await self.zoo.take_time(CALL_TIMEOUT_S)
            return LOST
        await self._way()
        return answer

    async def check(self, account: Account, token: Secret) -> Verdict:
        await self._way()
        if self.is_down:
            return Verdict.UNKNOWN
        self.checks[account.name] += 1
        self.checked_at.append(self.zoo.now)
        return Verdict.DEAD if self.refuses(account, token.reveal()) else Verdict.ALIVE

    async def _way(self) -> None:
        """Let the time pass that a message takes."""
        await self.zoo.take_time(self.zoo.luck.uniform(0.05, self.longest_s))

    def mint(self, account: Account, *, force: bool = False, by_incident: bool = False) -> Minted:
        """Answer a token call, and note whose end it brings."""
        now, world = self.zoo.now, self.world
        if account.endpoint is Endpoint.WECOM:
            issued = world.gettoken(account.appid, account.secret.reveal())
        else:
            at_wechat = world.account(account.appid)
            is_stable = account.endpoint is Endpoint.STABLE
            lineage = at_wechat.stable if is_stable else at_wechat.classic
            before = lineage.alive()
            issued = world.stable(at_wechat, force=force) if is_stable else world.classic(at_wechat)
            if not is_stable and len(before) > 0:
                overlap = world.options.overlap * self.zoo.luck.uniform(*OVERLAP_S)
                before[0].refused_from = min(before[0].expires_at, now + overlap)
            for token in before:
                forgotten = token not in lineage.alive()
                end = now if forgotten else min(token.refused_from, token.expires_at)
                self._end(token.value, end, by_incident=by_incident)
        self.tokens[issued.token.value] = issued.token
        self.ends.setdefault(issued.token.value, Ended(issued.token.expires_at))
        return Minted(Secret(issued.token.value), issued.expires_in)

    def kill(self, account: Account) -> None:
        """End all of an account's tokens at once, as the platform may."""
        self.world.kill(self.world.account(account.appid))
        for token in self.world.account(account.appid).tokens():
            self._end(token.value, self.zoo.now, by_incident=True)

    def _end(self, value: str, at: float, *, by_incident: bool) -> None:
        before = self.ends[value]
        if at < before.at:
            self.ends[value] = Ended(at, by_incident or before.by_incident)

    def refuses(self, account: Account, value: str) -> int:
        """Return what a data call with this token is answered: 0, 40001 or 42001."""
        try:
            if account.endpoint is Endpoint.WECOM:
                return 0 if self.world.corp(value) else 40014
            self.world.authorize(value)
        except WeChatRefusal as refusal:
            return refusal.errcode
        return 0


class Animal:
    """One process with an SDK, for one app."""

    def __init__(self, zoo: "Zoo", rule: Rule, account: Account) -> None:
        self.zoo, self.rule, self.account = zoo, rule, account
        self.token, self.until = "", -1.0
        self.is_busy = False

    async def call(self) -> None:
        """Call WeChat as the service does, and plan the next call."""
        self.is_busy = True
        try:
            await self._call()
        finally:
            self.is_busy = False
        pause = self.zoo.luck.expovariate(1 / self.rule.every_s)
        # The last moment for which a token is kept is tried as well.
        last = self.until - JUST_BEFORE_S
        at = self.zoo.now + pause
        self.zoo.plan(min(at, last) if last > self.zoo.now else at, self)

    async def _call(self) -> None:
        zoo = self.zoo
        if zoo.now >= self.until and not await self._ask():
            return
        for again in range(self.rule.asks_again + 1):
            errcode = zoo.wechat.refuses(self.account, self.token)
            zoo.answered += 1
            if errcode == 0:
                return
            zoo.met.append(Met(self.rule.name, self.account.name, errcode, zoo.now, self.token))
            if again == self.rule.asks_again or not await self._ask():
                return

    async def _ask(self) -> bool:
        """Ask the broker for a token; return True if there is one."""
        zoo, rule = self.zoo, self.rule
        asked_at = zoo.now
        host = zoo.luck.choice(zoo.hosts)
        answer = await (host.proxied if rule.by_proxy else host.asked)(rule, self.account)
        zoo.slowest = max(zoo.slowest, zoo.now - asked_at)
        errcode = int(answer.get("errcode", 0))
        if errcode:
            zoo.met.append(Met(rule.name, self.account.name, errcode, zoo.now, ""))
            return False
        self.token, expires_in = str(answer["access_token"]), int(answer["expires_in"])
        # An answer that was waited for reaches us here when more time has passed than in truth.
        self.until = asked_at + rule.keeps(expires_in)
        until = asked_at + expires_in
        zoo.handed.append(Handed(rule.name, self.account.name, self.token, asked_at, until))
        return True


@dataclass
class ZooHost:
    """One broker: registry, keepers and WeChat's own token paths."""

    zoo: "Zoo"
    number: int
    store: SqliteStore | PostgresStore = field(init=False)
    registry: Registry = field(init=False)
    compat: Compat = field(init=False)
    requests: dict[str, web.Request] = field(default_factory=dict)

    async def start(self) -> None:
        """Take up what the store holds."""
        zoo, clock = self.zoo, ZooClock(self.zoo, 1e6 * (self.number + 1))
        if zoo.url is None:
            self.store = await SqliteStore.open(zoo.path, clock)
        else:
            self.store = await ToldStore.open(zoo.url, clock, node=f"host{self.number}")
        dependencies = Dependencies(
            store=self.store,
            upstream=zoo.wechat,
            clock=clock,
            policy=zoo.policy,
            slots=asyncio.Semaphore(1),
            emit=zoo.note,
            call_timeout_s=CALL_TIMEOUT_S,
            jitter=zoo.luck.random,
        )
        self.registry = Registry(zoo.accounts, dependencies)
        await self.registry.start()
        self.store.watch(self.registry.on_store_changed, self.registry.versions)
        tickets = Tickets(self.registry, dependencies, ScriptedWeChat())
        self.compat = Compat(zoo.gate, self.registry, tickets, PATIENCE_S, clock.now)

    async def stop(self) -> None:
        """Stop as a daemon does on SIGTERM."""
        self.registry.stop()
        await self.registry.drain()
        await self.store.close()

    def keeper(self, account: Account) -> Keeper:
        """The keeper of an account."""
        keeper = self.registry.find(account.name)
        assert keeper
        return keeper

    async def asked(self, rule: Rule, account: Account) -> dict[str, Any]:
        """Answer on WeChat's own path."""
        is_wecom = account.endpoint is Endpoint.WECOM
        app, secret = ("corpid", "corpsecret") if is_wecom else ("appid", "secret")
        query = {"grant_type": "client_credential", app: account.appid, secret: key_of(rule)}
        path = f"/cgi-bin/{'gettoken' if is_wecom else 'token'}?{urlencode(query)}"
        if path not in self.requests:  # it is slow to make one
            self.requests[path] = make_mocked_request("GET", path)
        request = self.requests[path]
        answer = self.compat.get_wecom_token if is_wecom else self.compat.get_token
        try:
            body = (await answer(request)).body
        except ErrcodeError as refusal:
            return {"errcode": refusal.errcode}
        assert isinstance(body, bytes)
        said: dict[str, Any] = json.loads(body)
        return said

    async def proxied(self, _rule: Rule, account: Account) -> dict[str, Any]:
        """Answer as the proxy takes the token for each call."""
        keeper = self.keeper(account)
        served = keeper.serve() or await keeper.get(0, PATIENCE_S)
        token = getattr(served, "token", None)
        if token is None:
            return {"errcode": -1}
        return {"access_token": token.value.reveal(), "expires_in": 1}

    def heads(self) -> list[str | None]:
        """The version of each app that this host holds."""
        return [keeper.credential.version for keeper in self.registry]


def key_of(rule: Rule) -> str:
    """The broker key of a client."""
    return f"{CANARY}-key-of-{rule.name}"


class Zoo:
    """Clients on one or several hosts through so many simulated days.

    `url` is a PostgreSQL database's, where there are several hosts; `path` is the SQLite file's of
    a single one.
    """

    def __init__(
        self,
        path: Path,
        days: float,
        seed: int,
        *,
        hosts: int = 1,
        url: str | None = None,
        setting: Setting | None = None,
    ) -> None:
        setting = setting or Setting()
        self.path, self.url = path, url
        self.rules, self.accounts, self.policy = setting.rules, setting.accounts, setting.policy
        self.now, self.began, self.end = NOON, NOON, NOON + days * DAY
        self.luck = random.Random(seed)
        self.wechat = ZooWeChat(self, setting)
        self.hosts = [ZooHost(self, number) for number in range(hosts)]
        clients = {key_of(rule): Client(rule.name, frozenset({"read"})) for rule in self.rules}
        keys = {hashlib.sha256(key.encode()).hexdigest(): it for key, it in clients.items()}
        self.gate = Gate(keys, [])
        self.handed: list[Handed] = []
        self.met: list[Met] = []
        self.answered = 0
        self.slowest = 0.0
        self.events: Counter[str] = Counter()
        self._agenda: list[tuple[float, int, Animal | Callable[[], Awaitable[None]]]] = []
        self._numbers = count()
        self._calls: set[asyncio.Task[None]] = set()
        self._to_restart: set[int] = set()
        self.errors: list[BaseException] = []

    # --- the course of things ---------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["Zoo"]:
        """Run the hosts."""
        for host in self.hosts:
            await host.start()
        try:
            yield self
        finally:
            for host in self.hosts:
                await host.stop()

    async def live(self) -> None:
        """Let the days pass."""
        for rule in self.rules:
            for account in self.accounts:
                for _ in range(rule.processes):
                    start = self.now + self.luck.uniform(0, rule.starts_within_s)
                    self.plan(start, Animal(self, rule, account))
        while self.now < self.end:
            for host in self.hosts:
                host.registry.tick()
            await self._settle()
            await self.take_time(self.policy.tick, lands=True)
            await self._settle()
            while self._to_restart:
                host = self.hosts[self._to_restart.pop()]
                await host.stop()
                await host.start()
        async with asyncio.timeout(REAL_S):
            await asyncio.gather(*self._calls)
        assert self.errors == []

    def plan(self, at: float, what: "Animal | Callable[[], Awaitable[None]]") -> None:
        """Have an animal call, or something happen, at a time."""
        heapq.heappush(self._agenda, (at, next(self._numbers), what))

    async def take_time(self, seconds: float, *, lands: bool = False) -> None:
        """Let time pass, and have happen what is planned for it.

        With `lands` a refresh that begins then comes to its end before time goes on: to speak to
        its store takes real time. A refresh that itself takes time cannot wait for its own end.
        """
        until = self.now + seconds
        while self._agenda and self._agenda[0][0] <= until:
            at, _, what = heapq.heappop(self._agenda)
            self.now = max(self.now, at)
            call = what.call() if isinstance(what, Animal) else what()
            task: asyncio.Task[None] = asyncio.ensure_future(call)
            self._calls.add(task)
            task.add_done_callback(self._done)
            for spin in range(SPINS):
                await asyncio.sleep(0)
                if task.done() or (spin % 10 == 9 and self._flights()):
                    break
            if lands and not task.done():
                await self._settle()
        self.now = max(self.now, until)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._calls.discard(task)
        if (error := task.exception()) is not None:
            self.errors.append(error)

    def _flights(self) -> bool:
        return any(task.get_name().startswith("flight ") for task in asyncio.all_tasks())

    async def _settle(self) -> None:
        """Wait until no refresh is under way, and all hosts have heard of the last one."""
        deadline = perf_counter() + REAL_S
        idle = 0
        while idle < (AWAKE if self._calls else 1):
            busy = self._is_busy()
            idle = 0 if busy else idle + 1
            await asyncio.sleep(0.0005 if busy else 0)
            assert perf_counter() < deadline, "a refresh does not come to its end"

    def _is_busy(self) -> bool:
        if len(self.hosts) == 1 and not self._calls and not self._flights():
            return False
        return self._flights() or len({tuple(host.heads()) for host in self.hosts}) > 1

    def note(self, event: str, app: str, **_facts: object) -> None:
        """Count the broker's events."""
        self.events[f"{event} {app}"] += 1

    # --- incidents --------------------------------------------------------------------------------

    def strew_incidents(self, a_day: float) -> None:
        """Draw incidents of each kind, so many a day."""
        kinds = (
            self._second_issuer,
            self._killed,
            self._outage,
            self._lost_answer,
            self._restart,
            self._another_policy,
            self._false_doubt,
        )
        for kind in kinds:
            at = self.now
            while a_day and (at := at + self.luck.expovariate(a_day / DAY)) < self.end:
                self.plan(at, kind)

    async def _second_issuer(self) -> None:
        self.wechat.mint(ACCOUNTS[0], by_incident=True)

    async def _killed(self) -> None:
        self.wechat.kill(self.luck.choice(ACCOUNTS[:2]))

    async def _outage(self) -> None:
        self.wechat.is_down = True

        async def over() -> None:
            self.wechat.is_down = False

        self.plan(self.now + self.luck.uniform(60, 3000), over)

    async def _lost_answer(self) -> None:
        self.wechat.loses_answers = 1

    async def _restart(self) -> None:
        self._to_restart.add(self.luck.randrange(len(self.hosts)))

    async def _another_policy(self) -> None:
        """Another schedule. The overlap stays: it says what WeChat does."""
        fraction, gap = self.luck.choice([0.2, 0.5, 0.8]), self.luck.choice([10.0, 30.0, 60.0])
        self.policy = Policy(refresh_fraction=fraction, min_gap=gap)
        for host in self.hosts:
            host.registry.apply_policy(self.policy)

    async def _false_doubt(self) -> None:
        """A client is refused though its token lives, and asks again (WECHAT.md W32)."""
        rule = self.luck.choice(self.rules)
        await self.luck.choice(self.hosts).asked(rule, self.luck.choice(self.accounts))

    # --- what came of it --------------------------------------------------------------------------

    def broken_promises(self) -> list[str]:
        """I7: tokens that lived shorter than was promised, though no incident ended them.

        No answer can promise less than a second: with that little a token in doubt is served.
        """
        broken = []
        for it in self.handed:
            ended = self.wechat.ends[it.token]
            short = it.until - ended.at if it.rule != "by the proxy" else 0
            is_doubtful = it.until - it.at <= SECOND_S
            if short > SECOND_S and not is_doubtful and not ended.by_incident:
                broken.append(
                    f"{it.rule} on {it.app}: {short:.1f} s too much at {it.at - NOON:.0f}"
                )
        return broken

    def needless(self) -> list[Met]:
        """I8: what clients met that no incident explains.

        A token in doubt after a lost answer may be dead, and is served for a second at a time.
        """
        doubtful = {it.token for it in self.handed if it.until - it.at <= SECOND_S}
        return [
            it
            for it in self.met
            if it.token == ""
            or not (self.wechat.ends[it.token].by_incident or it.token in doubtful)
        ]

    def table(self) -> str:
        """What each client met, for people."""
        refused = Counter((it.rule, it.app, it.errcode) for it in self.met)
        asked = Counter(it.rule for it in self.handed)
        lines = [
            f"{(self.end - self.began) / DAY:g} days, {len(self.hosts)} hosts",
            f"{self.answered} calls of clients, {len(self.handed)} tokens handed out",
            f"slowest after {self.slowest:.1f} s",
            f"token calls {dict(self.wechat.calls)}, verifications {dict(self.wechat.checks)}",
        ]
        for rule in self.rules:
            met = {
                f"{app} {code}": n for (name, app, code), n in refused.items() if name == rule.name
            }
            lines.append(f"{rule.name:16} asked {asked[rule.name]:6}, met {met or 0}")
        return "\n".join(lines)
