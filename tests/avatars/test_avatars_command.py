"""`token-broker avatars` as people and systemd meet it.

The processes are real; exit codes are the documented ones, and no output holds a secret.
"""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker import __version__
from tests.harness.crashpoints import Child, ForkedDaemon, ForkServer
from tests.harness.doubles import CANARY
from tests.harness.processes import ask, process, run, until


@pytest.fixture
def house(tmp_path: Path, forks: ForkServer) -> Iterator[ForkedDaemon]:
    house = ForkedDaemon(tmp_path, fork_server=forks)
    with house.simulating():
        yield house


@contextmanager
def showing(house: ForkedDaemon) -> Iterator[tuple[str, Child]]:
    """The companion, running: where, and the process."""
    command = ("avatars", "--config", str(house.config))
    with house.fork_server.child(house.home / "avatars.log", *command) as companion:
        yield companion.first_line().split()[-1], companion


def avatars(house: ForkedDaemon, **keys: str) -> str:
    """An [avatars] table that asks over the daemon's Unix socket."""
    told = {"listen": "127.0.0.1:0", "broker": f"unix:{house.home}/broker.sock", **keys}
    return "[avatars]\n" + "".join(f'{name} = "{value}"\n' for name, value in told.items())


def test_it_says_where_it_listens_shows_avatars_and_ends_with_0_when_asked_to(
    house: ForkedDaemon,
) -> None:
    house.configure(more=avatars(house))
    with house.living(), showing(house) as (base, companion):
        assert companion.first_line() == f"token-broker avatars {__version__} serves on {base}"
        (house.home / "main.secret").unlink()
        until(lambda: ask("GET", f"{base}/readyz")[0] == 200, "ready")
        status, urls = ask("GET", f"{base}/avatars?limit=3&size=132")
        assert (status, len(urls)) == (200, 3)
        token = house.get("/v1/tokens/main")[1]["access_token"]
        house.control(
            "/faults", {"kind": "errcode", "errcode": 48001, "path": "/cgi-bin/user/info/batchget"}
        )
        assert ask("GET", f"{base}/v1/avatars")[0] == 502
        assert companion.end() == 0
        assert companion.out.read_text().count("\n") == 1, "one line, and nothing more"
    log = companion.log.read_text()
    assert [json.loads(line)["event"] for line in log.splitlines()] == ["trouble"]
    assert token not in log
    assert CANARY not in log


def test_it_needs_no_secret_of_an_app_and_asks_with_its_own_key(house: ForkedDaemon) -> None:
    key = house.home / "avatars.key"
    key.write_text(f"{CANARY}-key\n")
    key.chmod(0o600)
    client = f'[clients.avatars]\nkey_file = "{key}"\n'
    house.configure(more=client)
    with house.living():
        house.configure(more=client + avatars(house, broker=house.daemon, key_file=str(key)))
        (house.home / "main.secret").unlink()
        with showing(house) as (base, companion):
            assert ask("GET", f"{base}/avatars?limit=3")[0] == 200
            assert companion.end() == 0
        house.configure(more=client + avatars(house, broker=house.daemon))
        with showing(house) as (base, companion):
            status, problem = ask("GET", f"{base}/avatars?limit=3")
            assert (status, problem["code"]) == (502, "broker-refused")
            assert "missing-key" in problem["detail"]
            assert companion.end() == 0
    assert CANARY not in companion.log.read_text()


def test_a_daemon_that_comes_later_is_found(house: ForkedDaemon) -> None:
    house.configure(more=avatars(house))
    with showing(house) as (base, _):
        assert ask("GET", f"{base}/avatars")[1]["code"] == "broker-unavailable"
        assert ask("GET", f"{base}/readyz")[0] == 503
        with house.living():
            until(lambda: ask("GET", f"{base}/readyz")[0] == 200, "ready")
            assert ask("GET", f"{base}/avatars")[0] == 200


def test_a_taken_port_ends_with_1_and_a_sentence_that_names_the_key(house: ForkedDaemon) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        house.configure(more=avatars(house, listen=f"127.0.0.1:{taken.getsockname()[1]}"))
        done = run("avatars", "--config", str(house.config))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("token-broker: avatars.listen: 127.0.0.1:")
    assert "taken" in done.stderr


def test_a_wrong_configuration_ends_with_78_and_every_error(house: ForkedDaemon) -> None:
    house.configure(
        more=(
            '[avatars]\nlisten = "nonsense"\ncache_ttl = -1\nproxy_images = "yes"\nbroker ='
            ' "https://b.example"\n'
        )
    )
    done = run("avatars", "--config", str(house.config))
    assert done.returncode == 78
    for key in ("avatars.listen", "avatars.cache_ttl", "avatars.proxy_images", "avatars.broker"):
        assert f"{key}: " in done.stderr
    assert "Traceback" not in done.stderr
    assert run("avatars", "--config", "/nowhere.toml").returncode == 78


def test_it_can_listen_on_a_unix_socket(house: ForkedDaemon) -> None:
    path = house.home / "avatars.sock"
    house.configure(more=avatars(house, listen=f"unix:{path}"))
    with process(house.home / "avatars.log", "avatars", "--config", str(house.config)) as companion:
        assert companion.first_line().split()[-1] == f"unix:{path}"
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(5)
            peer.connect(str(path))
            peer.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert peer.recv(64).startswith(b"HTTP/1.1 200 OK")
        assert companion.end() == 0
    assert not path.exists()
