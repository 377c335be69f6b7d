"""sd_notify, the watchdog, reloading and socket activation, on real sockets and real processes."""

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from broker.app import wellness
from broker.config.load import load
from broker.config.reload import needs_restart
from broker.system.systemd import NOBODY, Supervisor
from broker.tokens.registry import Registry
from broker.web.connection.lifecycle import answers
from tests.harness.crashpoints import Child, ForkedDaemon
from tests.harness.crowd import request
from tests.harness.doubles import ACCOUNT, Bench
from tests.harness.fake_systemd import Ear, handing_over, held
from tests.harness.processes import PATIENCE_S, House, Process, process, run, until

KEY_SHA256 = "a" * 64


@pytest.fixture(params=["abstract", "path"])
def any_ear(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ear]:
    ear = Ear(
        f"@token-broker-{secrets.token_hex(8)}"
        if request.param == "abstract"
        else str(tmp_path / "notify")
    )
    yield ear
    ear.close()


@pytest.fixture
def ear() -> Iterator[Ear]:
    ear = Ear(f"@token-broker-{secrets.token_hex(8)}")
    yield ear
    ear.close()


# --- what is said ---------------------------------------------------------------------------------


def test_a_notice_arrives(any_ear: Ear) -> None:
    assert Supervisor(any_ear.address).notify("READY=1", "STATUS=serves")
    assert any_ear.message() == {"READY": "1", "STATUS": "serves"}


@pytest.mark.parametrize(
    "address", ["", "/nowhere/notify", "@token-broker-nobody", "vsock:2:1234", "notify"]
)
def test_a_notice_that_nobody_takes_is_no_error(address: str) -> None:
    assert Supervisor(address).notify("READY=1") is False


