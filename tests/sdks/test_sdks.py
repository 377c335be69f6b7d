"""WeChat's SDKs, as deploy/sdk/README.md points them at the broker (WECHAT.md W88 to W94).

The packages, the daemon and the sandbox are real.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from broker.config.load import load
from tests.harness import invariants
from tests.harness.crashpoints import ForkedDaemon, ForkServer
from tests.harness.doubles import APPID, CANARY
from tests.harness.processes import ask, until
from tests.sdks.recipes import KEY, PAGE, Recipe, chapters, is_told, marked, runnable, sections
from tests.sdks.running import running

ALL = [recipe for recipe in marked() if "login" not in recipe.way]
RECIPES = [recipe for recipe in ALL if recipe.way in {"adapter", "drop-in", "proxy"}]
PROXIED = [recipe for recipe in RECIPES if recipe.way == "proxy"]
FOLLOWERS = 24
CROWD = 50
ESTABLISHED = "01"  # in /proc/net/tcp
REPORTS_A_DAY = 3  # in these tests: what a token that stays dead may cost
WRONG, OPS = "a-key-that-nobody-has", "the-key-of-who-looks-on"
SIZE = 10_000_000
MOST_REQUESTS = 1010  # for tokens, of one call that is refused for ever: Python's recursion limit
POLICY = f"min_gap = 0.02\nverify_gap = 0.02\nreport_quota = {REPORTS_A_DAY}\n"
CLIENTS = """
[compat]
enabled = true

[proxy]
enabled = true

[clients.sdk]
key_file = "{key}"
scopes = {scopes}

