"""The commands as people and systemd meet them: real processes and real sockets.

The exit codes are the documented ones.
"""

import json
import re
import signal
import socket
import sqlite3
import stat
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from broker import __version__
from broker.store.sqlite.schema import MIGRATIONS
from tests.harness import invariants
from tests.harness.crashpoints import ForkedDaemon
from tests.harness.doubles import APPID, CANARY
from tests.harness.processes import ME, ask, process, run, until


def test_serve_says_where_it_listens_and_serves_a_token_that_wechat_accepts(
    house: ForkedDaemon,
) -> None:
    with house.serving() as daemon:
        assert daemon.first_line().startswith(
            f"token-broker {__version__} serves on http://127.0.0.1:"
        )
        assert f"unix:{house.home}/broker.sock" in daemon.first_line()
        asked_at = time.time()
        status, token = house.get("/v1/tokens/main")
        assert status == 200
        accepted = ask(
            "GET", f"{house.sandbox}/cgi-bin/get_api_domain_ip?access_token={token['access_token']}"
        )[1]
        assert accepted["ip_list"]
        invariants.check(house, [{**token, "asked_at": asked_at, "received_at": time.time()}])
        assert daemon.end() == 0
    assert len(house.calls()) == len(house.ledger()) == 1
    assert not (house.home / "broker.sock").exists()


def test_status_and_get_ask_the_running_daemon_over_its_socket(house: ForkedDaemon) -> None:
    with house.living():
        until(lambda: house.get("/readyz")[0] == 200, "ready")
        shown = run("status", "--config", str(house.config))
        assert shown.returncode == 0
        assert shown.stdout.splitlines()[0].split()[:2] == ["app", "state"]
        assert shown.stdout.splitlines()[1].split()[:2] == ["main", "fresh"]
        as_json = json.loads(run("status", "--json", "--config", str(house.config)).stdout)
        assert as_json["apps"][0]["appid"] == APPID
        token = house.get("/v1/tokens/main")[1]["access_token"]
        assert run("get", "main", "--config", str(house.config)).stdout == f"{token}\n"
        assert (
            json.loads(run("get", APPID, "--json", "--config", str(house.config)).stdout)[
                "access_token"
            ]
            == token
        )
        unknown = run("get", "nobody", "--config", str(house.config))
        assert (unknown.returncode, unknown.stdout) == (1, "")
        assert "unknown-app" in unknown.stderr
        assert token not in shown.stdout + shown.stderr + unknown.stderr


def test_status_needs_no_secret_of_an_app(house: ForkedDaemon) -> None:
    with house.living():
        (house.home / "main.secret").unlink()
        assert run("status", "--config", str(house.config)).returncode == 0


def test_without_a_daemon_status_and_get_say_so(house: ForkedDaemon) -> None:
    for command in (["status"], ["get", "main"]):
        done = run(*command, "--config", str(house.config))
        assert done.returncode == 1
        assert "is it running?" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_ip_to_whitelist_is_shown_in_status_api_and_log(house: ForkedDaemon) -> None:
    fault = {
        "kind": "errcode",
        "errcode": 40164,
        "times": None,
        "errmsg": "invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist",
    }
    house.control("/faults", fault)
    with house.living() as daemon:
        until(
            lambda: house.get("/v1/status")[1]["apps"][0]["last_error"], "the first call has failed"
        )
        assert house.get("/v1/status")[1]["apps"][0]["last_error"]["ip"] == "203.0.113.7"
        assert "203.0.113.7" in run("status", "--config", str(house.config)).stdout
        status, problem = house.get("/v1/tokens/main")
        assert (status, problem["code"]) == (503, "upstream-refused")
        assert "203.0.113.7" in problem["detail"]
        daemon.end()
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    (line,) = [line for line in lines if line["event"] == "refresh-failed"]
    assert (line["ip"], line["level"], line["retry_in"]) == ("203.0.113.7", "warning", 300)
    invariants.check(house)


def test_a_second_daemon_on_the_same_store_ends_with_75_and_disturbs_nobody(
    house: ForkedDaemon,
) -> None:
    with house.living():
        until(lambda: house.get("/readyz")[0] == 200, "ready")
        for _ in range(2):
            second = run("serve", "--config", str(house.config))
            assert second.returncode == 75
            assert "another daemon" in second.stderr
            (house.home / "broker.db.lock").unlink(missing_ok=True)
        assert house.get("/v1/tokens/main")[0] == 200
    assert len(house.calls()) == 1


def test_a_taken_port_ends_with_1_and_a_sentence(house: ForkedDaemon) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        house.config.write_text(house.config.read_text().replace("127.0.0.1:0", address))
        done = run("serve", "--config", str(house.config))
    assert done.returncode == 1
    assert address in done.stderr
    assert "taken" in done.stderr
    assert "Traceback" not in done.stderr
    assert house.calls() == []


