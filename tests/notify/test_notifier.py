"""Notifications from keepers to receivers: told once over restarts and brokers, and harmless."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from broker.config.settings import NotifySettings
from broker.core.credential import SecondIssuer
from broker.core.errcodes import Failure, FailureCode, Kind
from broker.core.ports import Node, StoreError
from broker.notify.events import Event, StateChange
from broker.notify.notifier import MOST_WAITING, Line, Notifier
from broker.notify.result import TAKEN, SendResult, Trouble
from broker.notify.states import StateKind, TroubleState, states
from broker.store.postgres.store import PostgresStore
from broker.store.sqlite.store import SqliteStore
from broker.tokens.keeper import Keeper
from tests.harness.doubles import ACCOUNT, CANARY, DOWN, Bench, ManualClock, looked

HOLD = NotifySettings(hold=300)
GONE = TroubleState(StateKind.NO_TOKEN, "main", facts={"appid": "wx", "platform": "wechat"})


@dataclass
class Inbox:
    """A receiver that keeps what it is sent, and answers what a test says."""

    label: str = "inbox"
    events: list[Event] = field(default_factory=list)
    results: list[SendResult] = field(default_factory=list)

    async def send(self, event: Event) -> SendResult:
        self.events.append(event)
        return self.results.pop(0) if self.results else TAKEN

    @property
    def told(self) -> list[str]:
        return [f"{event.change.value} {event.name}" for event in self.events]


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


# --- what is read off keepers ---------------------------------------------------------------------


def seen(keeper: Keeper, **more: Any) -> dict[str, TroubleState]:
    found = states([keeper], more.pop("nodes", ()), more.pop("store_error", None), **more)
    return {state.kind.value: state for state in found}


async def test_a_good_token_needs_nobody(bench: Bench) -> None:
    keeper = await bench.keeper()
    await looked(keeper)
    assert seen(keeper) == {}


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (
            Failure(Kind.ADMISSION, FailureCode.ERRCODE, 40164, ip="203.0.113.7"),
            "ip-not-whitelisted",
        ),
        (Failure(Kind.CONFIGURATION, FailureCode.ERRCODE, 40125), "secret-refused"),
        (Failure(Kind.CONFIGURATION, FailureCode.ERRCODE, 40243), "frozen"),
        (Failure(Kind.CONFIGURATION, FailureCode.ERRCODE, 40013), "call-refused"),
        (Failure(Kind.CONFIRMATION, FailureCode.ERRCODE, 89503), "confirmation-needed"),
        (Failure(Kind.BLOCKED, FailureCode.ERRCODE, 89507), "denied-by-administrator"),
        (Failure(Kind.QUOTA, FailureCode.ERRCODE, 45009), "quota-spent"),
        (DOWN, None),
        (Failure(Kind.SLOW_DOWN, FailureCode.ERRCODE, 45011), None),
    ],
)
async def test_a_failure_is_told_by_what_it_asks_of_a_person(
    bench: Bench, failure: Failure, kind: str | None
) -> None:
    bench.wechat.answers.append(failure)
    keeper = await bench.keeper()
    await looked(keeper)
    found = seen(keeper)
    assert found.keys() == {"no-token", kind} - {None}
    if kind == "ip-not-whitelisted":
        assert found[kind].facts["ip"] == "203.0.113.7"


async def test_a_quota_is_told_when_it_is_nearly_spent_and_when_it_is(bench: Bench) -> None:
    bench.wechat.answers.extend([DOWN] * 10)
    account = replace(ACCOUNT, daily_quota=5)
    keeper, found = await bench.keeper(account), []
    for _ in range(6):
        await looked(keeper)
        found.append(sorted(seen(keeper)))
        bench.clock.pass_(1000)
    assert found[2] == ["no-token"]
    assert found[3] == ["no-token", "quota-nearly-spent"]
    assert found[5] == ["no-token", "quota-spent"]


async def test_second_issuer_store_sinks_and_silent_brokers_are_told(bench: Bench) -> None:
    keeper = await bench.keeper()
    await looked(keeper)
    rivals = replace(keeper.credential, second_issuer=SecondIssuer(3, 1.0, 2.0))
    keeper._live.credential = rivals
    nodes = [Node("one", 1000.0), Node("two", 971.0), Node("three", 970.0)]
    found = seen(
        keeper, nodes=nodes, store_error="gone", sinks_behind=[("main", "redis x")], node="one"
    )
    assert {kind: (state.app, state.about) for kind, state in found.items()} == {
        "second-issuer": ("main", ""),
        "store-failing": ("", "one"),
        "broker-silent": ("", "three"),
        "sink-behind": ("main", "redis x"),
    }


# --- from states to receivers ---------------------------------------------------------------------


@dataclass
class Run:
    """A notifier on a store and a manual clock, looked at by hand."""

    store: SqliteStore | PostgresStore
    clock: ManualClock
    seen: list[TroubleState] = field(default_factory=list)
    inbox: Inbox = field(default_factory=Inbox)
    broker: str | None = None
    notifier: Notifier = field(init=False)

    def __post_init__(self) -> None:
        look: Callable[[], Iterable[TroubleState]] = lambda: self.seen  # noqa: E731 -- short
        self.notifier = Notifier(
            self.store, look, self.clock.wall, self.clock.now, lambda: self.broker
        )
        self.notifier.apply(HOLD, [self.inbox])

    async def after(self, seconds: float, *seen: TroubleState) -> list[str]:
        """What has been told once so much time has passed in which the notifier looked."""
        self.seen = list(seen)
        while seconds > 0:
            self.clock.pass_(min(seconds, 10))
            seconds -= 10
            await self.notifier.look()
        await settled()
        return self.inbox.told

    async def end(self) -> None:
        async with self.notifier.running():
            pass


@pytest.fixture
async def run(bench: Bench) -> AsyncIterator[Run]:
    run = Run(await bench.open(), bench.clock)
    yield run
    await run.end()


async def test_what_lasts_is_told_once_and_its_end_too(run: Run) -> None:
    assert await run.after(290, GONE) == []
    assert await run.after(20, GONE) == ["entered no-token"]
    assert await run.after(5000, GONE) == ["entered no-token"]
    assert await run.after(290) == ["entered no-token"]
    assert await run.after(20) == ["entered no-token", "left no-token"]
    assert CANARY not in str(run.notifier.status())


async def test_nothing_is_told_twice_over_a_restart(bench: Bench, run: Run) -> None:
    assert await run.after(310, GONE) == ["entered no-token"]
    await run.end()
    await bench.close()
    bench.clock.reboot(off_for=600)
    again = Run(await bench.open(), bench.clock)
    assert await again.after(1000, GONE) == []
    assert again.notifier.status()["told"][0]["event"] == "no-token"
    assert await again.after(310) == ["left no-token"]
    await again.end()


async def test_what_ended_while_we_were_away_is_told_when_we_are_back(
    bench: Bench, run: Run
) -> None:
    await run.after(310, GONE)
    again = Run(await bench.open(), bench.clock)
    assert await again.after(310) == ["left no-token"]
    await again.end()


async def test_of_two_brokers_on_one_store_one_tells_it(database: str) -> None:
    clock = ManualClock()
    stores = [await PostgresStore.open(database, clock, node=name) for name in ("a", "b")]
    runs = [Run(store, clock, broker=store.node) for store in stores]
    for one in runs:
        one.notifier.apply(NotifySettings(hold=0), [one.inbox])
        one.seen = [GONE]
    await asyncio.gather(*(one.notifier.look() for one in runs))
    await settled()
    assert sorted(one.inbox.told for one in runs) == [[], ["entered no-token"]]
    for one, store in zip(runs, stores, strict=True):
        await one.end()
        await store.close()


async def test_a_store_that_fails_is_told_from_memory_and_not_again_when_it_is_back(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = TroubleState(StateKind.STORE_FAILING)

    async def refuse(*_: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(run.store, "rewrite", refuse)
        assert await run.after(400, failing) == ["entered store-failing"]
        assert run.notifier.store_error == "the disk is full"
    assert await run.after(290) == ["entered store-failing"]
    assert await run.after(400) == ["entered store-failing", "left store-failing"]


async def test_while_nothing_is_wrong_the_store_is_hardly_asked(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = run.store.rewrite

    async def count(name: str, rewrite: Any) -> None:
        asked.append(name)
        await real(name, rewrite)

    monkeypatch.setattr(run.store, "rewrite", count)
    await run.after(3600)
    assert len(asked) <= 61


async def test_a_receiver_that_refuses_is_tried_again_and_its_trouble_shown(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.notify.notifier.AGAIN_AFTER_S", (0.0, 0.0))
    run.inbox.results = [SendResult(Trouble.REFUSED, 45009), SendResult(Trouble.TIMEOUT)]
    assert await run.after(310, GONE) == ["entered no-token"] * 3
    (receiver,) = run.notifier.status()["receivers"]
    assert (receiver["sent"], receiver["lost"], receiver["trouble"]) == (1, 0, None)
    run.inbox.results = [SendResult(Trouble.REFUSED, 93000)] * 3
    await run.after(400)
    (receiver,) = run.notifier.status()["receivers"]
    assert (receiver["sent"], receiver["lost"]) == (1, 1)
    assert (receiver["trouble"]["code"], receiver["trouble"]["number"]) == ("refused", 93000)


async def test_a_receiver_that_hangs_keeps_nobody_waiting(run: Run) -> None:
    never = asyncio.Event()

    class Deaf(Inbox):
        async def send(self, _event: Event) -> SendResult:
            await never.wait()
            return TAKEN

    run.notifier.apply(HOLD, [Deaf("deaf"), run.inbox])
    assert await run.after(310, GONE) == ["entered no-token"]


async def test_a_bug_in_a_receiver_harms_nobody(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.notify.notifier.AGAIN_AFTER_S", ())

    class Broken(Inbox):
        async def send(self, _event: Event) -> SendResult:
            raise ZeroDivisionError(CANARY)

    run.notifier.apply(HOLD, [Broken("broken"), run.inbox])
    assert await run.after(310, GONE) == ["entered no-token"]
    assert run.notifier.status()["receivers"][0]["trouble"]["code"] == "not-delivered"


async def test_what_waits_is_bounded_and_the_oldest_is_lost() -> None:
    line = Line(Inbox())
    for number in range(MOST_WAITING + 5):
        line.add(Event(StateChange.TEST, float(number)))
    assert (len(line.waiting), line.lost, line.waiting[0].at) == (MOST_WAITING, 5, 5.0)
