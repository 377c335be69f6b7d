"""`token-broker migrate`: to another store and back, with the token and the ledger.

Nobody runs meanwhile.
"""

import json
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from broker.core.credential import Account, Credential, Endpoint
from broker.core.ports import Claim, Grant, StoreError, StoreRefused
from broker.core.quota import Lane
from broker.store.encryption import Plain, Seal, Sealed
from broker.store.postgres.store import PostgresStore
from broker.store.sqlite.store import SqliteStore
from broker.store.transfer import AccountExport, Movable, move
from broker.tokens.keeper import Keeper
from tests.harness.doubles import ACCOUNT, CANARY, DOWN, Bench, looked, value_of
from tests.harness.processes import House, run, until

CRM = replace(ACCOUNT, name="crm", appid="ww01", endpoint=Endpoint.WECOM)
TICKET = replace(ACCOUNT, name="main/jsapi", endpoint=Endpoint.JSAPI)
SECONDS = 0.5  # two clocks go over each instant


@asynccontextmanager
async def file(bench: Bench, name: str, seal: Seal | None = None) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(bench.path.parent / name, bench.clock, seal or Plain())
    yield store
    await store.close()


@asynccontextmanager
async def moved_into(bench: Bench, database: str) -> AsyncIterator[PostgresStore]:
    store = await PostgresStore.open(database, bench.clock, alone=True)
    yield store
    await store.close()


async def lived_in(bench: Bench, store: SqliteStore, *accounts: Account) -> list[Keeper]:
    """Some hours on that store, with refreshes, failures and reports."""
    bench.store = store
    keepers = [await bench.keeper(account) for account in accounts]
    for hours in range(3):
        for keeper in keepers:
            bench.wechat.answers.extend([DOWN] if hours == 1 else [])
            await looked(keeper)
            bench.clock.pass_(60)
            await looked(keeper)
        bench.clock.pass_(4000)
    bench.store = None
    return keepers


async def spent(store: Movable, account: Account) -> list[tuple[object, ...]]:
    return [
        (row["lane"], row["forced"], row["cost"], row["outcome"])
        for row in await store.history(0, account)
    ]


async def test_everything_goes_to_the_database_and_versions_go_on(
    bench: Bench, database: str
) -> None:
    async with file(bench, "a.db") as source, moved_into(bench, database) as target:
        keepers = await lived_in(bench, source, ACCOUNT, CRM, TICKET)
        accounts, calls = await move(source, target)
        assert accounts == 3
        assert (
            calls
            == sum([len(await source.history(0, account)) for account in (ACCOUNT, CRM, TICKET)])
            >= 9
        )
        for account, keeper in zip((ACCOUNT, CRM, TICKET), keepers, strict=True):
            before, after = keeper.credential, (await target.load(account)).credential
            assert (after.version, after.failures, after.fingerprint) == (
                before.version,
                before.failures,
                before.fingerprint,
            )
            assert after.token is not None and before.token is not None  # noqa: PT018
            assert after.token.value == before.token.value
            assert after.token.expires_at == pytest.approx(before.token.expires_at, abs=SECONDS)
            assert after.called_at == pytest.approx(before.called_at, abs=SECONDS)
            assert await spent(target, account) == await spent(source, account)


async def test_and_back_into_a_file_with_an_epoch_of_its_own(bench: Bench, database: str) -> None:
    async with (
        file(bench, "a.db") as source,
        moved_into(bench, database) as target,
        file(bench, "b.db") as home,
    ):
        keeper, _ = await lived_in(bench, source, ACCOUNT, CRM)
        await move(source, target)
        await move(target, home)
        held = await home.load(ACCOUNT)
        assert await spent(home, ACCOUNT) == await spent(source, ACCOUNT)
        assert held.credential.token is not None
        assert held.credential.version != keeper.credential.version
        ids = [row["id"] for row in await home.history(0, ACCOUNT)]
        assert held.credential.token.call in ids
    bench.path = bench.path.parent / "b.db"
    again = await bench.keeper()
    assert value_of(again) == value_of(keeper)
    assert again.usage() == keeper.usage()
    bench.clock.pass_(3000)
    await looked(again)
    assert again.credential.token is not None
    assert again.credential.token.call > max(ids)


async def test_done_again_it_does_nothing_and_what_was_used_since_is_not_overwritten(
    bench: Bench, database: str
) -> None:
    async with file(bench, "a.db") as source, moved_into(bench, database) as target:
        await lived_in(bench, source, ACCOUNT)
        first = await move(source, target)
        held = await target.load(ACCOUNT)
        assert await move(source, target) == first
        assert (await target.load(ACCOUNT)).credential.version == held.credential.version
        assert await spent(target, ACCOUNT) == await spent(source, ACCOUNT)
        bench.store = source
        bench.clock.pass_(4000)
        await looked(await bench.keeper())  # somebody went on with the old one
        bench.store = None
        with pytest.raises(StoreRefused, match="other than those of --from"):
            await move(source, target)


