"""The units, the installer, the alerts and the dashboard: checked by the tools they are for."""

import asyncio
import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker.app import PATIENCE_SLACK_S
from broker.config.load import load
from broker.core.ports import Node
from broker.web.connection.lifecycle import DRAIN_S, FAREWELL_S
from broker.web.reach import Reach
from tests.harness.doubles import ACCOUNT, Bench
from tests.harness.places import DEPLOY
from tests.harness.proxy_harness import GOOD, Hostile, Proxied, raw
from tests.harness.units import INSTALL, directives

SERVICES = ["token-broker.service", "token-broker-avatars.service"]
UNITS = [*SERVICES, "token-broker.socket"]
EXPOSURE = 15  # tenths, of 100


def told(*command: str | Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environ}
    )


# --- units ----------------------------------------------------------------------------------------


@pytest.mark.needs("systemd-analyze")
def test_the_units_are_valid_to_systemd(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "token-broker"  # systemd looks whether it is there
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for unit in UNITS:
        text = (DEPLOY / unit).read_text()
        (tmp_path / unit).write_text(text.replace("/opt/token-broker/current", str(tmp_path)))
    done = told("systemd-analyze", "verify", "--man=no", *(tmp_path / unit for unit in UNITS))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("unit", SERVICES)
def test_the_exposure_is_small(unit: str) -> None:
    done = told(
        "systemd-analyze",
        "security",
        "--no-pager",
        "--offline=true",
        f"--threshold={EXPOSURE}",
        DEPLOY / unit,
    )
    print(done.stdout[-200:])
    assert done.returncode == 0, done.stdout


def test_the_daemons_user_does_not_have_the_name_of_the_clients_group() -> None:
    # systemd refuses a dynamic user where a group of its name exists and no such user; the default
    # is the unit's name.
    (group,) = directives("token-broker.socket")["SocketGroup"]
    assert f"g {group} -" in (DEPLOY / "token-broker.sysusers.conf").read_text()
    for unit in SERVICES:
        said = directives(unit)
        assert said.get("User", [unit.removesuffix(".service")]) != [group]
        assert said["DynamicUser"] == ["yes"]
        assert said["SupplementaryGroups"] == [group]


def test_the_sockets_directory_is_not_one_that_goes_away_with_the_service() -> None:
    path = Path(directives("token-broker.socket")["ListenStream"][0])
    assert path == Path("/run/token-broker/broker.sock")
    assert Path("/run", *directives("token-broker.service")["RuntimeDirectory"]) != path.parent


def test_who_is_not_in_the_group_may_not_open_the_socket() -> None:
    assert directives("token-broker.socket")["SocketMode"] == ["0660"]


def test_peers_keep_their_uids_and_the_boot_id_is_passed_where_it_is_hidden() -> None:
    said = directives("token-broker.service")
    assert "PrivateUsers" not in said
    assert said["ProcSubset"] == ["pid"]
    assert "TOKEN_BROKER_BOOT_ID=%b" in said["Environment"]


def test_the_daemon_has_time_to_stop() -> None:
    longest = (
        FAREWELL_S + 10 + PATIENCE_SLACK_S + 2 * DRAIN_S
    )  # aiohttp waits twice: for handlers, and for their end
    assert int(directives("token-broker.service")["TimeoutStopSec"][0]) > longest


# --- what is watched ------------------------------------------------------------------------------


@pytest.fixture
async def shown(bench: Bench) -> dict[str, list[dict[str, str]]]:
    """The labels of each metric of a broker that has met everything the alerts watch for.

    All its features are switched on.
    """
    async with (
        Hostile().serving() as wechat,
        Proxied(bench, wechat).serving(max_concurrency=1, rate=1, burst=5) as broker,
    ):
        await broker.look()
        ticket = await broker.tickets.keeper(ACCOUNT, "jsapi")
        assert ticket is not None
        assert await ticket.get(patience_s=5)
        broker.wired.nodes = (Node("a", 100.0), Node("b", 30.0))
        receiver = {"receiver": "wecom 127.0.0.1", "sent": 1, "lost": 0, "trouble": None}
        sink = {"sink": "file /run/t.json", "trouble": None}
        broker.wired.report.reach = Reach(lambda: {"receivers": [receiver]}, lambda _: [sink])
        bench.clock.pass_(60)
        await until_limited(broker)
        for event, facts in bench.events:
            broker.metrics.emit(event, **facts)  # type: ignore[arg-type]
        for event in ("crashed", "lease-lost"):  # tests/tokens/test_nodes.py has one
            broker.metrics.emit(event, "main", lane="scheduled")
        for outcome in ("errcode 40125", "errcode 40163", "lost", "too-fast", "good"):
            broker.metrics.login("main", "web", outcome)
        text = await (
            await broker.http.get("/metrics", headers={"Accept-Encoding": "identity"})
        ).text()
    found: dict[str, list[dict[str, str]]] = {"up": [{"job": "token-broker"}]}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


async def until_limited(broker: Proxied) -> None:
    """Calls through the proxy, until there were all outcomes that somebody should hear of."""
    served = broker.registry.find("main").serve()  # type: ignore[union-attr]
    assert served
    called, may_go = asyncio.Event(), asyncio.Event()

    async def slow(*call: Any) -> None:
        called.set()
        await may_go.wait()
        await GOOD(*call)

    path = "/cgi-bin/user/get"
    broker.wechat.answers |= {"/wxa/slow": slow, "/wxa/gone": raw(b"")}
    assert (await broker.ask("GET", path)).status == 200
    slowly = asyncio.create_task(broker.get("/wxa/slow"))
    await called.wait()
    await broker.get(path)
    may_go.set()
    await slowly
    await broker.get("/wxa/gone")
    broker.wechat.dead = {served.token.value.reveal()}
    for _ in range(3):
        await broker.get(path)
    assert {outcome for _, outcome in broker.outcomes} == {
        "passed",
        "busy",
        "unreachable",
        "token-refused",
        "too-fast",
    }


def texts(file: str) -> list[str]:
    """Each alert, or each panel: an expression with all that is said of it."""
    text = (DEPLOY / file).read_text()
    if file.endswith(".json"):
        return [
            f"{target['expr']} {target['legendFormat']}"
            for panel in json.loads(text)["panels"]
            for target in panel["targets"]
        ]
    return text.split("- alert: ")[1:]


@pytest.mark.parametrize("file", ["prometheus-alerts.yml", "grafana-dashboard.json"])
async def test_only_metrics_and_labels_that_exist_are_used(
    shown: dict[str, list[dict[str, str]]], file: str
) -> None:
    assert len(texts(file)) > 15
    for text in texts(file):
        metrics = set(re.findall(r"\b(?:up\b(?=\{)|token_broker_\w+)", text))
        assert metrics
        assert metrics <= shown.keys()
        said = re.findall(
            r"""(\w+)(?:=~|!=|=)"|\$labels\.(\w+)|\{\{(\w+)\}\}|(?:by|on) ?\((.+?)\)""", text
        )
        labels = {name for groups in said for group in groups for name in group.split(", ") if name}
        assert labels <= {"instance"}.union(
            *(one for metric in metrics for one in shown[metric])
        ), text


@pytest.mark.needs("promtool")
def test_prometheus_accepts_the_alerts() -> None:
    done = told("promtool", "check", "rules", DEPLOY / "prometheus-alerts.yml")
    assert done.returncode == 0, done.stdout + done.stderr


SINK = '{app="main",sink="file /run/t.json"}'
RECEIVER = '{receiver="wecom 127.0.0.1"}'
# What makes each alert fire, in promtool's notation, a value a minute; all at once, where there are
# several series.
SERIES = {
    "TokenBrokerDown": {'up{job="token-broker"}': "0x30"},
    "TokenBrokerTokenMissing": {'token_broker_token_usable{app="main"}': "0x30"},
    "TokenBrokerTokenExpiring": {'token_broker_token_expires_in_seconds{app="main"}': "120x30"},
    "TokenBrokerQuotaNearlySpent": {'token_broker_quota_used{app="main",window="24h"}': "1700x30"},
    "TokenBrokerSecondIssuer": {'token_broker_second_issuer_suspected{app="main"}': "1x30"},
    "TokenBrokerTokenSuspect": {'token_broker_token_suspect{app="main"}': "1x30"},
    "TokenBrokerScheduleStopped": {"token_broker_ticking": "0x30"},
    "TokenBrokerStoreBroken": {'token_broker_store_ok{app="main"}': "0x30"},
    "TokenBrokerCrashing": {'token_broker_crashes_total{app="main"}': "1x10 2x20"},
    "TokenBrokerCrashing, the first time": {'token_broker_crashes_total{app="main"}': "_x10 1x20"},
    "TokenBrokerTicketFails": {'token_broker_ticket_usable{app="main",type="jsapi"}': "0x30"},
    "TokenBrokerTicketFails, soon": {
        'token_broker_ticket_expires_in_seconds{app="main",type="jsapi"}': "800x30",
        'token_broker_ticket_failures_in_a_row{app="main",type="jsapi"}': "3x30",
    },
    "TokenBrokerProxyUnreachable": {
        'token_broker_proxied_requests_total{app="main",outcome="unreachable"}': "0+20x30"
    },
    "TokenBrokerProxyTokenRefused": {
        'token_broker_proxied_requests_total{app="main",outcome="token-refused"}': "0+20x60"
    },
    "TokenBrokerProxyLimited": {
        'token_broker_proxied_requests_total{app="main",outcome="busy"}': "0+1x30"
    },
    "TokenBrokerProxyLimited, of a client": {
        'token_broker_proxied_requests_total{app="main",outcome="too-fast"}': "0+1x30"
    },
    "TokenBrokerProxyRefusesServices": {
        'token_broker_proxy_refusals_total{errcode="41001"}': "0+1x60"
    },
    "TokenBrokerLoginsRefused": {
        'token_broker_logins_total{app="main",kind="web",outcome="errcode 40125"}': "0+1x30"
    },
    "TokenBrokerLoginsUnanswered": {
        'token_broker_logins_total{app="main",kind="web",outcome="lost"}': "0+20x30"
    },
    "TokenBrokerLoginsLimited": {
        'token_broker_logins_total{app="main",kind="web",outcome="too-fast"}': "0+1x30"
    },
    "TokenBrokerSinkBehind": {f"token_broker_sink_behind{SINK}": "1x30"},
    "TokenBrokerReceiverFailing": {f"token_broker_receiver_failing{RECEIVER}": "1x30"},
    "TokenBrokerNodeSilent": {'token_broker_node_seen_ago_seconds{node="b"}': "0+60x30"},
    "TokenBrokerLeaseLost": {
        'token_broker_token_calls_total{app="main",lane="scheduled",outcome="lease-lost"}': (
            "1x10 2x20"
        )
    },
    "TokenBrokerLeaseLost, the first time": {
        'token_broker_token_calls_total{app="main",lane="scheduled",outcome="lease-lost"}': (
            "_x10 1x20"
        )
    },
}
HEALTHY = {
    'up{job="token-broker"}': "1x60",
    'token_broker_token_usable{app="main"}': "1x60",
    'token_broker_token_expires_in_seconds{app="main"}': "5000x60",
    'token_broker_quota_used{app="main",window="today"}': "24x60",
    'token_broker_quota_used{app="main",window="24h"}': "24x60",
    'token_broker_quota_limit{app="main"}': "2000x60",
    'token_broker_second_issuer_suspected{app="main"}': "0x60",
    'token_broker_token_suspect{app="main"}': "0x60",
    "token_broker_ticking": "1x60",
    'token_broker_store_ok{app="main"}': "1x60",
    'token_broker_failures_in_a_row{app="main"}': "0x60",
    'token_broker_token_calls_total{app="main",lane="scheduled",outcome="minted"}': "0+1x60",
    'token_broker_ticket_usable{app="main",type="jsapi"}': "1x60",
    'token_broker_ticket_expires_in_seconds{app="main",type="jsapi"}': "5000x60",
    'token_broker_ticket_failures_in_a_row{app="main",type="jsapi"}': "0x60",
    'token_broker_proxied_requests_total{app="main",outcome="passed"}': "0+100x60",
    'token_broker_logins_total{app="main",kind="web",outcome="good"}': "0+100x60",
    'token_broker_logins_total{app="main",kind="web",outcome="errcode 40163"}': "0+1x60",
    f"token_broker_sink_behind{SINK}": "0x60",
    f"token_broker_receiver_failing{RECEIVER}": "0x60",
    'token_broker_node_seen_ago_seconds{node="a"}': "0x60",
    'token_broker_node_seen_ago_seconds{node="b"}': "2x60",
}


async def test_the_alerts_are_tried_with_what_a_daemon_shows(
    shown: dict[str, list[dict[str, str]]],
) -> None:
    for series in {*HEALTHY, *(name for tried in SERIES.values() for name in tried)}:
        name, _, labels = series.partition("{")
        assert dict(re.findall(r'(\w+)="(.*?)"', labels)) in shown[name], series


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("tried", [*SERIES, None])
def test_each_alert_fires_on_its_condition_and_only_there(
    tried: str | None, tmp_path: Path
) -> None:
    alert = tried and tried.partition(",")[0]
    series = {**HEALTHY, **SERIES.get(tried or "", {})}
    rules = (DEPLOY / "prometheus-alerts.yml").read_text()
    names = set(re.findall(r"alert: (\w+)", rules))
    assert {name.partition(",")[0] for name in SERIES} == names
    tests = tmp_path / "tests.yml"
    # JSON is YAML. Only whether an alert fires is looked at, so a test that it does not must fail
    # for this one.
    for silent in filter(None, (names - {alert}, {alert} - {None})):
        expects = [{"eval_time": "20m", "alertname": name, "exp_alerts": []} for name in silent]
        values = [{"series": key, "values": value} for key, value in series.items()]
        group = {"interval": "1m", "input_series": values, "alert_rule_test": expects}
        tests.write_text(
            json.dumps({"rule_files": [str(DEPLOY / "prometheus-alerts.yml")], "tests": [group]})
        )
        done = told("promtool", "test", "rules", tests)
        assert (done.returncode == 0) == (alert not in silent), (silent, done.stdout + done.stderr)


def test_the_dashboard_is_one() -> None:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    panels = dashboard["panels"]
    assert dashboard["title"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert all(target["expr"] for target in panel["targets"])


# --- the installer --------------------------------------------------------------------------------


def install(root: Path, *options: str) -> str:
    done = told("sh", INSTALL, "--root", root, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "a root"
    install(root, "--no-package")
    return root


@pytest.mark.needs("shellcheck")
def test_shellcheck_has_no_complaint() -> None:
    done = told("shellcheck", INSTALL)
    assert done.returncode == 0, done.stdout


def test_units_group_and_configuration_are_put_in_place(root: Path) -> None:
    for unit in UNITS:
        assert (root / "etc/systemd/system" / unit).read_text() == (DEPLOY / unit).read_text()
    assert (root / "etc/sysusers.d/token-broker.conf").is_file()
    config = root / "etc/token-broker/config.toml"
    assert stat.S_IMODE(config.stat().st_mode) == 0o640
    assert stat.S_IMODE(config.parent.stat().st_mode) == 0o750


def test_the_installed_configuration_takes_the_secret_that_the_unit_hands_over(
    root: Path, tmp_path: Path
) -> None:
    (name,) = (
        value.split(":")[0] for value in directives("token-broker.service")["LoadCredential"]
    )
    (tmp_path / name).write_text("secret")
    (tmp_path / name).chmod(0o400)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "STATE_DIRECTORY": "/var/lib/token-broker"}
    settings = load(root / "etc/token-broker/config.toml", environ)
    assert list(settings.apps) == ["main"]
    listens = directives("token-broker.socket")["ListenStream"]
    assert str(settings.server.listen[0]) in listens  # what `status` and `get` ask


def test_installing_again_changes_nothing(root: Path) -> None:
    before = files(root)
    said = install(root, "--no-package")
    assert files(root) == before
    assert "installed" not in said
    assert "stays" not in said


def test_what_an_operator_edited_stays_and_what_is_new_lies_beside_it(
    root: Path, tmp_path: Path
) -> None:
    edited = [
        root / "etc/token-broker/config.toml",
        root / "etc/systemd/system/token-broker.service",
    ]
    for file in edited:
        file.write_text("# mine\n")
    newer = tmp_path / "newer"
    shutil.copytree(DEPLOY, newer)
    for path in newer.iterdir():
        if path.is_file() and path.name != INSTALL.name:
            path.write_text(path.read_text() + "# newer\n")
    done = told("sh", newer / INSTALL.name, "--root", root, "--no-package")
    assert done.returncode == 0, done.stderr
    for file in edited:
        assert file.read_text() == "# mine\n"
        assert file.with_name(f"{file.name}.new").read_text().endswith("# newer\n")
        assert f"{file} was edited and stays; the new one is {file}.new" in done.stdout
    assert (root / "etc/systemd/system/token-broker.socket").read_text().endswith("# newer\n")
    for file in edited:  # said once; the operator knows
        file.with_name(f"{file.name}.new").unlink()
    assert "stays" not in told("sh", newer / INSTALL.name, "--root", root, "--no-package").stdout
    assert not list(root.rglob("*.new"))


def test_a_file_that_was_there_before_us_is_the_operators(tmp_path: Path) -> None:
    config = tmp_path / "etc/token-broker/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("# mine\n")
    install(tmp_path, "--no-package")
    assert config.read_text() == "# mine\n"
    assert config.with_name("config.toml.new").exists()


def test_uninstalling_keeps_configuration_secrets_state_and_edited_units(root: Path) -> None:
    secret, state = root / "etc/token-broker/main.secret", root / "var/lib/token-broker/broker.db"
    state.parent.mkdir(parents=True)
    secret.write_text("secret")
    state.write_text("state")
    edited = root / "etc/systemd/system/token-broker.service"
    edited.write_text("# mine\n")
    install(root, "--uninstall")
    kept = {
        "etc/token-broker/config.toml",
        "etc/token-broker/main.secret",
        "var/lib/token-broker/broker.db",
    }
    assert files(root).keys() == kept | {"etc/systemd/system/token-broker.service.edited"}
    install(root, "--uninstall")  # twice is no error


def test_purging_removes_everything(root: Path) -> None:
    (root / "etc/token-broker/main.secret").write_text("secret")
    (root / "etc/systemd/system/token-broker.service").write_text("# mine\n")
    install(root, "--uninstall", "--purge")
    assert files(root) == {}


def test_another_prefix_stands_in_the_units(tmp_path: Path) -> None:
    install(tmp_path, "--no-package", "--prefix", "/srv/broker")
    for unit in SERVICES:
        text = (tmp_path / "etc/systemd/system" / unit).read_text()
        assert "ExecStart=/srv/broker/current/bin/token-broker" in text
        assert "/opt/" not in text


@pytest.mark.parametrize(
    "options",
    [
        ["--prefix", "relative/path"],
        ["--prefix", "/opt"],
        ["--prefix", "/opt/a b"],
        ["--prefix", "/opt/../etc"],
        ["--purge"],
    ],
    ids=" ".join,
)
def test_options_that_could_do_harm_are_refused(tmp_path: Path, options: list[str]) -> None:
    assert told("sh", INSTALL, "--root", tmp_path, "--no-package", *options).returncode == 1
    assert files(tmp_path) == {}


def test_an_unknown_option_is_a_usage_error() -> None:
    done = told("sh", INSTALL, "--rooot", "/nowhere")
    assert done.returncode == 2
    assert "unknown option --rooot" in done.stderr


def test_an_interpreter_that_is_too_old_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = told("sh", INSTALL, "--root", tmp_path / "root", "--python", old)
    assert done.returncode == 1
    assert "older than Python 3.11" in done.stderr
