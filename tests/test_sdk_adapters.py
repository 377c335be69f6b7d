"""The adapters for SDKs, piece by piece: whose request was refused, and what they say in WeChat's words."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wechatpy.exceptions import WeChatClientException

from broker.client import TokenClient
from broker.client.sdks import WechatpySession
from tests.doubles import APPID, CANARY
from tests.processes import House, ask, until

TOKEN = f"{APPID}_access_token"
MIN_GAP_S = 0.02
CORP = f"""
[apps.corp]
appid = "ww0123456789abcdef"
secret = "{CANARY}-corpsecret"
endpoint = "wecom"
"""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    with house.sandboxed():
        house.configure(policy=f"min_gap = {MIN_GAP_S}\nverify_gap = 0.02\n", more=CORP).chmod(0o600)
        with house.serving():
            yield house


@pytest.fixture
def session(house: House) -> Iterator[WechatpySession]:
    with TokenClient(house.daemon) as tokens:
        yield WechatpySession(tokens)


def test_a_refused_token_is_named_in_a_report_and_the_next_is_another(house: House, session: WechatpySession) -> None:
    dead = session.get(TOKEN)
    until(lambda: house.control("")["now"] - mine(house)[-1]["at"] > 2 * MIN_GAP_S, "min_gap")
    house.control("/kill", {"appid": APPID})
    said = session.refused()
    assert said["access_token"] == session.get(TOKEN) != dead
    assert 0 < said["expires_in"] <= 7200
    assert len(mine(house)) == 2


def test_the_second_refusal_of_a_request_is_an_error_and_the_next_request_begins_anew(session: WechatpySession) -> None:
    for _ in range(3):
        session.get(TOKEN)  # as wechatpy begins a request
        session.refused()
        session.get(TOKEN)  # as it sends it again
        with pytest.raises(WeChatClientException) as refused:
            session.refused()
        assert refused.value.errcode == 40001


def test_each_thread_has_its_own_request(session: WechatpySession) -> None:
    session.get(TOKEN)
    session.refused()
    outcomes: list[Any] = []

    def other() -> None:
        session.get(TOKEN)
        outcomes.append(session.refused())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert outcomes[0]["access_token"] == session.get(TOKEN)
    with pytest.raises(WeChatClientException):
        session.refused()


def test_fetching_before_anything_was_refused_reports_nothing(house: House, session: WechatpySession) -> None:
    assert session.refused()["access_token"] == session.get(TOKEN)
    assert len(mine(house)) == 1
    assert "token_broker_verifications_total{" not in ask("GET", house.daemon + "/metrics")[1]


@pytest.mark.parametrize("key", ["component_access_token", f"{APPID}_refresh_token"])
def test_what_is_not_the_brokers_is_kept_in_memory(session: WechatpySession, key: str) -> None:
    assert session.get(key, "none") == "none"
    session.set(key, "held")
    session.set(key, None)  # wechatpy's own storage takes it for nothing said
    assert session.get(key) == "held"
    session.delete(key)
    assert session.get(key) is None


def test_a_ticket_of_wecom_is_the_sdks_own_affair(house: House) -> None:
    with TokenClient(house.daemon, "corp") as tokens:
        session = WechatpySession(tokens)
        assert session.get("ww0123456789abcdef_jsapi_ticket") is None
        session.set("ww0123456789abcdef_jsapi_ticket", "ticket")
        assert session.get("ww0123456789abcdef_jsapi_ticket") == "ticket"


def test_tickets_have_their_end(session: WechatpySession) -> None:
    for kind in ("jsapi_ticket", "jsapi_card_ticket"):
        assert session.get(f"{APPID}_{kind}")
        assert session.get(f"{APPID}_{kind}_expires_at", 0) > 1_700_000_000


@pytest.mark.parametrize(("app", "errcode", "words"), [("nobody", 40013, "invalid appid"), ("main", -1, "system error")])
def test_what_the_broker_says_comes_in_wechats_words(house: House, app: str, errcode: int, words: str) -> None:
    address = house.daemon if app == "nobody" else "http://127.0.0.1:9"
    session = WechatpySession(TokenClient(address, app, key=f"{CANARY}-key"))
    with pytest.raises(WeChatClientException) as refused:
        session.get(TOKEN)
    assert refused.value.errcode == errcode
    assert words in str(refused.value)
    assert CANARY not in f"{refused.value} {refused.value.__cause__}"


def mine(house: House) -> list[dict[str, Any]]:
    return [call for call in house.calls() if call["appid"] == APPID]
