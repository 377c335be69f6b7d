"""kill -9 at each step of a refresh, on a real daemon.

Nothing is lost, nothing is spent twice, and a restart knows what happened.
"""

import contextlib
import http.client
import itertools
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from broker.store.sqlite.schema import MIGRATIONS
from tests.harness import invariants
from tests.harness.crashpoints import ForkedDaemon, ForkServer
from tests.harness.doubles import APPID
from tests.harness.processes import until

LIFETIME = 20  # of a token
OVERLAP = 5
MIN_GAP = 0.2
QUICK = (
    f"min_gap = {MIN_GAP}\nmax_backoff = 1\nverify_gap = 0.1\nmin_serve = 1\noverlap = {OVERLAP}\n"
)
EAGER = {
    "TOKEN_BROKER_POLICY__REFRESH_FRACTION": "0.01",
    "TOKEN_BROKER_POLICY__TICK": "0.05",
}  # due after 0.2 s

UNSPENT = ("reserve:asked", "reserve:begin", "reserve:commit")
SPENT = ("reserve:committed", "reserve:done", "reserve:returned", "call:asked")
LOST = ("call:returned", "settle:asked", "settle:begin", "settle:commit")
SETTLED = ("settle:committed", "settle:done", "settle:returned")
CLASSIC, STABLE = "token", "stable_token"


@pytest.fixture
def house(tmp_path: Path, forks: ForkServer, endpoint: str) -> Iterator[ForkedDaemon]:
    house = ForkedDaemon(tmp_path, fork_server=forks)
    with house.simulating("--expires-in", str(LIFETIME), "--overlap", str(OVERLAP)):
        house.configure(policy=QUICK, app=f'endpoint = "{endpoint}"')
        yield house


def at(steps: tuple[str, ...]) -> pytest.MarkDecorator:
    """Both endpoints.

    Each step is tried on the endpoint where it means most, the first and the last on the other one
    too.
    """
    cases = [(CLASSIC, step) for step in steps] + [(STABLE, steps[0]), (STABLE, steps[-1])]
    return pytest.mark.parametrize(("endpoint", "step"), cases)


@pytest.fixture
def endpoint() -> str:
    return CLASSIC


def kept(house: ForkedDaemon) -> dict[str, Any]:
    """A daemon fetched a token and was killed; what it served.

    It planned to replace the token soon, and did not come to it. A plan that was made holds for
    those who come after it, unless their policy moves it later.
    """
    with house.living(environ=EAGER | {"TOKEN_BROKER_POLICY__TICK": "300"}) as daemon:
        first = house.served()
        daemon.kill()
    return first


def killed_at(house: ForkedDaemon, step: str) -> None:
    """Another one, for which a refresh is due, died there."""
    house.control(
        "/advance", {"seconds": LIFETIME / 2 + 1}
    )  # the stable endpoint has another token to give
    with house.living(step, environ=EAGER) as daemon:
        assert daemon.ended() == -9


def replaced(house: ForkedDaemon, first: dict[str, Any]) -> dict[str, Any]:
    """The first answer with another token."""
    token: dict[str, Any] = until(
        lambda: (it := house.served())["version"] != first["version"] and it, "another token"
    )
    assert token["state"] == "fresh"
    return token


@at(UNSPENT)
def test_killed_before_the_reservation_is_committed_nothing_has_happened(
    house: ForkedDaemon, endpoint: str, step: str
) -> None:
    first = kept(house)
    killed_at(house, step)
    assert (house.outcomes(), len(house.calls())) == (["minted"], 1)
    with house.living():
        again = house.served()
    assert (again["version"], again["state"]) == (first["version"], "fresh")
    assert (len(house.calls()), endpoint) == (1, house.ledger()[0]["endpoint"])
    invariants.check(house, [first, again])


@at(SPENT)
def test_killed_between_reservation_and_call_it_counts_as_spent_and_the_token_goes_on(
    house: ForkedDaemon, endpoint: str, step: str
) -> None:
    first = kept(house)
    killed_at(house, step)
    assert (house.outcomes(), len(house.calls())) == (["minted", None], 1)
    doubted(house, endpoint, first)