def test_what_the_supervisor_left_is_taken_out_of_the_environment() -> None:
    mine = str(os.getpid())
    environ = {
        "NOTIFY_SOCKET": "@there",
        "WATCHDOG_USEC": "1500000",
        "WATCHDOG_PID": mine,
        "HOME": "/",
    }
    environ |= {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}
    assert Supervisor.from_environ(environ) == Supervisor("@there", 1.5, ())
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize(
    ("usec", "pid"), [("", ""), ("0", ""), ("soon", ""), ("-1", ""), ("1000000", "1")]
)
def test_there_is_no_watchdog_unless_it_is_ours(usec: str, pid: str) -> None:
    assert Supervisor.from_environ({"WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}).watchdog_s is None


@pytest.mark.parametrize("count", ["", "0", "-1", "two"])
def test_a_count_of_descriptors_that_is_none_means_none(count: str) -> None:
    assert Supervisor.from_environ({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count}) == NOBODY


# --- the daemon -----------------------------------------------------------------------------------


def test_ready_is_said_when_it_serves_and_stopping_before_it_ends(house: House, ear: Ear) -> None:
    with process(
        house.home / "log", "serve", "--config", str(house.config), NOTIFY_SOCKET=ear.address
    ) as daemon:
        assert ear.message()["READY"] == "1"
        with socket.socket(socket.AF_UNIX) as peer:  # no second try: it serves now
            peer.connect(str(house.home / "broker.sock"))
            peer.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert peer.recv(100).startswith(b"HTTP/1.1 200 ")
        daemon.send(signal.SIGTERM)
        assert ear.message()["STOPPING"] == "1"
        assert daemon.popen.wait(PATIENCE_S) == 0
    assert ear.heard() == []


def test_a_port_that_is_taken_is_said_in_a_sentence_and_nothing_is_ready(
    house: House, ear: Ear
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        house.config.write_text(house.config.read_text().replace("127.0.0.1:0", taken))
        done = run("serve", "--config", str(house.config), NOTIFY_SOCKET=ear.address)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"token-broker: {taken} is taken: another program listens there; stop it or change"
        " server.listen\n"
    )
    assert ear.heard() == []
    assert house.calls() == []


def test_pings_come_while_it_is_well(house: House, ear: Ear) -> None:
    watched = {"NOTIFY_SOCKET": ear.address, "WATCHDOG_USEC": "300000"}
    with process(house.home / "log", "serve", "--config", str(house.config), **watched) as daemon:
        ear.until("READY")
        for _ in range(3):
            ear.until("WATCHDOG")
        # Stopped, it neither ticks nor answers, nor pings: this is what systemd would end it for.
        daemon.send(signal.SIGSTOP)
        ear.heard()
        daemon.send(signal.SIGCONT)
        ear.until("WATCHDOG")
        assert daemon.end() == 0


# --- the watchdog, with parts of our own ----------------------------------------------------------


async def hear(ear: Ear, field: str) -> dict[str, str]:
    return await asyncio.to_thread(ear.until, field)


async def test_where_it_is_not_well_there_is_a_reason_and_no_ping(ear: Ear) -> None:
    state, told = ["it hangs"], list[str]()

    async def well() -> str:
        return state[0]

    async with Supervisor(ear.address, 0.03).watched(well, told.append):
        for _ in range(3):
            assert await asyncio.to_thread(ear.message) == {"STATUS": "not well: it hangs"}
        state[0] = ""
        await hear(ear, "WATCHDOG")
    assert told == ["it hangs", ""]


async def test_a_look_that_raises_or_never_ends_is_not_well(ear: Ear) -> None:
    async def raises() -> str:
        raise ValueError

    async def hangs() -> str:
        await asyncio.Event().wait()
        return ""

    for well, why in ((raises, "ValueError"), (hangs, "TimeoutError")):
        async with Supervisor(ear.address, 0.03).watched(well, lambda _: None):
            assert await asyncio.to_thread(ear.message) == {
                "STATUS": f"not well: the look at ourselves failed: {why}"
            }
        ear.heard()


async def test_without_a_watchdog_nothing_is_looked_at(ear: Ear) -> None:
    async def well() -> str:
        raise AssertionError

    async with Supervisor(ear.address).watched(well, lambda _: None):
        pass
    assert ear.heard() == []


async def test_well_means_that_the_schedule_ticks_and_the_listener_answers(bench: Bench) -> None:
    registry = Registry([ACCOUNT], await bench.dependencies())
    answer = b"HTTP/1.1 200 OK\r\n\r\n"

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /livez HTTP/1.1\r\n")
        writer.write(answer)
        writer.close()

    listener = socket.create_server(("127.0.0.1", 0))
    async with await asyncio.start_server(greet, sock=listener):
        well = wellness(registry, listener)
        assert await well() == "the schedule has stopped"
        registry.ticked_at = bench.clock.now()
        assert await well() == ""
        answer = b"HTTP/1.1 503 Service Unavailable\r\n\r\n"
        assert await well() == "our own listener does not answer"
        answer = b""
        assert await well() == "our own listener does not answer"
        answer = b"HTTP/1.1 200 OK\r\n\r\n"
        bench.clock.pass_(3 * bench.policy.tick + 6)
        assert await well() == "the schedule has stopped"


async def test_a_listener_that_accepts_nobody_does_not_answer(tmp_path: Path) -> None:
    unix, tcp = held(tmp_path / "sock")
    with unix, tcp:
        for sock in (unix, tcp):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(answers(sock), 0.05)


async def test_a_socket_that_listens_no_more_does_not_answer(tmp_path: Path) -> None:
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        unix.bind(str(tmp_path / "sock"))
        assert not await answers(tcp)
        assert not await answers(unix)


# --- reloading ------------------------------------------------------------------------------------


@pytest.fixture
def daemon(house: ForkedDaemon, ear: Ear) -> Iterator[Child]:
    with house.living(environ={"NOTIFY_SOCKET": ear.address}) as daemon:
        ear.until("READY")
        yield daemon
        assert daemon.end() == 0


def hang_up(daemon: Process | Child, ear: Ear) -> str:
    """SIGHUP, and what it says when it is done."""
    before = time.monotonic_ns() // 1000
    daemon.send(signal.SIGHUP)
    message = ear.message()
    assert message["RELOADING"] == "1"
    assert before <= int(message["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    message = ear.message()
    assert message["READY"] == "1"
    return message["STATUS"]


def test_sighup_puts_clients_and_names_and_policy_in_force_and_calls_nobody(
    house: House, daemon: Child, ear: Ear
) -> None:
    assert house.get("/v1/tokens/main")[0] == 200
    _, before = house.get("/v1/status")
    assert house.get("/v1/status", Host="broker.example")[0] == 403
    house.configure(
        policy="refresh_fraction = 0.75", more=f'[clients.orders]\nkey_sha256 = "{KEY_SHA256}"'
    )
    house.config.write_text(
        house.config.read_text().replace("[server]", '[server]\nallowed_hosts = ["broker.example"]')
    )
    assert hang_up(daemon, ear) == "configuration read"
    assert house.get("/v1/tokens/main")[1]["code"] == "missing-key"
    assert house.get("/v1/status", Host="broker.example")[0] == 200
    # Clients were told when the token is replaced: another policy moves that later only.
    least = before["apps"][0]["next_refresh_in"] + 1000
    until(  # the status may be that of a moment ago
        lambda: house.get("/v1/status")[1]["apps"][0]["next_refresh_in"] > least, "a later plan"
    )
    house.configure()
    assert hang_up(daemon, ear) == "configuration read"
    assert house.get("/v1/tokens/main")[0] == 200
    assert len(house.calls()) == 1


def test_who_waits_in_the_lane_is_looked_at_again(house: House, daemon: Child, ear: Ear) -> None:
    version = house.get("/v1/tokens/main")[1]["version"]
    watch = request("/v1/tokens/main?wait=60", If_None_Match=f'"{version}"')
    host, port = house.daemon.removeprefix("http://").split(":")
    with (
        socket.create_connection((host, int(port))) as one,
        socket.create_connection((host, int(port))) as other,
    ):
        for sock in (one, other):
            sock.sendall(watch)
            assert house.get("/livez")[0] == 200, (
                "who comes later is answered once it has been read"
            )
        house.configure(more=f'[clients.orders]\nkey_sha256 = "{KEY_SHA256}"')
        assert hang_up(daemon, ear) == "configuration read"
        other.settimeout(PATIENCE_S)
        assert other.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_a_file_that_will_not_do_changes_nothing_and_the_next_one_is_read(
    house: House, daemon: Child, ear: Ear
) -> None:
    house.configure(
        policy="refresh_fraction = 7\nmin_gab = 1",
        more=f'[clients.orders]\nkey_sha256 = "{KEY_SHA256}"',
    )
    status = hang_up(daemon, ear)
    assert status.startswith("the configuration is refused, the old one stays: ")
    assert "policy.refresh_fraction" in status
    assert "policy.min_gab" in status
    assert house.get("/v1/tokens/main")[0] == 200
    log = daemon.log.read_text()
    assert "reload-refused" in log
    assert "policy.min_gab" in log
    house.config.unlink()
    assert "does not exist" in hang_up(daemon, ear)
    house.configure(more=f'[clients.orders]\nkey_sha256 = "{KEY_SHA256}"')
    assert hang_up(daemon, ear) == "configuration read"
    assert house.get("/v1/tokens/main")[0] == 401


def test_what_needs_a_restart_is_named_and_left_as_it_is(
    house: House, daemon: Child, ear: Ear
) -> None:
    text = house.configure(app="daily_quota = 1000").read_text()
    house.config.write_text(text.replace("timeout = 5", "timeout = 6"))
    assert hang_up(daemon, ear) == "configuration read; a restart is needed for: wechat"
    assert "restart-needed" in daemon.log.read_text()
    _, status = house.get("/v1/status")
    assert status["apps"][0]["quota"]["limit"] == 1000  # the rest is applied


def test_a_shorter_tick_ticks_at_once(house: ForkedDaemon, ear: Ear) -> None:
    house.configure(policy="min_gap = 1\nmax_backoff = 1")
    slow = house.config.read_text().replace("tick = 0.2", "tick = 60")
    house.config.write_text(slow)
    house.control("/faults", {"kind": "status", "status": 503, "times": 1})
    with house.living(environ={"NOTIFY_SOCKET": ear.address}) as daemon:
        ear.until("READY")
        until(house.calls, "the first call is made, and fails")
        house.config.write_text(slow.replace("tick = 60", "tick = 0.1"))
        assert hang_up(daemon, ear) == "configuration read"
        until(lambda: len(house.calls()) == 2, "the next one, long before a minute is over")
        assert daemon.end() == 0


def test_each_part_that_cannot_change_is_found(house: House) -> None:
    settings = load(house.config, {})
    assert needs_restart(settings, load(house.config, {})) == []
    assert needs_restart(
        settings, replace(settings, server=replace(settings.server, listen=()))
    ) == ["server.listen"]
    assert (
        needs_restart(
            settings, replace(settings, server=replace(settings.server, allowed_hosts=("x",)))
        )
        == []
    )
    assert needs_restart(
        settings, replace(settings, wechat=replace(settings.wechat, timeout=1))
    ) == ["wechat"]
    assert needs_restart(
        settings, replace(settings, proxy=settings.proxy.model_copy(update={"rate": 7.0}))
    ) == ["proxy"]
    assert needs_restart(
        settings, replace(settings, store=replace(settings.store, path=Path("/else")))
    ) == ["store"]


# --- inherited sockets ----------------------------------------------------------------------------


@contextmanager
def started(
    house: House, sockets: list[socket.socket], **environ: str
) -> Iterator["subprocess.Popen[str]"]:
    command = handing_over(
        sockets, [sys.executable, "-m", "broker", "serve", "--config", str(house.config)]
    )
    fds = [sock.fileno() for sock in sockets]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, pass_fds=fds, env={**os.environ, **environ}, stdout=pipe, stderr=pipe, text=True
    ) as popen:
        try:
            yield popen
        finally:
            popen.kill()


def test_a_socket_beyond_loopback_without_clients_is_refused(house: House) -> None:
    with socket.create_server(("0.0.0.0", 0)) as wide:  # noqa: S104 -- the point
        with started(house, [wide]) as refused:
            _, errors = refused.communicate(timeout=PATIENCE_S)
        assert refused.returncode == 78
        assert errors.startswith("token-broker: clients: needed")
        assert "Traceback" not in errors
        house.configure(more=f'[clients.orders]\nkey_sha256 = "{KEY_SHA256}"')
        with started(house, [wide]) as daemon:
            assert daemon.stdout is not None
            assert f"http://0.0.0.0:{wide.getsockname()[1]}" in daemon.stdout.readline()


def test_clients_cannot_be_reloaded_away_from_a_socket_beyond_loopback(
    house: House, ear: Ear
) -> None:
    house.configure(more=f'[clients.orders]\nkey_sha256 = "{KEY_SHA256}"')
    with (
        socket.create_server(("0.0.0.0", 0)) as wide,  # noqa: S104
        started(house, [wide], NOTIFY_SOCKET=ear.address) as popen,
    ):
        ear.until("READY")
        house.daemon = f"http://127.0.0.1:{wide.getsockname()[1]}"
        house.configure()
        assert "clients: needed" in hang_up(Process(popen, house.home), ear)
        assert house.get("/v1/tokens/main")[0] == 401


@pytest.mark.parametrize(
    "kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["datagram", "not listening"]
)
def test_a_descriptor_that_does_not_listen_is_refused_by_its_name(
    house: House, kind: socket.SocketKind
) -> None:
    with socket.socket(socket.AF_INET, kind) as odd, started(house, [odd]) as refused:
        _, errors = refused.communicate(timeout=PATIENCE_S)
    assert refused.returncode == 1
    assert (
        errors == "token-broker: the inherited socket 3 (broker) does not listen: the unit needs"
        " ListenStream= and Accept=no\n"
    )


@pytest.mark.needs("systemd-socket-activate")
def test_systemds_own_tool_activates_it(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    path = house.home / "held.sock"
    command = ["systemd-socket-activate", "-l", address, "-l", str(path), "--fdname=tcp:unix"]
    command += [sys.executable, "-m", "broker", "serve", "--config", str(house.config)]
    log = (house.home / "log").open("w")
    with log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as popen:
        assert popen.stdout is not None
        try:
            until(path.exists, "the tool listens")
            house.daemon = f"http://{address}"
            assert house.get("/v1/tokens/main")[0] == 200
            assert f"serves on http://{address}, unix:{path}" in popen.stdout.readline()
            popen.terminate()
            assert popen.wait(PATIENCE_S) == 0
        finally:
            popen.kill()
    assert path.exists()  # it is not ours to remove


# --- who may connect ------------------------------------------------------------------------------

CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


@pytest.mark.needs("root", "setpriv", "python3")
def test_a_user_without_the_group_is_refused_by_the_kernel(house: House) -> None:
    for directory in [house.home, *house.home.parents]:  # so that it is the socket that refuses
        if (
            directory.stat().st_uid == os.geteuid()
            and directory.is_relative_to("/tmp/")  # noqa: S108
            and directory != Path("/tmp")  # noqa: S108
        ):
            directory.chmod(0o755)
    with house.serving():
        path = house.home / "broker.sock"
        os.chown(path, 0, 12345)
        stranger = ["setpriv", "--reuid=65534", "--regid=65534"]
        connect = ["/usr/bin/python3", "-c", CONNECT, str(path)]
        refused = subprocess.run(
            [*stranger, "--clear-groups", *connect], capture_output=True, text=True, check=False
        )
        assert "PermissionError: [Errno 13]" in refused.stderr
        subprocess.run([*stranger, "--groups=12345", *connect], check=True)
