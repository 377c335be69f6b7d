"""The sandbox as WeChat where people agree: its dialog, events, pictures that die."""

import base64
import hashlib
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree as ET

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from wechatpy.crypto import WeChatCrypto

from broker.sandbox.events import EventOrder, signed
from broker.sandbox.followers import openid
from tests.harness.sandbox_bench import APP, SECRET, SandboxBench

AUTHORIZE = "/connect/oauth2/authorize"
BACK = "https://site.example/return?x=1"
ASKED = {
    "appid": APP,
    "redirect_uri": BACK,
    "response_type": "code",
    "scope": "snsapi_userinfo",
    "state": "abc123",
}
KEY = base64.b64encode(bytes(range(32))).decode().rstrip("=")


async def page(bench: SandboxBench, **more: str) -> tuple[int, str, dict[str, str]]:
    """Open the page: status, text, and the parameters it leads back with."""
    answer = await bench.client.get(AUTHORIZE, params={**ASKED, **more}, allow_redirects=False)
    where = answer.headers.get("Location", "")
    assert not where or where.startswith(BACK)
    query = {name: values[0] for name, values in parse_qs(urlsplit(where).query).items()}
    return answer.status, await answer.text(), query


async def whose(bench: SandboxBench, code: str) -> dict[str, Any]:
    grant = {"appid": APP, "secret": SECRET, "code": code, "grant_type": "authorization_code"}
    return await bench.get("/sns/oauth2/access_token", **grant)


async def test_it_asks_and_either_answer_leads_back(bench: SandboxBench) -> None:
    status, text, _ = await page(bench)
    assert status == 200
    assert 'value="allow"' in text
    assert 'value="refuse"' in text
    status, _, query = await page(bench, answer="refuse")
    assert (status, query) == (302, {"x": "1", "state": "abc123"})
    status, _, query = await page(bench, answer="allow")
    assert (status, query["state"]) == (302, "abc123")
    told = await whose(bench, query["code"])
    assert (told["openid"], told["scope"]) == (openid(APP, 5), "snsapi_userinfo")
    assert "is_snapshotuser" not in told
    assert (await whose(bench, query["code"]))["errcode"] == 40163


async def test_the_base_scope_is_silent_and_gives_no_profile(bench: SandboxBench) -> None:
    status, _, query = await page(bench, scope="snsapi_base")
    assert status == 302
    told = await whose(bench, query["code"])
    user = {"access_token": told["access_token"], "openid": told["openid"]}
    assert (await bench.get("/sns/userinfo", **user))["errcode"] == 48001


async def test_a_silent_phone_is_asked_where_the_page_insists(bench: SandboxBench) -> None:
    await bench.post("/sandbox/phone", {"appid": APP, "silent": True})
    assert (await page(bench))[0] == 302
    assert (await page(bench, forcePopup="true"))[0] == 200


async def test_a_snapshot_is_a_virtual_account_without_a_dialog(bench: SandboxBench) -> None:
    order = {"appid": APP, "openid": "oReal", "unionid": "u1", "snapshot": True}
    await bench.post("/sandbox/phone", order)
    status, _, query = await page(bench, forcePopup="true")
    assert status == 302
    told = await whose(bench, query["code"])
    assert told["is_snapshotuser"] == 1
    assert told["openid"] != "oReal"
    assert "unionid" not in told


async def test_who_holds_the_phone_can_be_told(bench: SandboxBench) -> None:
    await bench.post("/sandbox/phone", {"appid": APP, "openid": "oMe", "unionid": "u1"})
    told = await whose(bench, (await page(bench, answer="allow"))[2]["code"])
    assert (told["openid"], told["unionid"]) == ("oMe", "u1")
    await bench.post("/sandbox/followers", {"appid": APP, "withhold": True})
    told = await bench.post("/sandbox/phone", {"appid": APP})
    assert told["openid"] == openid(APP, 0)
    refused = await bench.client.post("/sandbox/phone", json={"appid": APP, "silent": "yes"})
    assert refused.status == 400


