"""SIGHUP on a real daemon: apps come, go, and change their names and secrets while it serves."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.harness import invariants
from tests.harness.doubles import APPID, CANARY
from tests.harness.processes import House, Process, ask, run, until

SHOP = '[apps.shop]\nappid = "wxshop"\nsecret_file = "./main.secret"\n'


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    with house.sandboxed():
        house.configure()
        yield house


@pytest.fixture
def daemon(house: House) -> Iterator[Process]:
    with house.serving() as daemon:
        until(lambda: house.get("/readyz")[0] == 200, "ready")
        yield daemon


def said(house: House, event: str) -> bool:
    return f'"event": "{event}"' in (house.home / "daemon.log").read_text()


def token(house: House, app: str) -> tuple[int, Any]:
    return house.get(f"/v1/tokens/{app}")


def test_an_app_is_added_and_another_renamed_without_a_call_for_what_is_known(
    house: House, daemon: Process
) -> None:
    before = token(house, "main")[1]
    text = house.config.read_text().replace("[apps.main]", "[apps.site]")
    house.config.write_text(f"{text}\n{SHOP}")
    daemon.popen.send_signal(signal.SIGHUP)
    until(lambda: token(house, "site")[0] == 200 and token(house, "shop")[0] == 200, "both")
    after = token(house, "site")[1]
    assert (after["access_token"], after["version"]) == (before["access_token"], before["version"])
    assert token(house, APPID)[1]["app"] == "site"
    assert token(house, "main")[0] == 404
    assert len([call for call in house.calls() if call["appid"] == APPID]) == 1
    assert run("get", "site", "--config", str(house.config)).returncode == 0
    invariants.check(house)


def test_who_waits_for_an_app_that_goes_away_is_told_so_at_once(
    house: House, daemon: Process
) -> None:
    house.config.write_text(f"{house.config.read_text()}\n{SHOP}")
    daemon.popen.send_signal(signal.SIGHUP)
    until(lambda: token(house, "shop")[0] == 200, "the shop's token")
    version = token(house, "shop")[1]["version"]
    with ThreadPoolExecutor(4) as waiting:
        waits = [
            waiting.submit(
                house.get, "/v1/tokens/shop?wait=60", **{"If-None-Match": f'"{version}"', **more}
            )
            for more in ({}, {"Connection": "close"}, {}, {"Connection": "close"})
        ]
        text = house.config.read_text()
        house.config.write_text(text.replace(SHOP, ""))
        began = time.monotonic()
        daemon.popen.send_signal(signal.SIGHUP)
        answers = [wait.result(90) for wait in waits]
        assert time.monotonic() - began < 55
    assert {(status, problem["code"]) for status, problem in answers} == {(404, "unknown-app")}
    assert token(house, "main")[0] == 200


def test_what_cannot_be_applied_is_named_and_the_rest_is_applied(
    house: House, daemon: Process
) -> None:
    text = house.config.read_text().replace("timeout = 5", "timeout = 6")
    house.config.write_text(f"{text}\n{SHOP}")
    daemon.popen.send_signal(signal.SIGHUP)
    until(lambda: token(house, "shop")[0] == 200, "the shop's token")
    until(lambda: said(house, "restart-needed"), "it is named")
    assert '"keys": ["wechat"]' in (house.home / "daemon.log").read_text()


def test_a_wrong_configuration_changes_nothing(house: House, daemon: Process) -> None:
    house.config.write_text(f"{house.config.read_text()}\n{SHOP}\n[policy2]\n")
    daemon.popen.send_signal(signal.SIGHUP)
    until(lambda: said(house, "reload-refused"), "it is refused")
    assert token(house, "shop")[0] == 404
    assert token(house, "main")[0] == 200


def test_a_corrected_secret_file_is_taken_up_without_a_signal(house: House) -> None:
    """What the first call of all showed is the secret that the sandbox takes for right."""
    right = f"{CANARY}-right"
    query = f"grant_type=client_credential&appid={APPID}&secret={right}"
    assert "access_token" in ask("GET", f"{house.sandbox}/cgi-bin/token?{query}")[1]
    house.configure(policy="min_gap = 1\nmax_backoff = 1")
    with house.serving() as daemon:
        until(lambda: token(house, "main")[1].get("code") == "upstream-refused", "it is refused")
        new = house.home / "new"
        new.write_text(f"{right}\n")
        new.chmod(0o600)
        new.replace(house.home / "main.secret")
        until(partial(_has_token, house), "the right secret")
        assert said(house, "secret-changed")
        assert daemon.end() == 0
    assert right not in (house.home / "daemon.log").read_text()


def _has_token(house: House) -> bool:
    return token(house, "main")[0] == 200
