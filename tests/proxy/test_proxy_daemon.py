"""The proxy of a real daemon, in front of a real sandbox.

Large bodies pass in bounded memory, a second issuer is survived, and nothing is in the log.
"""

import asyncio
import hashlib
import io
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.harness import invariants
from tests.harness.crashpoints import Child, ForkedDaemon, ForkServer
from tests.harness.doubles import APPID, CANARY
from tests.harness.processes import ask, until

KEY = f"{CANARY}-key-of-the-service"
MB = 1024 * 1024
BEARER = {"Authorization": f"Bearer {KEY}"}
UPLOAD, DOWNLOAD = "/cgi-bin/media/upload?type=image", "/cgi-bin/media/get?media_id="


@pytest.fixture
def house(tmp_path: Path, forks: ForkServer) -> Iterator[ForkedDaemon]:
    house = ForkedDaemon(tmp_path, fork_server=forks)
    with house.simulating():
        key = tmp_path / "service.key"
        key.write_text(KEY)
        key.chmod(0o600)
        more = f"[compat]\nenabled = true\n[proxy]\nenabled = true\nmax_body = {300 * MB}\n"
        more += f'[clients.service]\nkey_file = "{key}"\nscopes = ["proxy"]\n'
        house.configure(policy="min_gap = 0.02\nverify_gap = 0.02\n", more=more)
        yield house


def call(house: ForkedDaemon, path: str = "/cgi-bin/user/get") -> dict[str, object]:
    status, answer = ask("GET", house.daemon + path, headers=BEARER)
    assert status == 200
    assert isinstance(answer, dict)
    return answer


async def upload(house: ForkedDaemon, size: int) -> str:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size // MB):
            yield bytes(MB)

    headers = {**BEARER, "Content-Type": "application/octet-stream"}
    async with (
        aiohttp.ClientSession(house.daemon) as session,
        session.post(UPLOAD, data=pieces(), headers=headers) as answer,
    ):
        said = json.loads(await answer.read())
        assert answer.status == 200
    assert "media_id" in said, said
    return str(said["media_id"])


def resident(daemon: Child, what: str = "VmRSS") -> float:
    """MB; VmHWM is the most there ever was."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return (
        next(int(line.split()[1]) for line in status.splitlines() if line.startswith(what)) / 1024
    )


async def test_a_multipart_upload_of_ten_megabytes_and_its_download(house: ForkedDaemon) -> None:
    body = bytes(range(256)) * (10 * MB // 256)
    with house.living():
        async with aiohttp.ClientSession(house.daemon, headers=BEARER) as session:
            form = aiohttp.FormData()
            form.add_field("media", io.BytesIO(body), filename="a.png", content_type="image/png")
            async with session.post(UPLOAD, data=form) as answer:
                said = json.loads(await answer.read())
            kept = house.control("")["media"][said["media_id"]]
            assert (kept["size"], kept["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
            async with session.get(DOWNLOAD + said["media_id"]) as answer:
                got = await answer.read()
                assert (len(got), answer.content_type) == (len(body), "image/png")
                assert got[:600] == (bytes(range(251)) * 3)[:600]
        assert len(house.calls()) == 1
        invariants.check(house)


async def test_large_bodies_pass_in_bounded_memory_both_ways(house: ForkedDaemon) -> None:
    with house.living() as daemon:
        call(house)
        before = resident(daemon, "VmHWM")
        media = await upload(house, 200 * MB)
        async with (
            aiohttp.ClientSession(house.daemon) as session,
            session.get(DOWNLOAD + media, headers=BEARER) as answer,
        ):
            size = 0
            async for piece in answer.content.iter_any():
                size += len(piece)
        assert size == 200 * MB
        assert resident(daemon, "VmHWM") - before < 30


async def test_a_reader_that_stops_holds_up_wechat_and_no_memory(house: ForkedDaemon) -> None:
    with house.living() as daemon:
        media = await upload(house, 200 * MB)
        before = resident(daemon, "VmHWM")
        at = urlsplit(house.daemon)
        request = (
            f"GET {DOWNLOAD}{media} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer"
            f" {KEY}\r\n\r\n"
        )
        stopped = [socket.create_connection((at.hostname, at.port)) for _ in range(5)]
        for one in stopped:
            one.sendall(request.encode())
            assert one.recv(100_000)
        assert call(house)["total"] == 24
        assert resident(daemon, "VmHWM") - before < 40
        for one in stopped:
            one.close()


def test_a_token_killed_by_a_second_issuer_costs_one_check_and_one_refresh_and_the_call_succeeds(
    house: ForkedDaemon,
) -> None:
    with house.living():
        assert call(house)["total"] == 24
        began = time.monotonic()
        until(lambda: time.monotonic() > began + 0.1, "min_gap is over")
        house.control("/kill", {"appid": APPID})
        assert call(house)["total"] == 24
        assert len(house.calls()) == 2
        assert (
            'token_broker_verifications_total{app="main",verdict="dead"} 1.0'
            in house.get("/metrics")[1]
        )
        invariants.check(house)


def test_a_token_that_stays_dead_for_one_interface_is_bounded_and_costs_no_token_call(
    house: ForkedDaemon,
) -> None:
    house.control(
        "/faults", {"kind": "errcode", "errcode": 40001, "path": "/cgi-bin/user/get", "times": None}
    )
    with house.living():
        for _ in range(30):
            assert call(house)["errcode"] == 40001
        assert len(house.calls()) == 1  # WeChat itself said that the token lives
        invariants.check(house)


async def test_fifty_callers_at_a_cold_start_cost_one_token_call(house: ForkedDaemon) -> None:
    with house.living():
        async with aiohttp.ClientSession(house.daemon, headers=BEARER) as session:

            async def one() -> object:
                async with session.get("/cgi-bin/user/get") as answer:
                    return json.loads(await answer.read())["total"]

            assert await asyncio.gather(*(one() for _ in range(50))) == [24] * 50
        assert len(house.calls()) == 1
        invariants.check(house)


def test_a_handle_works_after_a_restart_and_neither_it_nor_the_token_is_in_the_log(
    house: ForkedDaemon,
) -> None:
    asked = f"/cgi-bin/token?grant_type=client_credential&appid={APPID}&secret={KEY}"
    with house.living() as first:
        handle = ask("GET", house.daemon + asked)[1]["access_token"]
        assert (
            ask("GET", f"{house.daemon}/cgi-bin/user/get?access_token={handle}")[1]["total"] == 24
        )
        first.end()
    with house.living():
        assert (
            ask("GET", f"{house.daemon}/cgi-bin/user/get?access_token={handle}")[1]["total"] == 24
        )
        assert (
            ask("GET", f"{house.daemon}/cgi-bin/user/get?access_token={handle}x")[1]["errcode"]
            == 40001
        )
        house.control("/faults", {"kind": "reset", "path": "/cgi-bin/user/get"})
        assert (
            ask("GET", f"{house.daemon}/cgi-bin/user/get?access_token={handle}")[1]["errcode"] == -1
        )
        invariants.check(house)
    log = (house.home / "daemon.log").read_text()
    assert handle not in log
    assert KEY not in log


def test_a_body_that_is_not_packed_as_it_says_is_the_services_fault_and_no_error_of_ours_in_the_log(
    house: ForkedDaemon,
) -> None:
    with house.living():
        at = urlsplit(house.daemon)
        with socket.create_connection((at.hostname, at.port), timeout=20) as sock:
            head = (
                f"POST {UPLOAD} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer"
                f" {KEY}\r\nContent-Encoding: gzip\r\n"
            )
            sock.sendall(f"{head}Content-Length: 10\r\n\r\n".encode())
            assert b"47001" in sock.recv(65536)
            sock.sendall(b"not packed")
            assert sock.recv(65536) == b""
        assert call(house)["total"] == 24
    assert "Traceback" not in (house.home / "daemon.log").read_text()


WECHATPY = """
import io, sys, wechatpy
broker, appid = sys.argv[1:]
secret = sys.stdin.readline().strip()