@at(LOST)
def test_killed_before_the_answer_is_stored_the_old_token_is_in_doubt_and_replaced_once(
    house: ForkedDaemon, endpoint: str, step: str
) -> None:
    first = kept(house)
    killed_at(house, step)
    assert (house.outcomes(), len(house.calls())) == (["minted", None], 2)
    doubted(house, endpoint, first)


def doubted(house: ForkedDaemon, endpoint: str, first: dict[str, Any]) -> None:
    """A restart serves the stored token on, and makes one call.

    The call is not made at once, but well within the overlap.
    """
    before = len(house.calls())
    house.control(
        "/hold", {"appid": APPID}
    )  # so that the first answer comes before the next call's
    with house.living():
        again = house.served()
        assert again["version"] == first["version"]
        house.control("/release", {"appid": APPID})
        if endpoint == CLASSIC:
            assert again["state"] == "suspect"
            assert again["expires_in"] <= OVERLAP
            last = replaced(house, first)
            assert [line["verdict"] for line in house.said("checked")] == ["alive"]
        else:
            assert again["state"] == "fresh"
            last = again
    one_call_later(house, before, 1 if endpoint == CLASSIC else 0)
    invariants.check(house, [first, again, last])


def one_call_later(house: ForkedDaemon, before: int, calls: int) -> None:
    ledger = house.ledger()
    assert len(house.calls()) == before + calls
    assert [row["outcome"] for row in ledger] == ["minted", None, *["minted"] * calls]
    if calls:
        assert MIN_GAP <= ledger[2]["boot_at"] - ledger[1]["boot_at"] < OVERLAP


@at(SETTLED)
def test_killed_before_the_new_token_is_published_the_restart_serves_it(
    house: ForkedDaemon, endpoint: str, step: str
) -> None:
    first = kept(house)
    killed_at(house, step)
    assert (house.outcomes(), len(house.calls())) == (["minted", "minted"], 2)
    with house.living():
        again = house.served()
    assert again["version"] == f"{first['version'].split('-')[0]}-2"
    assert again["access_token"] != first["access_token"]
    assert (again["state"], endpoint) == ("fresh", house.ledger()[1]["endpoint"])
    assert len(house.calls()) == 2
    invariants.check(house, [first, again])


DOUBTING = (
    "amend:begin",
    "amend:commit",
    "amend:committed",
    "amend:returned",
    "check:asked",
    "check:returned",
)


@pytest.mark.parametrize("step", DOUBTING)
def test_killed_while_a_doubt_is_looked_into_the_token_is_still_replaced_once(
    house: ForkedDaemon, step: str
) -> None:
    first = kept(house)
    house.control("/faults", {"kind": "drop", "mint": True})
    killed_at(house, step)
    assert house.outcomes() == ["minted", "lost"]
    with house.living():
        last = replaced(house, first)
        assert house.get("/v1/status")[1]["apps"][0]["second_issuer"]["count"] == 0
    assert house.outcomes() == ["minted", "lost", "minted"]
    assert len(house.calls()) == 3
    invariants.check(house, [first, last])


@pytest.mark.parametrize(
    "step",
    [
        "load:begin",
        "load:commit",
        "load:committed",
        "amend:begin",
        "amend:commit",
        "amend:committed",
    ],
)
def test_killed_again_while_a_crash_is_being_understood_it_is_understood_later(
    house: ForkedDaemon, step: str
) -> None:
    first = kept(house)
    killed_at(house, "call:returned")
    for _ in range(3):
        with house.living(step) as daemon:
            assert daemon.ended() == -9
        assert (house.outcomes(), len(house.calls())) == (["minted", None], 2)
        if step == "amend:committed":  # then it is done: the next start has nothing to close
            break
    doubted(house, CLASSIC, first)


# --- the file itself ------------------------------------------------------------------------------