@pytest.mark.parametrize("seed", range(20))
async def test_what_was_moved_is_recognised_though_the_wall_was_set_back_between_calls(
    bench: Bench, seed: int
) -> None:
    """A file lists calls by their numbers, a database by their times: here those are two orders."""
    steps = random.Random(seed)
    async with file(bench, "a.db") as source:
        for _ in range(12):
            claim = Claim(steps.choice(list(Lane)))
            grant = await source.reserve(ACCOUNT, lambda *_, claim=claim: claim)
            assert isinstance(grant, Grant)
            outcome = steps.choice(["minted", "lost", "errcode 45009"])
            await source.settle(ACCOUNT, grant, outcome, lambda *_: None)
            bench.clock.pass_(60)
            bench.clock.unix -= steps.choice([0, 0, 500, 7200])
        calls = await source.history(0, ACCOUNT)
    moved = [{**call, "wall_at": call["wall_at"] + 0.3} for call in calls]
    by_time = sorted(moved, key=lambda call: (call["wall_at"], call["id"]))
    one, other = (AccountExport(ACCOUNT, Credential(), them) for them in (calls, by_time))
    assert one.is_like(other)
    assert other.is_like(one)
    by_time[5] = {**by_time[5], "cost": 2}
    assert not one.is_like(other)


async def test_where_it_fails_half_way_nothing_has_moved(bench: Bench, database: str) -> None:
    async with (
        file(bench, "a.db") as source,
        moved_into(bench, database) as target,
        file(bench, "b.db") as another,
    ):
        await lived_in(bench, source, ACCOUNT, CRM)

        class Broken:
            """A source whose last call is of a cost that no table takes."""

            accounts, load = source.accounts, source.load

            async def history(self, since: float, account: Account) -> list[dict[str, object]]:
                rows = await source.history(since, account)
                return (
                    [*rows[:-1], {**rows[-1], "cost": "many"}]
                    if account.endpoint is Endpoint.WECOM
                    else rows
                )

            import_accounts = source.import_accounts

        for store in (target, another):
            with pytest.raises(StoreError):
                await move(Broken(), store)
            assert await store.accounts() == []
            assert await store.history(0, ACCOUNT) == []


async def test_a_sealed_token_needs_its_key_and_keeps_its_seal(bench: Bench) -> None:
    key = Sealed("a key of some length")
    async with file(bench, "a.db", key) as source, file(bench, "b.db", key) as target:
        (keeper,) = await lived_in(bench, source, ACCOUNT)
        await move(source, target)
        assert (await target.load(ACCOUNT)).credential.token is not None
    async with file(bench, "b.db") as source, file(bench, "c.db") as target:
        for _ in range(2):  # and the token stays where it is
            with pytest.raises(StoreRefused, match="sealed"):
                await move(source, target)
    async with file(bench, "b.db", key) as source:
        assert (await source.load(ACCOUNT)).credential.token is not None
    assert (value_of(keeper) or "?").encode() not in (bench.path.parent / "b.db").read_bytes()


async def test_a_spent_lane_stays_spent(bench: Bench, database: str) -> None:
    async with file(bench, "a.db") as source, moved_into(bench, database) as target:
        (keeper,) = await lived_in(bench, source, ACCOUNT)
        await move(source, target)
        entries = (await target.load(ACCOUNT)).entries
        assert len(entries) == keeper.usage().last_24h
        assert {entry.lane for entry in entries} == {Lane.SCHEDULED}


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def migrated(tmp_path: Path, database: str) -> tuple[House, str, Callable[..., tuple[int, str]]]:
    house = House(tmp_path)

    def command(source: str, target: str, *more: str) -> tuple[int, str]:
        done = run("migrate", "--from", source, "--to", target, *more)
        return done.returncode, done.stdout + done.stderr

    return house, database, command


def test_a_daemon_goes_on_in_the_database_with_the_same_token_and_back(
    migrated: tuple[House, str, Callable[..., tuple[int, str]]],
) -> None:
    house, database, migrate = migrated
    with house.sandboxed():
        house.configure()
        url = f"sqlite://{house.store}"
        with house.serving() as daemon:
            until(lambda: house.get("/readyz")[0] == 200, "ready")
            first = house.get("/v1/tokens/main")[1]
            assert migrate(url, database)[0] == 75  # it runs
            daemon.end()
        code, said = migrate(url, database)
        assert (code, "moved: 1 account(s), 1 call(s)" in said, CANARY in said) == (0, True, False)
        with house.serving(TOKEN_BROKER_STORE__URL=database) as daemon:
            there = house.get("/v1/tokens/main")[1]
            assert (there["access_token"], there["version"]) == (
                first["access_token"],
                first["version"],
            )
            assert house.get("/v1/status")[1]["apps"][0]["quota"]["used_24h"] == 1
            code, said = migrate(database, url)
            assert code == 75
            assert "Stop the brokers" in said
            daemon.end()
        back = f"sqlite://{house.home}/back.db"
        assert migrate(database, back)[0] == 0
        with house.serving(TOKEN_BROKER_STORE__URL=back):
            assert house.get("/v1/tokens/main")[1]["access_token"] == first["access_token"]
        assert len(house.calls()) == 1


@pytest.mark.parametrize(
    ("source", "target", "complaint"),
    [
        ("mysql://x", "sqlite:///tmp/x.db", '--from: must be "sqlite:///"'),
        ("sqlite:///tmp/x.db", "postgresql://u:secret@h/d", "--to: holds a password"),
        ("sqlite:///tmp/x.db", "sqlite:///tmp/x.db", "--to: is the store to leave"),
        ("sqlite:///nowhere/x.db", "sqlite:///tmp/x.db", "--from: there is no such file"),
    ],
)
def test_what_cannot_be_is_said_with_the_option(source: str, target: str, complaint: str) -> None:
    done = run("migrate", "--from", source, "--to", target)
    assert done.returncode == 78
    assert complaint in done.stderr
    assert "secret" not in done.stderr
    assert not os.path.lexists("/tmp/x.db")  # noqa: S108
    assert "Traceback" not in json.dumps(done.stderr)
