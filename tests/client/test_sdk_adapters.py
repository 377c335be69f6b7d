"""The adapters for SDKs, piece by piece.

They keep what is the SDK's own, pass on what is the broker's, and speak in WeChat's words.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from wechatpy.exceptions import WeChatClientException

from broker.client import TokenClient
from broker.client.sdks import WechatpySession
from tests.harness.crashpoints import ForkedDaemon, ForkServer
from tests.harness.doubles import APPID, CANARY

TOKEN = f"{APPID}_access_token"
CORP = f"""
[apps.corp]
appid = "ww0123456789abcdef"
secret = "{CANARY}-corpsecret"
endpoint = "wecom"
"""


@pytest.fixture
def house(tmp_path: Path, forks: ForkServer) -> Iterator[ForkedDaemon]:
    house = ForkedDaemon(tmp_path, fork_server=forks)
    with house.simulating():
        house.configure(more=CORP).chmod(0o600)
        with house.living():
            yield house


@pytest.fixture
def session(house: ForkedDaemon) -> Iterator[WechatpySession]:
    with TokenClient(house.daemon) as tokens:
        yield WechatpySession(tokens)


def test_the_token_is_always_the_brokers_whatever_the_sdk_set(
    session: WechatpySession, house: ForkedDaemon
) -> None:
    session.set(TOKEN, "of its own", 7200)
    assert session.get(TOKEN) == house.get("/v1/tokens/main")[1]["access_token"]


@pytest.mark.parametrize("key", ["component_access_token", f"{APPID}_refresh_token"])
def test_what_is_not_the_brokers_is_kept_in_memory(session: WechatpySession, key: str) -> None:
    assert session.get(key, "none") == "none"
    session.set(key, "held")
    session.set(key, None)  # wechatpy's own storage takes it for nothing said
    assert session.get(key) == "held"
    session.delete(key)
    assert session.get(key) is None


def test_a_ticket_of_wecom_is_the_sdks_own_affair(house: ForkedDaemon) -> None:
    with TokenClient(house.daemon, "corp") as tokens:
        session = WechatpySession(tokens)
        assert session.get("ww0123456789abcdef_jsapi_ticket") is None
        session.set("ww0123456789abcdef_jsapi_ticket", "ticket")
        assert session.get("ww0123456789abcdef_jsapi_ticket") == "ticket"


def test_tickets_have_their_end(session: WechatpySession) -> None:
    for kind in ("jsapi_ticket", "jsapi_card_ticket"):
        assert session.get(f"{APPID}_{kind}")
        assert session.get(f"{APPID}_{kind}_expires_at", 0) > 1_700_000_000


@pytest.mark.parametrize(
    ("app", "errcode", "words"), [("nobody", 40013, "invalid appid"), ("main", -1, "system error")]
)
def test_what_the_broker_says_comes_in_wechats_words(
    house: ForkedDaemon, app: str, errcode: int, words: str
) -> None:
    address = house.daemon if app == "nobody" else "http://127.0.0.1:9"
    session = WechatpySession(TokenClient(address, app, key=f"{CANARY}-key"))
    with pytest.raises(WeChatClientException) as refused:
        session.get(TOKEN)
    assert refused.value.errcode == errcode
    assert words in str(refused.value)
    assert CANARY not in f"{refused.value} {refused.value.__cause__}"
