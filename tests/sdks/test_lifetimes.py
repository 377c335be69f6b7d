"""SDKs over several lifetimes of a token, alone and as fleets, by the recipes of the page.

Lifetimes are short: 10 seconds, of which the previous token has 4. What an SDK keeps must be good
for as long as it was told (SCENARIOS.md 49), and a fleet behind one key must find no limit (52).
"""

import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness.crashpoints import ForkedDaemon, ForkServer
from tests.harness.doubles import CANARY
from tests.harness.processes import ask, until
from tests.harness.tools import path_of
from tests.sdks.recipes import KEY, Recipe, marked
from tests.sdks.running import running

CORPID, FOLLOWERS, FLEET = "ww0123456789abcdef", 24, 150
OPS = "the-key-of-who-looks-on"
LIFETIME = ("--expires-in", "10", "--overlap", "4")
POLICY = "overlap = 4\nmin_gap = 0.2\nmin_serve = 1\nverify_gap = 0.2\n"
KEPT = [it for it in marked() if it.way in {"adapter", "drop-in", "kept", "tickets"}]
PROXIED = [it for it in marked() if it.way in {"proxy", "by-proxy"}]
WECOM = {it.sdk: it for it in marked() if it.way == "wecom"}
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
COMPANY = f"""
[apps.corp]
appid = "{CORPID}"
secret = "{CANARY}-corpsecret"
endpoint = "wecom"
"""
NODE = pytest.mark.needs("node", *{it.sdk for it in (*KEPT, *PROXIED) if it.language == "js"})


@contextmanager
def serving(home: Path, forks: ForkServer, scopes: str, more: str = "") -> Iterator[ForkedDaemon]:
    house = ForkedDaemon(home, fork_server=forks)
    with house.simulating(*LIFETIME):
        key = home / "sdk.key"
        key.write_text(KEY)
        key.chmod(0o600)
        ops = hashlib.sha256(OPS.encode()).hexdigest()
        if more:
            more += f'[wecom]\napi_base = "{house.sandbox}"\n'
        clients = CLIENTS.format(key=key, scopes=scopes, ops=ops)
        house.configure(policy=POLICY, more=clients + more).chmod(0o600)
        with house.living():
            yield house


def held(house: ForkedDaemon) -> str:
    answer = house.get("/v1/tokens/main", Authorization=f"Bearer {OPS}")[1]
    return str(answer["access_token"])


def is_refused(house: ForkedDaemon, token: str) -> bool:
    url = f"{house.sandbox}/cgi-bin/get_api_domain_ip?access_token={token}"
    return "errcode" in ask("GET", url)[1]


def assert_good(house: ForkedDaemon, recipe: Recipe, answer: Any) -> None:
    if recipe.way == "tickets":
        assert not is_refused(house, answer["token"])
        mine = {"Authorization": f"Bearer {OPS}"}
        ticket = house.get("/v1/tickets/main/jsapi", **mine)[1]["ticket"]
        assert answer["ticket"] == ticket
    else:
        assert answer == FOLLOWERS, f"{recipe}: {answer}"


def moments(house: ForkedDaemon) -> Iterator[str]:
    """When to call: at first; and twice, when another token has come and when the one before dies.

    Whoever keeps a token beyond its promise is refused then.
    """
    yield "at first"
    for number in ("first", "second"):
        before = held(house)
        until(lambda before=before: held(house) != before, f"the {number} is replaced")  # type: ignore[misc]
        yield f"after the {number} was replaced"
        until(lambda before=before: is_refused(house, before), f"the {number} is dead")  # type: ignore[misc]
        yield f"when the {number} is dead"


@NODE
@pytest.mark.parametrize(
    ("recipes", "scopes"),
    [(KEPT, '["read", "report"]'), (PROXIED, '["proxy"]')],
    ids=["with tokens", "by the proxy"],
)
def test_over_two_refreshes_no_sdk_is_refused(
    recipes: list[Recipe], scopes: str, tmp_path: Path, forks: ForkServer
) -> None:
    with serving(tmp_path, forks, scopes) as house, ExitStack() as sdks:
        running_ = [(it, sdks.enter_context(running(it, house))) for it in recipes]
        for moment in moments(house):
            for _, sdk in running_:
                sdk.tell("call")
            answers = [(recipe, sdk.hear()) for recipe, sdk in running_]
            print(moment, [str(recipe) for recipe, _ in answers])
            for recipe, answer in answers:
                assert_good(house, recipe, answer)
        assert len(house.calls()) >= 3
        assert '"status="429' not in str(ask("GET", house.daemon + "/metrics")[1])


