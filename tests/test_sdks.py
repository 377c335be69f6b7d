"""WeChat's SDKs, as deploy/sdk/README.md points them at the broker: real packages, a real daemon, the sandbox (wechat.md §6)."""

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import invariants
from tests.doubles import APPID, CANARY
from tests.processes import House
from tests.sdks.recipes import KEY, PAGE, Recipe, marked
from tests.sdks.running import running

RECIPES = marked()
PROXIED = [recipe for recipe in RECIPES if recipe.way == "proxy"]
WAYS = [recipe for recipe in RECIPES if recipe.way != "proxy"]
FOLLOWERS = 24
CROWD = 50
REPORTS_A_DAY = 3  # in these tests: what a token that stays dead may cost
WRONG = "a-key-that-nobody-has"
SIZE = 10_000_000
Count = Callable[[Recipe, str, House], int]

each = pytest.mark.parametrize("recipe", WAYS, ids=str)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    with house.sandboxed():
        key = tmp_path / "sdk.key"
        key.write_text(KEY)
        key.chmod(0o600)
        more = f'[compat]\nenabled = true\n[clients.sdk]\nkey_file = "{key}"\nscopes = ["read", "report"]\n'
        house.configure(policy=f"min_gap = 0.02\nverify_gap = 0.02\nreport_quota = {REPORTS_A_DAY}\n", more=more)
        with house.serving():
            yield house
            invariants.check(house)
        for log in tmp_path.glob("*.log"):
            assert KEY not in log.read_text()


@pytest.fixture(scope="module")
def count() -> Iterator[Count]:
    """Count the token calls of a case; printed as a table at the end, to be seen with `-s`."""
    figures: dict[str, dict[str, int]] = {}

    def note(recipe: Recipe, case: str, house: House) -> int:
        calls = len(house.calls())
        figures.setdefault(str(recipe), {})[case] = calls
        return calls

    yield note
    cases = list(dict.fromkeys(case for said in figures.values() for case in said))
    print("\n" + " | ".join(["token calls".ljust(24), *cases]))
    for name, said in figures.items():
        print(" | ".join([name.ljust(24), *(str(said.get(case, "-")).rjust(len(case)) for case in cases)]))


@each
def test_the_first_call_costs_one_token_call_and_the_second_none(recipe: Recipe, house: House, count: Count) -> None:
    with running(recipe, house) as sdk:
        assert [sdk.do("call"), sdk.do("call")] == [FOLLOWERS] * 2
    assert count(recipe, "two calls", house) == 1


@each
def test_fifty_services_at_a_cold_start_cost_one_token_call(recipe: Recipe, house: House, count: Count) -> None:
    with running(recipe, house) as sdk:
        assert sdk.do("crowd", CROWD) == [FOLLOWERS] * CROWD
    assert count(recipe, "fifty at once", house) == 1


@each
def test_the_next_call_after_somebody_killed_the_token_succeeds_with_one_refresh(
    recipe: Recipe, house: House, count: Count
) -> None:
    with running(recipe, house) as sdk:
        assert sdk.do("call") == FOLLOWERS
        house.control("/kill", {"appid": APPID})
        assert [sdk.do("call"), sdk.do("call")] == [FOLLOWERS] * 2
    assert count(recipe, "killed", house) == 2


@each
def test_a_call_that_is_refused_though_the_token_lives_ends_in_an_error_and_costs_nothing(
    recipe: Recipe, house: House, count: Count
) -> None:
    house.control("/faults", {"kind": "errcode", "errcode": 40001, "path": "/cgi-bin/user/get", "times": None})
    with running(recipe, house) as sdk:
        said = sdk.do("call")
    assert said["errcode"] in {40001, 45011}, said
    assert_clean(said["text"])
    assert count(recipe, "refused", house) == 1  # WeChat itself said that the token lives


@each
def test_a_token_that_stays_dead_ends_in_an_error_and_costs_no_more_than_reports_may(
    recipe: Recipe, house: House, count: Count
) -> None:
    for path in ("/cgi-bin/user/get", "/cgi-bin/get_api_domain_ip"):
        house.control("/faults", {"kind": "errcode", "errcode": 40001, "path": path, "times": None})
    with running(recipe, house) as sdk:
        said = sdk.do("call")
    assert said["errcode"] in {40001, 45011, 45009}, said
    assert_clean(said["text"])
    assert count(recipe, "stays dead", house) <= 1 + REPORTS_A_DAY
    assert [row["lane"] for row in house.ledger()][1:] == ["report"] * (len(house.ledger()) - 1)


@each
def test_a_wrong_key_is_wechats_40125_in_the_sdks_own_exception(recipe: Recipe, house: House) -> None:
    with running(recipe, house, key=WRONG) as sdk:
        said = sdk.do("call")
    assert said["errcode"] == 40125
    assert "invalid appsecret" in said["text"]
    assert said["kind"] in {"WeChatClientException", "ClientException", "WeChatAPIError"}
    assert_clean(said["text"])


def assert_clean(text: str) -> None:
    for secret in (CANARY, KEY, WRONG):
        assert secret not in text
