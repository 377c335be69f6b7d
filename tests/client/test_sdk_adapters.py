"""The adapters for SDKs, piece by piece.

They keep what is the SDK's own, pass on what is the broker's, and speak in WeChat's words.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from wechatpy import WeChatClient
from wechatpy.exceptions import WeChatClientException, WeChatOAuthException

from broker.client import TokenClient
from broker.client.sdks import WechatpySession, wechatpy_oauth, wechatpy_wxa
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
        more = f'{CORP}[wecom]\napi_base = "{house.sandbox}"\n'
        house.configure(more=more).chmod(0o600)
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


def test_a_companys_ticket_is_the_brokers_and_a_type_it_has_not_the_sdks(
    house: ForkedDaemon,
) -> None:
    with TokenClient(house.daemon, "corp") as tokens:
        session = WechatpySession(tokens)
        held = house.get("/v1/tickets/corp/jsapi")[1]["ticket"]
        assert session.get("ww0123456789abcdef_jsapi_ticket") == held
        assert session.get("ww0123456789abcdef_jsapi_card_ticket") is None
        session.set("ww0123456789abcdef_jsapi_card_ticket", "ticket")
        assert session.get("ww0123456789abcdef_jsapi_card_ticket") == "ticket"


@pytest.mark.parametrize(("app", "errcode"), [("main", 40029), ("nobody", 40013), ("corp", -1)])
def test_a_login_that_fails_is_the_sdks_own_exception(
    house: ForkedDaemon, app: str, errcode: int
) -> None:
    with TokenClient(house.daemon, app) as tokens:
        client = WeChatClient(APPID, None, session=WechatpySession(tokens))
        with pytest.raises(WeChatClientException) as refused:
            wechatpy_wxa(tokens, client).code_to_session("made-up")
        assert refused.value.errcode == errcode
        oauth = wechatpy_oauth(tokens, APPID, "https://shop.example/back", state="s")
        with pytest.raises(WeChatOAuthException) as unauthorized:
            oauth.fetch_access_token("made-up")
        assert unauthorized.value.errcode == errcode
        assert "state=s" in oauth.authorize_url


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