@pytest.mark.parametrize(
    "bend",
    [
        {"appid": "nobody"},
        {"redirect_uri": "javascript:alert(1)"},
        {"response_type": "token"},
        {"scope": "snsapi_login"},
        {"state": "<b>"},
        {"state": "x" * 129},
    ],
)
async def test_a_mistake_is_said_and_leads_nowhere(
    bench: SandboxBench, bend: dict[str, str]
) -> None:
    status, text, query = await page(bench, **bend, answer="allow")
    assert (status, query) == (200, {})
    assert text.startswith("参数错误")


async def test_a_picture_that_was_changed_is_dead(bench: SandboxBench) -> None:
    who = openid(APP, 0)
    first = await headimgurl(bench, who)
    alive = await bench.client.get(first)
    assert "X-ErrNo" not in alive.headers
    await bench.post("/sandbox/picture", {"appid": APP, "openid": who})
    second = await headimgurl(bench, who)
    assert second != first
    dead = await bench.client.get(first)
    assert (dead.status, dead.content_type) == (200, "image/png")
    assert dead.headers["X-ErrNo"] != "0"
    assert await dead.read() != await alive.read()
    assert "X-ErrNo" not in (await bench.client.get(second)).headers


async def headimgurl(bench: SandboxBench, who: str) -> str:
    token = (await bench.classic())["access_token"]
    told = await bench.get("/cgi-bin/user/info", access_token=token, openid=who)
    return urlsplit(str(told["headimgurl"])).path


# --- events ---------------------------------------------------------------------------------------

ORDER = EventOrder(APP, "user_authorization_revoke", "oMe", "205", 1_700_000_000)


def test_a_plain_event_is_signed_and_has_the_documents_fields() -> None:
    message = signed(ORDER, "token", None, "xml", 1_700_000_005)
    words = ["token", message.query["timestamp"], message.query["nonce"]]
    digest = hashlib.sha1("".join(sorted(words)).encode(), usedforsecurity=False).hexdigest()
    assert message.query["signature"] == digest
    assert {child.tag: child.text for child in ET.fromstring(message.body)} == {  # noqa: S314
        "ToUserName": "gh_0123456789ab",
        "FromUserName": "oMe",
        "CreateTime": "1700000000",
        "MsgType": "event",
        "Event": "user_authorization_revoke",
        "OpenID": "oMe",
        "AppID": APP,
        "RevokeInfo": "205",
    }
    fields = json.loads(signed(ORDER, "token", None, "json", 1_700_000_005).body)
    assert fields[" OpenID"] == "oMe", "with the blank that the official sample has"


def test_an_encrypted_event_is_one_to_an_sdk() -> None:
    message = signed(ORDER, "token", KEY, "xml", 1_700_000_005)
    query = message.query
    assert query["encrypt_type"] == "aes"
    opened = WeChatCrypto("token", KEY, APP).decrypt_message(
        message.body.decode(), query["msg_signature"], query["timestamp"], query["nonce"]
    )
    assert "<RevokeInfo><![CDATA[205]]></RevokeInfo>" in opened


async def test_an_event_is_pushed_and_the_answer_told(bench: SandboxBench) -> None:
    came: list[tuple[dict[str, str], bytes]] = []

    async def hear(request: web.Request) -> web.Response:
        came.append((dict(request.query), await request.read()))
        return web.Response(text="success")

    app = web.Application()
    app.router.add_post("/push", hear)
    server = TestServer(app)
    await server.start_server()
    order = {"appid": APP, "event": "unsubscribe", "openid": "oMe", "token": "t"}
    try:
        told = await bench.post("/sandbox/event", {**order, "url": str(server.make_url("/push"))})
    finally:
        await server.close()
    assert told == {"status": 200, "body": "success"}
    ((query, body),) = came
    assert query["openid"] == "oMe"
    assert b"<Event><![CDATA[unsubscribe]]></Event>" in body
    assert b"OpenID>" not in body


@pytest.mark.parametrize(
    "bend",
    [{"event": None}, {"url": "http://127.0.0.1:9/"}, {"format": "yaml"}, {"created_at": "now"}],
)
async def test_an_event_that_cannot_be_pushed_is_refused(
    bench: SandboxBench, bend: dict[str, Any]
) -> None:
    order = {"appid": APP, "event": "x", "url": "http://127.0.0.1:9/", "token": "t", **bend}
    answer = await bench.client.post("/sandbox/event", json=order)
    assert answer.status == 400
    assert (next(iter(bend)) if "url" not in bend else "url") in (await answer.json())["detail"]