class Client(wechatpy.WeChatClient):
    API_BASE_URL = broker + "/cgi-bin/"

    def fetch_access_token(self):
        params = {"grant_type": "client_credential", "appid": self.appid, "secret": self.secret}
        return self._fetch_access_token(self.API_BASE_URL + "token", params)

client = Client(appid, secret)
print(client.user.get_followers()["total"], flush=True)
sys.stdin.readline()
print(client.user.get_followers()["total"])
media = client.media.upload("image", ("a.png", io.BytesIO(bytes(10_000_000)), "image/png"))
print(len(client.media.download(media["media_id"]).content))
"""


def test_wechatpy_calls_through_the_broker_by_its_address_alone(house: ForkedDaemon) -> None:
    with house.living():
        command = [sys.executable, "-c", WECHATPY, house.daemon, APPID]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as sdk:
            assert sdk.stdin
            assert sdk.stdout
            sdk.stdin.write(f"{KEY}\n")
            sdk.stdin.flush()
            assert sdk.stdout.readline() == "24\n"
            house.control("/kill", {"appid": APPID})
            out, err = sdk.communicate("go on\n", timeout=60)
        assert out.split() == ["24", "10000000"], err
        assert len(house.calls()) == 2
        invariants.check(house)


@pytest.mark.parametrize("kind", ["silence", "drip", "endless_headers"])
def test_a_wechat_that_does_not_answer_in_time_is_an_errcode(
    house: ForkedDaemon, kind: str
) -> None:
    house.config.write_text(
        house.config.read_text().replace(
            "[proxy]\n", "[proxy]\nidle_timeout = 0.5\ntotal_timeout = 3\n"
        )
    )
    house.control("/faults", {"kind": kind, "path": "/cgi-bin/user/get"})
    with house.living():
        assert call(house)["errcode"] == -1
        assert call(house)["total"] == 24


async def test_a_connection_that_dribbles_a_body_is_given_up(house: ForkedDaemon) -> None:
    house.config.write_text(
        house.config.read_text().replace("[proxy]\n", "[proxy]\nidle_timeout = 0.3\n")
    )
    with house.living():
        at = urlsplit(house.daemon)
        reader, writer = await asyncio.open_connection(at.hostname, at.port)
        head = (
            f"POST {UPLOAD} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer"
            f" {KEY}\r\nContent-Length: 1000000\r\n\r\n"
        )
        writer.write(head.encode() + b"x" * 1000)
        async with asyncio.timeout(15):
            said = await reader.readuntil(b"\r\n\r\n")
        assert b"200 OK" in said
        writer.close()