def test_a_socket_path_that_somebody_planted_is_refused(house: ForkedDaemon) -> None:
    (house.home / "broker.sock").symlink_to("/etc/passwd")
    done = run("serve", "--config", str(house.config))
    assert done.returncode == 1
    assert "not a socket" in done.stderr


def test_a_socket_left_behind_by_a_killed_daemon_is_no_obstacle(house: ForkedDaemon) -> None:
    with house.living() as daemon:
        daemon.kill()
    with house.living():
        assert house.get("/livez")[0] == 200
    mode = (
        stat.S_IMODE((house.home / "broker.sock").stat().st_mode)
        if (house.home / "broker.sock").exists()
        else 0o660
    )
    assert mode == 0o660


def test_a_wrong_configuration_ends_with_78_and_every_error(house: ForkedDaemon) -> None:
    house.config.write_text(
        '[server]\nlisten = ["0.0.0.0:1"]\nport = 3\n[policy]\ntick = -1\n[apps.main]\nappid ='
        ' "wx1"\n'
    )
    for command in ("serve", "check"):
        done = run(command, "--config", str(house.config))
        assert done.returncode == 78
        for key in ("server.port", "server.listen", "policy.tick", "apps.main.secret"):
            assert key in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    assert run("serve", "--config", "/nowhere/config.toml").returncode == 78
    assert (
        run("serve", TOKEN_BROKER_CONFIG="/nowhere/else.toml").stderr.count("/nowhere/else.toml")
        == 1
    )


def test_check_calls_nobody_and_says_what_is_wrong_with_the_store(house: ForkedDaemon) -> None:
    good = run("check", "--config", str(house.config))
    assert (good.returncode, good.stderr) == (0, "")
    assert house.calls() == []
    house.store.touch(mode=0o644)
    wide = run("check", "--config", str(house.config))
    assert (wide.returncode, "others may read" in wide.stderr) == (0, True)
    assert house.store.stat().st_mode & 0o777 == 0o644  # it only looks
    house.store.chmod(0o600)
    house.store.write_bytes(b"not a database, " * 100)
    assert "not a database" in run("check", "--config", str(house.config)).stderr


def test_check_works_beside_a_running_daemon(house: ForkedDaemon) -> None:
    with house.living():
        assert run("check", "--config", str(house.config)).returncode == 0
        assert house.get("/livez")[0] == 200


def test_a_store_of_a_newer_version_ends_with_78_and_stays_untouched(house: ForkedDaemon) -> None:
    with closing(sqlite3.connect(house.store)) as db:
        db.execute(f"pragma user_version = {len(MIGRATIONS) + 1}")
    house.store.chmod(0o600)
    before = house.store.read_bytes()
    for command in ("serve", "check"):
        done = run(command, "--config", str(house.config))
        assert done.returncode == 78
        assert "newer" in done.stderr
    assert house.store.read_bytes() == before


def test_words_that_are_no_utf8_and_paths_that_are_too_long_end_in_sentences(
    house: ForkedDaemon,
) -> None:
    key = house.home / "key"
    key.write_bytes(b"\xff\xfe not a key")
    (house.home / "word").write_bytes(b"\xff\xff")
    config = ("--config", str(house.config))
    with house.serving():
        for command in (
            ("get", "main", *config, "--key-file", str(key)),
            ("get", "main", *config, "--key-file", str(house.home / "word")),
            ("get", "main", *config, "--key-file", "/none"),
            ("get", "\udcff", *config),
            ("get", "", *config),
        ):
            done = run(*command)
            assert (done.returncode, done.stdout) == (1, ""), command
            assert "Traceback" not in done.stderr
            assert len(done.stderr.splitlines()) == 1
    text = house.config.read_text()
    house.config.write_text(text.replace(str(house.store), f"/{'d' * 300}/b.db"))
    for name in ("check", "serve"):
        done = run(name, *config)
        assert done.returncode == 78
        assert "store.url: is too long" in done.stderr
        assert "Traceback" not in done.stderr


def test_sighup_while_the_daemon_starts_does_not_kill_it(house: ForkedDaemon) -> None:
    """From the first thing that Python runs of ours on; what it read until then is read again."""
    with process(house.home / "daemon.log", "serve", "--config", str(house.config)) as daemon:
        status = Path(f"/proc/{daemon.popen.pid}/status")
        until(lambda: _catches_hangup(status), "it has begun")
        while daemon.popen.poll() is None and not (house.home / "broker.sock").exists():
            daemon.popen.send_signal(signal.SIGHUP)
            time.sleep(0.001)
        assert daemon.first_line().startswith("token-broker")
        assert daemon.end() == 0


def _catches_hangup(status: Path) -> bool:
    caught = re.search(r"SigCgt:\s*([0-9a-f]+)", status.read_text())
    return caught is not None and bool(int(caught[1], 16) & 1 << (signal.SIGHUP - 1))