OURS = len(MIGRATIONS)  # two more steps are added to it
TABLES = {"meta", "accounts", "calls", "handouts", "documents"}
SHAPES = {
    OURS: (TABLES, False),
    OURS + 1: (TABLES | {"second"}, True),
    OURS + 2: (TABLES | {"third"}, True),
}


def version_of(store: Path) -> int:
    """The schema's version; the file is whole, and its shape is that version's and no other's."""
    with closing(sqlite3.connect(store)) as db:
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
        version = int(db.execute("pragma user_version").fetchone()[0])
        tables = {
            row[0]
            for row in db.execute(
                "select name from sqlite_master where type = 'table' and name not like 'sqlite%'"
            )
        }
        noted = "note" in {row[1] for row in db.execute("pragma table_info(calls)")}
        assert (tables, noted) == SHAPES[version]
        if noted:
            assert db.execute("select count(*) from calls where note is null").fetchone() == (0,)
    return version


def test_killed_before_any_statement_of_a_migration_the_schema_is_old_or_new_and_never_half(
    house: ForkedDaemon,
) -> None:
    first = kept(house)
    original = house.home / "original"
    shutil.copytree(
        house.home,
        original,
        ignore=lambda _, names: {name for name in names if not name.startswith("broker.db")},
    )
    seen = []
    for nth in itertools.count(1):
        for part in original.iterdir():
            shutil.copy(part, house.home)
        with house.living("open:statement", nth, "migrating") as daemon:
            assert daemon.ended() == -9
        seen.append(version_of(house.store))
        with house.living(wiring="migrating"):
            again = house.served()
        assert again["version"] == first["version"]
        assert version_of(house.store) == OURS + 2
        if seen[-1] == OURS + 2:
            break
    assert seen == sorted(seen)
    assert set(seen) == set(SHAPES)
    assert len(seen) > 12  # statements, each of which was the last one
    assert len(house.calls()) == 1


def a_checkpoint_begins(done: Path, after: str) -> bool:
    now = done.read_text()
    return now[:9] != after and now.endswith("1")


def test_killed_during_a_checkpoint_the_file_is_whole_and_holds_all_that_was_committed(
    house: ForkedDaemon,
) -> None:
    done, within = Path(f"{house.store}.done"), 0
    done.touch()
    for life in range(30):
        with house.living(wiring="hammering", patient=False) as daemon:
            until(partial(a_checkpoint_begins, done, done.read_text()[:9]), "a checkpoint begins")
            daemon.kill()
        settled, checkpointing = map(int, done.read_text().split())
        within += checkpointing
        rows = [row["outcome"] for row in house.ledger()]
        assert rows.count("minted") >= settled > life
        with closing(sqlite3.connect(house.store)) as db:
            assert db.execute("pragma integrity_check").fetchone() == ("ok",)
        if within == 6:
            break
    assert within == 6, "the kills missed what they were meant for"
    with house.living():
        assert house.served()["access_token"] == "x" * 512
    assert house.said("store-set-aside") == []


@pytest.mark.parametrize("endpoint", [STABLE])
@pytest.mark.parametrize("step", ["call:returned", "settle:commit"])
def test_killed_during_a_forced_call_the_token_that_it_killed_is_not_served_again(
    house: ForkedDaemon, step: str
) -> None:
    first = kept(house)
    with house.living(step) as daemon:
        ordering = threading.Thread(target=order_force, args=[house])
        ordering.start()
        assert daemon.ended() == -9
        ordering.join()
    assert (house.outcomes(), house.ledger()[-1]["forced"]) == (["minted", None], 1)
    with house.living():
        status, problem = house.get("/v1/tokens/main")
        assert status == 503
        assert problem["code"] in {
            "upstream-unavailable",
            "quota-exhausted",
        }  # before and after the ledger was asked
    assert len(house.calls()) == 2  # forced calls have a gap of their own
    invariants.check(house, [first])


def order_force(house: ForkedDaemon) -> None:
    """Order another token until the daemon is gone.

    The first order that min_gap allows is carried out.
    """
    with contextlib.suppress(OSError, http.client.HTTPException):
        while True:
            house.post("/v1/tokens/main/refresh", {"force": True})