def fleet_of(recipe: Recipe) -> Any:
    """A recipe as a parameter. The first of each language runs with every push."""
    marks = [pytest.mark.needs("node", recipe.sdk)] if recipe.language == "js" else []
    is_first = recipe.sdk in {"node-easywechat", "werobot"}
    return pytest.param(
        recipe, id=str(recipe), marks=marks if is_first else [*marks, pytest.mark.soak]
    )


@pytest.mark.parametrize("recipe", [fleet_of(it) for it in KEPT if it.way in {"drop-in", "kept"}])
def test_a_fleet_behind_one_key_is_served_at_the_start_and_after_a_refresh(
    recipe: Recipe, tmp_path: Path, forks: ForkServer
) -> None:
    with serving(tmp_path, forks, '["read", "report"]') as house, running(recipe, house) as sdk:
        assert sdk.do("crowd", FLEET) == [FOLLOWERS] * FLEET
        before = held(house)
        until(lambda: held(house) != before, "it is replaced")
        assert sdk.do("crowd", FLEET) == [FOLLOWERS] * FLEET
        asked = str(ask("GET", house.daemon + "/metrics")[1])
        assert "45011" not in asked
        assert len(house.calls()) <= 6  # a lifetime has two, and a slow machine takes its time


# --- WeCom ----------------------------------------------------------------------------------------


def renewed(house: ForkedDaemon) -> None:
    """Wait until WeCom's token is another one."""

    def version() -> object:
        return house.get("/v1/tokens/corp", Authorization=f"Bearer {OPS}")[1].get("version")

    before = version()
    until(lambda: version() not in {before, None}, "WeCom's token is renewed")


@pytest.mark.parametrize("name", ["wechatpy-enterprise", "onepush"])
def test_a_companys_messages_arrive_across_a_renewal(
    name: str, tmp_path: Path, forks: ForkServer
) -> None:
    with (
        serving(tmp_path, forks, '["proxy"]', COMPANY) as house,
        running(WECOM[name], house) as sdk,
    ):
        assert sdk.do("call") == 0
        renewed(house)
        assert [sdk.do("call"), sdk.do("call")] == [0, 0]
        assert sdk.do("crowd", FLEET) == [0] * FLEET
        messages = house.control("")["messages"]
        assert [it["corpid"] for it in messages] == [CORPID] * (FLEET + 3)
        assert "Hello" in messages[0]["content"]


@pytest.mark.needs("prometheus-alertmanager")
def test_alertmanagers_alerts_arrive_across_a_renewal(tmp_path: Path, forks: ForkServer) -> None:
    with serving(tmp_path, forks, '["proxy"]', COMPANY) as house:
        config = tmp_path / "alertmanager.yml"
        config.write_text(WECOM["alertmanager"].at(house.daemon, KEY))
        with alertmanager(config) as address:
            fire(address, "DiskFull")
            until(lambda: arrived(house) == {"DiskFull"}, "the first alert is with WeCom")
            renewed(house)
            fire(address, "HostDown")
            until(lambda: arrived(house) == {"DiskFull", "HostDown"}, "so is the second")


@contextmanager
def alertmanager(config: Path) -> Iterator[str]:
    """Run Alertmanager; its address."""
    text = config.read_text().replace(
        "  receiver: wecom\n", "  receiver: wecom\n  group_wait: 0s\n  group_by: [alertname]\n"
    )
    config.write_text(text)
    command = [
        str(path_of("prometheus-alertmanager")),
        f"--config.file={config}",
        f"--storage.path={config.parent / 'alertmanager'}",
        "--web.listen-address=127.0.0.1:0",
        "--cluster.listen-address=",
    ]
    log = config.with_suffix(".log")
    with log.open("w") as stderr, subprocess.Popen(command, stderr=stderr) as process:
        try:
            yield f"http://{until(lambda: _listening(log), 'Alertmanager listens')}"
        finally:
            process.kill()


def _listening(log: Path) -> str | None:
    lines = [line for line in log.read_text().splitlines() if "address=127.0.0.1:" in line]
    return lines[-1].partition("address=")[2].split()[0] if lines else None


def fire(address: str, name: str) -> None:
    alerts = [{"labels": {"alertname": name}}]
    status, _ = ask("POST", f"{address}/api/v2/alerts", alerts)
    assert status == 200


def arrived(house: ForkedDaemon) -> set[str]:
    text = str(house.control("")["messages"])
    return {name for name in ("DiskFull", "HostDown") if name in text}