def test_dangerous_permissions_are_told_by_check_and_log(house: ForkedDaemon) -> None:
    house.configure(more="[compat]\nenabled = true\n")
    done = run("check", "--config", str(house.config))
    assert done.returncode == 0
    assert "Beware: compat.enabled: without [clients] any program" in done.stdout
    with process(house.home / "told.log", "serve", "--config", str(house.config)) as daemon:
        daemon.first_line()
        daemon.end()
    assert '"code": "compat-without-clients"' in (house.home / "told.log").read_text()
    house.configure(more=f'[compat]\nenabled = true\n[clients.a]\nkey_sha256 = "{"a" * 64}"\n')
    assert "Beware" not in run("check", "--config", str(house.config)).stdout
    plain = house.config.read_text().replace(house.sandbox, "http://sandbox.example:1")
    house.config.write_text(plain.replace("timeout = 5", "timeout = 5\nallow_plaintext = true"))
    assert "Beware: wechat.api_base: http://" in run("check", "--config", str(house.config)).stdout


@pytest.mark.parametrize(
    ("policy", "notice"),
    [
        ("refresh_fraction = 0.04\noverlap = 600", "policy.overlap: 600 s, but by policy.refresh"),
        ("refresh_fraction = 0.902", "policy.refresh_fraction: leaves 56 s of a token's life"),
        ("verify_quota = 0", "policy.verify_quota: 0: WeChat is never asked"),
    ],
)
def test_a_policy_whose_consequences_surprise_is_told(
    house: ForkedDaemon, policy: str, notice: str
) -> None:
    house.configure(policy=policy)
    done = run("check", "--config", str(house.config))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Beware: {notice}" in done.stdout
    house.configure(policy=policy, app='endpoint = "stable_token"')
    is_of_every_endpoint = "verify_quota" in policy
    said = run("check", "--config", str(house.config)).stdout
    assert ("Beware" in said) is is_of_every_endpoint


def test_check_advises_on_the_endpoint(house: ForkedDaemon) -> None:
    house.configure()
    assert "Advice: apps.main.endpoint: `token` is right where" in _checked(house)
    house.configure(app='endpoint = "stable_token"')
    assert "Advice" not in _checked(house)


def _checked(house: ForkedDaemon) -> str:
    return run("check", "--config", str(house.config)).stdout


def test_usage_errors_end_with_2() -> None:
    assert run("serve", "--nonsense").returncode == 2
    assert run("nonsense").returncode == 2
    assert run("get").returncode == 2
    assert run("--version").stdout.strip().endswith(__version__)


def test_the_log_of_a_start_and_stop_is_a_few_lines_of_json(house: ForkedDaemon) -> None:
    house.log_level = "info"
    with house.serving() as daemon:
        until(lambda: house.get("/readyz")[0] == 200, "ready")
        for _ in range(50):
            house.get("/v1/tokens/main")
            house.get("/nothing?secret=x")
        daemon.end()
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["refreshed"]
    assert {"app", "lane", "version", "expires_in", "timestamp", "level"} <= lines[0].keys()


def test_a_malformed_request_puts_nothing_of_itself_into_the_log_or_the_answer(
    house: ForkedDaemon,
) -> None:
    with house.living() as daemon:
        host, port = house.daemon.removeprefix("http://").split(":")
        for raw in (
            f"GET /?secret={CANARY} HTTP/9.9x\r\n\r\n",
            f"GET /{CANARY}\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            f"GET / HTTP/1.1\r\nHost: localhost\r\nA{CANARY}\x01: 1\r\n\r\n",
            f"{CANARY}\r\n\r\n",
        ):
            with socket.create_connection((host, int(port)), timeout=5) as peer:
                peer.sendall(raw.encode())
                peer.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(partial(peer.recv, 65536), b""))
                assert CANARY.encode() not in answer
        assert house.get("/livez")[0] == 200
        daemon.end()
    assert CANARY not in daemon.log.read_text()


def test_two_apps_live_side_by_side_one_of_them_stable(house: ForkedDaemon) -> None:
    secret = house.home / "main.secret"
    more = f'[apps.shop]\nappid = "wxshop"\nsecret_file = "{secret}"\nendpoint = "stable_token"\n'
    house.configure(more=more)
    with house.living():
        tokens = {
            app: house.get(f"/v1/tokens/{app}")[1]["access_token"] for app in ("main", "shop")
        }
        assert tokens["main"] != tokens["shop"]
        assert [
            call["endpoint"] for call in sorted(house.calls(), key=lambda call: call["endpoint"])
        ] == [
            "stable_token",
            "token",
        ]
    invariants.check(house)


def test_the_module_is_the_command(tmp_path: Path) -> None:
    with process(tmp_path / "log", "sandbox", "--port", "0") as sandbox:
        assert "sandbox listening on http://127.0.0.1:" in sandbox.first_line()
        assert sandbox.end() in {0, -15}
    assert ME == {"X-Token-Broker": "1"}
