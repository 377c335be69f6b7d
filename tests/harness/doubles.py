"""A clock that is moved by hand, and a WeChat that does what a test says, behind a gate."""

import asyncio
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from broker.core.credential import Account, Endpoint, Policy
from broker.core.errcodes import Failure, FailureCode, Kind
from broker.core.login import LoginKind
from broker.core.ports import Minted, Verdict
from broker.core.secret import Secret
from broker.store.sqlite.store import SqliteStore
from broker.tokens.dependencies import Dependencies
from broker.tokens.keeper import Keeper

NOON = 1_790_000_000.0  # unix time of the tests' day; a Beijing afternoon
CANARY = "c4n4ry"
APPID = "wx0123456789abcdef"
ACCOUNT = Account("main", APPID, Secret(f"{CANARY}-secret"))
DOWN = Failure(Kind.TRANSIENT, FailureCode.CONNECT)
LOST = Failure(Kind.TRANSIENT, FailureCode.CONNECTION_BROKE, lost=True)


@dataclass
class ManualClock:
    """Both clocks, moved by hand."""

    steady: float = 10_000.0
    unix: float = NOON
    boot_id: str = "boot-1"

    def now(self) -> float:
        return self.steady

    def wall(self) -> float:
        return self.unix

    def pass_(self, seconds: float) -> None:
        self.steady += seconds
        self.unix += seconds

    def reboot(self, off_for: float, wall_error: float = 0) -> None:
        """Another boot: steady seconds start again, the wall goes on (or not)."""
        self.boot_id = f"{self.boot_id}'"
        self.steady = 5.0
        self.unix += off_for + wall_error


@dataclass
class ScriptedWeChat:
    """Mints t1, t2, … unless told otherwise; `gate` closed holds every call until it is opened."""

    answers: deque[Minted | Failure] = field(default_factory=deque)
    verdicts: deque[Verdict] = field(default_factory=deque)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    calls: int = 0
    checks: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    forced: list[bool] = field(default_factory=list)
    secrets: list[Secret] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    lifetime: float = 7200.0
    shut_after_check: bool = False
    tickets: list[tuple[str, str]] = field(default_factory=list)  # asked for: type and token
    ticket_answers: deque[Minted | Failure] = field(default_factory=deque)
    logins: list[tuple[str, LoginKind, str]] = field(default_factory=list)  # app, kind, code
    login_answers: deque[bytes | Failure] = field(default_factory=deque)
    before_answer: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.gate.set()

    async def fetch(self, account: Account, *, force: bool) -> Minted | Failure:
        self.calls += 1
        self.forced.append(force)
        self.secrets.append(account.secret)
        answer = (
            self.answers.popleft()
            if self.answers
            else Minted(Secret(f"{CANARY}-{account.name}-t{self.calls}"), self.lifetime)
        )
        await self._pass_gate()
        self.before_answer()
        return answer

    async def check(self, account: Account, token: Secret) -> Verdict:
        assert token.reveal()
        assert account.appid
        self.checks += 1
        await self._pass_gate()
        if self.shut_after_check:
            self.gate.clear()
        return self.verdicts.popleft() if self.verdicts else Verdict.ALIVE

    async def ticket(self, kind: Endpoint, token: Secret) -> Minted | Failure:
        self.tickets.append((kind.value, token.reveal()))
        await self._pass_gate()
        if self.ticket_answers:
            return self.ticket_answers.popleft()
        return Minted(Secret(f"{CANARY}-{kind.value}-k{len(self.tickets)}"), self.lifetime)

    async def exchange_code(
        self, account: Account, kind: LoginKind, code: Secret
    ) -> bytes | Failure:
        self.logins.append((account.name, kind, code.reveal()))
        await self._pass_gate()
        if self.login_answers:
            return self.login_answers.popleft()
        return json.dumps({"openid": f"o-{len(self.logins)}", "session_key": "k"}).encode()

    async def _pass_gate(self) -> None:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.arrived.set()
        try:
            await self.gate.wait()
        finally:
            self.in_flight -= 1


@dataclass
class Bench:
    """Keepers on a real SQLite store, a manual clock and a scripted WeChat."""

    path: Path
    clock: ManualClock = field(default_factory=ManualClock)
    wechat: ScriptedWeChat = field(default_factory=ScriptedWeChat)
    policy: Policy = field(default_factory=Policy)
    events: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    store: SqliteStore | None = None

    async def open(self) -> SqliteStore:
        if self.store is None:
            self.store = await SqliteStore.open(self.path, self.clock)
        return self.store

    async def keeper(self, account: Account = ACCOUNT) -> Keeper:
        """Another keeper on the same store; started."""
        keeper = Keeper(account, await self.dependencies())
        await keeper.start()
        return keeper

    async def dependencies(self) -> Dependencies:
        return Dependencies(
            store=await self.open(),
            upstream=self.wechat,
            clock=self.clock,
            policy=self.policy,
            slots=asyncio.Semaphore(16),
            emit=self._note,
            call_timeout_s=10,
            jitter=lambda: 0.0,
        )

    def _note(self, event: str, app: str, **facts: object) -> None:
        self.events.append((event, {"app": app, **facts}))

    async def restarted(self, account: Account = ACCOUNT) -> Keeper:
        """What a new process finds after this one died without a word."""
        await self.close()
        return await self.keeper(account)

    async def close(self) -> None:
        if self.store is not None:
            await self.store.close()
            self.store = None

    async def rows(self) -> list[dict[str, object]]:
        return await (await self.open()).history(0, ACCOUNT)

    def told(self, event: str) -> list[dict[str, object]]:
        return [facts for name, facts in self.events if name == event]


async def looked(keeper: Keeper) -> None:
    """One tick, and the end of what it started."""
    keeper.tick()
    await keeper.drain()


def value_of(keeper: Keeper) -> str | None:
    """The token that would be served now."""
    served = keeper.serve()
    return (
        None
        if served is None or served.credential.token is None
        else served.credential.token.value.reveal()
    )


def stable(account: Account = ACCOUNT) -> Account:
    return replace(account, endpoint=Endpoint.STABLE)
