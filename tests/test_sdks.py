"""Real SDKs, each in a process of its own, against a real daemon and sandbox by the drop-in paths."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import invariants
from tests.doubles import APPID
from tests.processes import House, until

KEY = "the-key-of-the-sdk"  # on a command line, where no canary may be

WECHATPY = """
import json, sys, threading
import wechatpy
broker, sandbox, appid, secret, task = sys.argv[1:5] + [sys.argv[5]]

class Client(wechatpy.WeChatClient):
    API_BASE_URL = sandbox + "/cgi-bin/"
    fetched = 0

    def fetch_access_token(self):
        type(self).fetched += 1
        params = {"grant_type": "client_credential", "appid": self.appid, "secret": self.secret}
        return self._fetch_access_token(broker + "/cgi-bin/token", params)

said = {}
def call(client):
    try:
        return client.user.get_followers()["total"]
    except wechatpy.WeChatException as error:
        return {"errcode": error.errcode, "errmsg": error.errmsg}
    except RecursionError:
        return "endless"

if task == "crowd":
    clients = [Client(appid, secret) for _ in range(50)]
    found = []
    threads = [threading.Thread(target=lambda one=one: found.append(call(one))) for one in clients]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    said = {"answers": found}
else:
    client = Client(appid, secret)
    said["first"] = call(client)
    for line in sys.stdin:
        said["then"] = call(client)
        break
print(json.dumps({**said, "fetched": Client.fetched}))
"""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    with house.sandboxed():
        key = tmp_path / "sdk.key"
        key.write_text(KEY)
        key.chmod(0o600)
        clients = f'[compat]\nenabled = true\n[clients.sdk]\nkey_file = "{key}"\n'
        house.configure(policy="min_gap = 0.02\nverify_gap = 0.02\n", more=clients)
        yield house


def wechatpy(house: House, task: str, *, between: str = "", key: str = KEY) -> Any:
    """Run the SDK; `between` its two calls that happens in the sandbox. What it said."""
    command = [sys.executable, "-c", WECHATPY, house.daemon, house.sandbox, APPID, key, task]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sdk:
        if between:
            until(lambda: house.control("")["accounts"].get(APPID, {}).get("quota_used", {}).get("user/get"), "the first call")
            house.control(between, {"appid": APPID})
        out, err = sdk.communicate("go\n", timeout=60)
    assert sdk.returncode == 0, err
    return json.loads(out)


def test_wechatpy_calls_with_the_brokers_token(house: House) -> None:
    with house.serving():
        assert wechatpy(house, "calls") == {"first": 24, "then": 24, "fetched": 1}
        assert len(house.calls()) == 1
        invariants.check(house)


def test_fifty_clients_of_wechatpy_at_a_cold_start_cost_one_token_call(house: House) -> None:
    with house.serving():
        assert wechatpy(house, "crowd") == {"answers": [24] * 50, "fetched": 50}
        assert len(house.calls()) == 1
        invariants.check(house)


def test_wechatpy_goes_on_after_somebody_else_killed_the_token(house: House) -> None:
    with house.serving():
        assert wechatpy(house, "calls", between="/kill") == {"first": 24, "then": 24, "fetched": 2}
        assert len(house.calls()) == 2
        invariants.check(house)


def test_a_token_that_stays_dead_ends_in_an_error_and_not_in_a_recursion(house: House) -> None:
    house.control("/faults", {"kind": "errcode", "errcode": 40001, "path": "/cgi-bin/user/get", "times": None})
    with house.serving():
        said = wechatpy(house, "calls")
        assert said["first"]["errcode"] == 45011
        assert said["fetched"] <= 102
        assert len(house.calls()) == 1  # WeChat itself said that the token lives
        invariants.check(house)


def test_a_wrong_key_is_wechats_40125_in_the_sdks_own_exception(house: House) -> None:
    with house.serving():
        said = wechatpy(house, "calls", key="wrong-but-long-enough")
        assert said["first"]["errcode"] == 40125
        assert "invalid appsecret" in said["first"]["errmsg"]
        assert "wrong-but-long-enough" not in said["first"]["errmsg"]
        assert house.calls() == [] or len(house.calls()) == 1  # the schedule's own