[clients.ops]
key_sha256 = "{ops}"
"""
REFUSED = {"kind": "errcode", "errcode": 40001, "path": "/cgi-bin/user/get", "times": None}
EXCEPTIONS = {  # the SDKs' own
    "APILimitedException",
    "WeChatClientException",
    "ClientException",
    "WeChatAPIError",
}
Count = Callable[[Recipe, str, int], int]


each = pytest.mark.parametrize("recipe", runnable(RECIPES))


@pytest.fixture
def unserved(
    request: pytest.FixtureRequest, tmp_path: Path, forks: ForkServer
) -> Iterator[ForkedDaemon]:
    """A broker with one client, not started yet.

    The client may use the proxy if its recipe does.
    """
    scopes = '["proxy"]' if request.getfixturevalue("recipe") in PROXIED else '["read", "report"]'
    house = ForkedDaemon(tmp_path, fork_server=forks)
    with house.simulating():
        key = tmp_path / "sdk.key"
        key.write_text(KEY)
        key.chmod(0o600)
        ops = hashlib.sha256(OPS.encode()).hexdigest()
        house.configure(policy=POLICY, more=CLIENTS.format(key=key, scopes=scopes, ops=ops))
        yield house
        for log in tmp_path.glob("*.log"):
            assert KEY not in log.read_text()


@pytest.fixture
def house(unserved: ForkedDaemon) -> Iterator[ForkedDaemon]:
    """The broker, serving."""
    with unserved.living():
        yield unserved
        invariants.check(unserved)


@pytest.fixture(scope="module")
def count() -> Iterator[Count]:
    """Note the token calls of a case; printed as a table at the end, to be seen with `-s`."""
    figures: dict[str, dict[str, int]] = {}

    def note(recipe: Recipe, case: str, number: int) -> int:
        figures.setdefault(str(recipe), {})[case] = number
        return number

    yield note
    cases = list(dict.fromkeys(case for said in figures.values() for case in said))
    print("\n" + " | ".join(["token calls".ljust(24), *cases]))
    for name, said in figures.items():
        print(
            " | ".join(
                [name.ljust(24), *(str(said.get(case, "-")).rjust(len(case)) for case in cases)]
            )
        )


@each
def test_the_first_call_costs_one_token_call_and_the_second_none(
    recipe: Recipe, house: ForkedDaemon, count: Count
) -> None:
    with running(recipe, house) as sdk:
        assert [sdk.do("call"), sdk.do("call")] == [FOLLOWERS] * 2
    assert count(recipe, "two calls", len(house.calls())) == 1


@each
def test_fifty_services_at_a_cold_start_cost_one_token_call(
    recipe: Recipe, unserved: ForkedDaemon, count: Count
) -> None:
    house = unserved
    house.control("/hold", {"appid": APPID})
    with house.living(), running(recipe, house) as sdk:
        sdk.tell("crowd", CROWD)
        until(lambda: connections_to(house) >= CROWD, "all have asked, and there is no token yet")
        house.control("/release", {"appid": APPID})
        assert sdk.hear() == [FOLLOWERS] * CROWD
        invariants.check(house)
    assert count(recipe, "fifty at once", len(house.calls())) == 1


def connections_to(house: ForkedDaemon) -> int:
    """How many TCP connections the broker has."""
    port = f":{int(house.daemon.rpartition(':')[2]):04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(
        local.endswith(port) and state == ESTABLISHED
        for _, local, _, state, *_ in map(str.split, lines)
    )


@each
def test_the_next_call_after_somebody_killed_the_token_succeeds_with_one_refresh(
    recipe: Recipe, house: ForkedDaemon, count: Count
) -> None:
    with running(recipe, house) as sdk:
        assert sdk.do("call") == FOLLOWERS
        house.control("/kill", {"appid": APPID})
        assert [sdk.do("call"), sdk.do("call")] == [FOLLOWERS] * 2
    assert count(recipe, "killed", len(house.calls())) == 2


@each
def test_a_call_that_is_refused_though_the_token_lives_ends_in_an_error_and_costs_nothing(
    recipe: Recipe, house: ForkedDaemon, count: Count
) -> None:
    with running(recipe, house) as sdk:
        assert sdk.do("call") == FOLLOWERS
        house.control("/faults", REFUSED)
        assert_refused(sdk.do("call"))
        assert count(recipe, "refused: asked us", requests_of(house)) <= MOST_REQUESTS
        ask("DELETE", f"{house.sandbox}/sandbox/faults")
        assert sdk.do("call") == FOLLOWERS
    assert (
        count(recipe, "refused", len(house.calls())) == 1
    )  # WeChat itself said that the token lives


@each
def test_a_token_that_stays_dead_ends_in_an_error_and_costs_no_more_than_reports_may(
    recipe: Recipe, house: ForkedDaemon, count: Count
) -> None:
    with running(recipe, house) as sdk:
        assert sdk.do("call") == FOLLOWERS
        house.control("/faults", REFUSED)
        house.control("/faults", {**REFUSED, "path": "/cgi-bin/get_api_domain_ip"})
        for _ in range(2 * REPORTS_A_DAY):
            assert_refused(sdk.do("call"))
    assert 1 < count(recipe, "stays dead", len(house.calls())) <= 1 + REPORTS_A_DAY
    assert [row["lane"] for row in house.ledger()][1:] == ["report"] * (len(house.ledger()) - 1)


@each
def test_a_wrong_key_is_wechats_40125_in_the_sdks_own_exception(
    recipe: Recipe, house: ForkedDaemon
) -> None:
    with running(recipe, house, key=WRONG) as sdk:
        said = sdk.do("call")
    assert said["errcode"] == 40125
    assert "invalid appsecret" in said["text"]
    assert said["kind"] in EXCEPTIONS
    assert_clean(said["text"])


@each
def test_an_upload_that_meets_a_killed_token_arrives_whole_or_fails_and_then_arrives(
    recipe: Recipe, house: ForkedDaemon, count: Count, tmp_path: Path
) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(bytes(1000))
    with running(recipe, house) as sdk:
        assert sdk.do("call") == FOLLOWERS
        house.control("/kill", {"appid": APPID})
        said = sdk.do("upload", str(picture))
        if isinstance(said, dict):
            assert said["errcode"] == 40001
            assert_refused(said)
            said = sdk.do("upload", str(picture))
        assert {
            media_id: media["size"] for media_id, media in house.control("")["media"].items()
        } == {said: 1000}
    assert count(recipe, "killed, upload", len(house.calls())) == 2


@pytest.mark.parametrize("recipe", runnable(PROXIED))
def test_ten_megabytes_go_up_and_down_through_the_proxy(
    recipe: Recipe, house: ForkedDaemon, count: Count, tmp_path: Path
) -> None:
    content = (bytes(range(251)) * (SIZE // 251 + 1))[:SIZE]  # what the sandbox gives back, too
    (tmp_path / "picture.png").write_bytes(content)
    as_sent = {"size": SIZE, "sha256": hashlib.sha256(content).hexdigest()}
    with running(recipe, house) as sdk:
        media_id = sdk.do("upload", str(tmp_path / "picture.png"))
        assert sdk.do("download", media_id) == as_sent
    assert house.control("")["media"] == {media_id: {"type": "image", **as_sent}}
    assert count(recipe, "10 MB", len(house.calls())) == 1


@pytest.mark.parametrize(
    "recipe", [recipe for recipe in RECIPES if recipe.sdk == "wechatpy"], ids=str
)
def test_wechatpys_ticket_lives_on_when_the_token_dies(recipe: Recipe, house: ForkedDaemon) -> None:
    with running(recipe, house) as sdk:
        ticket = sdk.do("ticket")
        house.control("/kill", {"appid": APPID})
        assert [sdk.do("call"), sdk.do("ticket")] == [FOLLOWERS, ticket]
    kept = house.get("/v1/tickets/main/jsapi", Authorization=f"Bearer {OPS}")[1]["ticket"]
    assert kept == ticket
    assert len(house.calls()) == 2


# --- the page -------------------------------------------------------------------------------------

NAMES = (
    "wechatpy|WeRoBot|co-wechat-api|wechat-api|node-easywechat|wechat-jssdk|EasyWeChat|WxJava"
    "|silenceper/wechat|PowerWeChat|chanxuehong/wechat|Senparc.Weixin|wechatpy-enterprise|onepush"
    "|Alertmanager"
)
TOKENS, _ = chapters()
SECTIONS = sections(TOKENS)


def test_the_page_has_a_recipe_for_each_sdk() -> None:
    assert sorted(name for name, _ in SECTIONS) == sorted(NAMES.split("|"))
    assert all("```" in text for _, text in SECTIONS)


@pytest.mark.parametrize(("name", "text"), SECTIONS, ids=NAMES.split("|"))
def test_a_recipe_says_whether_it_is_run_and_tells_the_truth(name: str, text: str) -> None:
    assert is_told(ALL, name, text)


def test_the_configuration_on_the_page_is_accepted(tmp_path: Path) -> None:
    (shown,) = re.findall(r"^```toml\n(.*?)^```", TOKENS, re.MULTILINE | re.DOTALL)
    for name in ("main.secret", "orders.key"):
        (tmp_path / name).write_text(KEY)
        (tmp_path / name).chmod(0o600)
    app = f'[apps.main]\nappid = "{APPID}"\nsecret_file = "{tmp_path}/main.secret"\n'
    config = tmp_path / "config.toml"
    config.write_text(app + shown.replace("/etc/token-broker", str(tmp_path)))
    settings = load(config, {})
    assert settings.compat
    assert settings.proxy.enabled


def test_the_versions_on_the_page_are_those_that_run() -> None:
    text, lock = (
        PAGE.read_text(),
        json.loads((PAGE.parents[2] / "tests" / "package-lock.json").read_text())["packages"],
    )
    for name in ("co-wechat-api", "wechat-api", "co-wechat-oauth", "wechat-oauth", "wechat-jssdk"):
        assert f"{name}) {lock[f'node_modules/{name}']['version']}." in text
    easywechat, socialite = (
        lock[f"node_modules/{name}"]["version"] for name in ("node-easywechat", "node-socialite")
    )
    assert f"node-easywechat) {easywechat}, with node-socialite {socialite} exactly." in text
    for name in ("wechatpy", "WeRoBot", "onepush"):
        assert f"{name}) {metadata.version(name)}." in text


def requests_of(house: ForkedDaemon) -> int:
    """How often the SDK has asked the broker for a token, or reported one."""
    lines = str(ask("GET", house.daemon + "/metrics")[1]).splitlines()
    asked = [
        line
        for line in lines
        if re.match(r'token_broker_http_requests_total{.*route="/(v1/|.*cgi-bin/)', line)
    ]
    assert asked
    return int(sum(float(line.split()[-1]) for line in asked))


def assert_refused(said: Any) -> None:
    """WeChat's refusal in the SDK's own exception; or wechatpy's recursion, which has no other end.

    It costs the broker no token call (WECHAT.md W93).
    """
    if said["kind"] == "RecursionError":
        return
    assert said["errcode"] in {
        40001,
        45009,
        45011,
        -1,
    }, said  # WeChat's, reports spent, a client that loops, no token
    assert said["kind"] in EXCEPTIONS
    assert_clean(said["text"])


def assert_clean(text: str) -> None:
    for secret in (CANARY, KEY, WRONG):
        assert secret not in text
