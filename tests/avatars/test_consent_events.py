"""Those who took their consent back elsewhere: events that WeChat pushes, and what is no event."""

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.avatars.consent import push
from broker.core.secret import Secret
from tests.harness.consent import MESSAGE_KEY, TOKEN, Asking, asking_scene
from tests.harness.doubles import APPID

EVENTS = "/consent/events"
# The vectors of WeChat's own documents and sample code (WECHAT.md W137, W138).
OFFICIAL_KEY = "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C"
OFFICIAL_APPID = "wx5823bf96d3bd56c7"
OFFICIAL_SEALED = (
    "RypEvHKD8QQKFhvQ6QleEB4J58tiPdvo+rtK1I9qca6aM/wvqnLSV5zEPeusUiX5L5X/0lWfrf0QADHHhGd3QczcdCUp"
    "j911L3vg3W/sYYvuJTs3TUUkSUXxaccAS0qhxchrRYt66wiSpGLYL42aM6A8dTT+6k4aSknmPj48kzJs8qLjvd4Xgpue"
    "06DOdnLxAUHzM6+kDZ+HMZfJYuR+LtwGc2hgf5gsijff0ekUNXZiqATP7PF5mZxZ3Izoun1s4zG4LUMnvw2r+KqCKIw+"
    "3IQH03v+BCA9nMELNqbSf6tiWSrXJB3LAVGUcallcrw8V2t9EL4EhzJWrQUax5wLVMNS0+rUPA3k22Ncx4XXZS9o0MBH"
    "27Bo6BpNelZpS+/uh9KsNlY6bHCmJU9p8g7m3fVKn28H3KDYA5Pl/T8Z1ptDAVe0lXdQ2YoyyH2uyPIGHBZZIs2pDBS8"
    "R07+qN+E7Q=="
)


@pytest.fixture
async def sealed(tmp_path: Path) -> AsyncIterator[Asking]:
    async with asking_scene(tmp_path, message_key=Secret(MESSAGE_KEY)) as asking:
        yield asking


async def agreed(asking: Asking) -> str:
    """Let somebody agree; return their openid."""
    openid = await asking.phone()
    async with asking.visitor() as visitor:
        assert (await visitor.agree()).outcome == "kept"
    return openid


# --- the official vectors -------------------------------------------------------------------------


def test_the_official_signature_of_a_plain_message() -> None:
    signature = "899cf89e464efb63f54ddac96b0a0a235f53aa78"
    assert push.is_signed("AAAAA", signature, "1714037059", "486452656")
    assert not push.is_signed("AAAAB", signature, "1714037059", "486452656")
    query = {"signature": signature, "timestamp": "1714037059", "nonce": "486452656"}
    push.check("AAAAA", query, 1714037059 + 299)
    with pytest.raises(push.PushError, match="timestamp"):
        push.check("AAAAA", query, 1714037059 + 301)


def test_the_official_encrypted_message() -> None:
    signature = "477715d11cdb4164915debcba66cb864d751f3e6"
    assert push.is_signed("QDG6eK", signature, "1409659813", "1372623149", OFFICIAL_SEALED)
    message = push.decrypt(OFFICIAL_KEY, OFFICIAL_APPID, OFFICIAL_SEALED)
    fields = push.fields_of(message)
    assert (fields["Content"], fields["FromUserName"]) == ("hello", "mycreate")
    with pytest.raises(push.PushError, match="receiver"):
        push.decrypt(OFFICIAL_KEY, "wxanother", OFFICIAL_SEALED)


# --- the three events, and unfollowing ------------------------------------------------------------


@pytest.mark.parametrize("form", ["xml", "json"])
@pytest.mark.parametrize(
    ("event", "info"),
    [
        ("user_authorization_revoke", "205"),
        ("user_authorization_revoke", "301"),
        ("user_authorization_revoke", "201,205"),
        ("user_authorization_cancellation", ""),
        ("user_info_modified", ""),
        ("unsubscribe", ""),
    ],
)
async def test_an_event_deletes(asking: Asking, event: str, info: str, form: str) -> None:
    openid = await agreed(asking)
    answer = await asking.event(event, openid, revoke_info=info, format=form)
    assert answer == {"status": 200, "body": "success"}
    assert await asking.kept() == []
    assert (await asking.status_of(openid))[0] == "withheld"


@pytest.mark.parametrize("form", ["xml", "json"])
async def test_an_encrypted_event_deletes(sealed: Asking, form: str) -> None:
    openid = await agreed(sealed)
    order = {"revoke_info": "205", "format": form, "message_key": MESSAGE_KEY}
    answer = await sealed.event("user_authorization_revoke", openid, **order)
    assert answer == {"status": 200, "body": "success"}
    assert await sealed.kept() == []


@pytest.mark.parametrize("info", ["", "201", "202,206", "2055"])
async def test_a_withdrawal_of_something_else_leaves_the_avatar(asking: Asking, info: str) -> None:
    openid = await agreed(asking)
    answer = await asking.event("user_authorization_revoke", openid, revoke_info=info)
    assert answer == {"status": 200, "body": "success"}
    assert await asking.kept() == [openid]


@pytest.mark.parametrize("event", ["subscribe", "CLICK", "user_authorization", ""])
async def test_other_messages_are_taken_and_change_nothing(asking: Asking, event: str) -> None:
    openid = await agreed(asking)
    answer = await asking.event(event or "x", openid)
    assert answer == {"status": 200, "body": "success"}
    assert await asking.kept() == [openid]


async def test_an_event_about_somebody_else_or_another_app_changes_nothing(asking: Asking) -> None:
    openid = await agreed(asking)
    await asking.event("unsubscribe", "oSomebodyElse")
    await asking.event("user_authorization_cancellation", openid, appid="wxother")
    assert await asking.kept() == [openid]


async def test_an_event_from_before_a_new_consent_does_not_end_it(asking: Asking) -> None:
    openid = await agreed(asking)
    before = int(asking.there.clock.wall()) - 60
    await asking.event("unsubscribe", openid, created_at=before)
    assert await asking.kept() == [openid]
    await asking.event("unsubscribe", openid, created_at=before + 60)
    assert await asking.kept() == []


async def test_an_event_that_is_repeated_is_answered_the_same(asking: Asking) -> None:
    openid = await agreed(asking)
    for _ in range(3):
        assert (await asking.event("unsubscribe", openid))["body"] == "success"
    assert await asking.kept() == []


async def test_wechat_may_ask_whether_the_token_is_known(asking: Asking) -> None:
    stamp = str(int(asking.there.clock.wall()))
    signature = _signature(TOKEN, stamp, "7")
    query = f"signature={signature}&timestamp={stamp}&nonce=7&echostr=123456789"
    async with asking.visitor() as visitor:
        answer = await visitor.get(f"{EVENTS}?{query}")
        assert (answer.status, answer.text) == (200, "123456789")
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert (await visitor.get(f"{EVENTS}?{query.replace('nonce=7', 'nonce=8')}")).status == 403


def _signature(*words: str) -> str:
    text = "".join(sorted(words)).encode()
    return hashlib.sha1(text, usedforsecurity=False).hexdigest()


# --- what is no event of WeChat's -----------------------------------------------------------------

REVOKED = (
    "<xml><MsgType><![CDATA[event]]></MsgType><Event><![CDATA[unsubscribe]]></Event>"
    "<FromUserName><![CDATA[{openid}]]></FromUserName></xml>"
)


async def send(asking: Asking, body: bytes | str, **bend: str) -> tuple[int, str]:
    """Send a body as WeChat would, with what is bent in its query; return status and text."""
    stamp = bend.pop("timestamp", str(int(asking.there.clock.wall())))
    query: dict[str, Any] = {
        "signature": _signature(TOKEN, stamp, "7"),
        "timestamp": stamp,
        "nonce": "7",
        **bend,
    }
    url = asking.public + EVENTS
    async with asking.there.http.post(url, params=query, data=body) as answer:
        return answer.status, await answer.text()


async def test_a_wrong_signature_is_refused(asking: Asking) -> None:
    openid = await agreed(asking)
    body = REVOKED.format(openid=openid)
    for signature in ("", "0" * 40, "é", _signature("another", "1", "7")):
        status, text = await send(asking, body, signature=signature)
        assert (status, json.loads(text)["code"]) == (403, "message-refused")
    answer = await asking.event("unsubscribe", openid, token="anothertoken")
    assert answer["status"] == 403
    assert await asking.kept() == [openid]
    assert (await send(asking, body))[0] == 200
    assert await asking.kept() == []


@pytest.mark.parametrize("away", [-301, 301, None])
async def test_an_old_timestamp_is_refused(asking: Asking, away: int | None) -> None:
    openid = await agreed(asking)
    stamp = "soon" if away is None else str(int(asking.there.clock.wall()) + away)
    status, _ = await send(asking, REVOKED.format(openid=openid), timestamp=stamp)
    assert status == 403
    assert await asking.kept() == [openid]


LAUGHS = (
    '<!DOCTYPE xml [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    "<xml><Event>&b;</Event></xml>"
)


@pytest.mark.parametrize(
    "body",
    [
        LAUGHS,
        '<!DOCTYPE x SYSTEM "http://evil.example/x.dtd"><xml/>',
        '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><xml>&f;</xml>',
        "<xml><!-- a comment --><MsgType>event</MsgType></xml>",
        LAUGHS.encode("utf-16"),
        "<xml>",
        "",
        "nothing",
        "[1]",
        "{",
        '{"a":' * 10_000,
        b"\xff\xfe\x00",
        "<xml>&undefined;</xml>",
    ],
)
async def test_xml_with_declarations_and_other_nonsense_is_refused(
    asking: Asking, body: bytes | str
) -> None:
    status, text = await send(asking, body)
    assert (status, json.loads(text)["code"]) == (400, "message-refused")
    assert "root:" not in text


async def test_deep_nesting_is_read_and_means_nothing(asking: Asking) -> None:
    assert await send(asking, "<a>" * 9000 + "</a>" * 9000) == (200, "success")


async def test_a_megabyte_is_refused_before_it_is_read(asking: Asking) -> None:
    status, _ = await send(asking, b"<xml>" + b"x" * 1_000_000)
    assert status == 413


async def test_a_plain_message_is_refused_where_messages_are_encrypted(sealed: Asking) -> None:
    openid = await agreed(sealed)
    assert (await send(sealed, REVOKED.format(openid=openid)))[0] == 403
    raw = await send(sealed, REVOKED.format(openid=openid), encrypt_type="raw")
    assert raw[0] == 403
    assert await sealed.kept() == [openid]


@pytest.mark.parametrize("bend", ["key", "appid", "msg_signature"])
async def test_an_encrypted_message_that_is_not_for_us_is_refused(
    sealed: Asking, bend: str
) -> None:
    openid = await agreed(sealed)
    order: dict[str, Any] = {"message_key": MESSAGE_KEY}
    if bend == "key":
        order["message_key"] = "b" * 43
    if bend == "appid":
        order["appid"] = "wxanother"
    if bend == "msg_signature":
        body = f"<xml><Encrypt><![CDATA[{OFFICIAL_SEALED}]]></Encrypt></xml>"
        status, _ = await send(sealed, body, encrypt_type="aes", msg_signature="0" * 40)
        assert status == 403
    else:
        assert (await sealed.event("unsubscribe", openid, **order))["status"] in {400, 403}
    assert await sealed.kept() == [openid]


async def test_an_encrypted_message_is_refused_where_no_key_is_configured(asking: Asking) -> None:
    openid = await agreed(asking)
    assert (await asking.event("unsubscribe", openid, message_key=MESSAGE_KEY))["status"] == 403


async def test_without_a_message_token_there_is_no_such_route(tmp_path: Path) -> None:
    async with asking_scene(tmp_path, message_token=None) as asking:
        assert (await send(asking, "<xml/>"))[0] == 404


async def test_an_event_whose_deletion_fails_is_not_answered_with_success(
    asking: Asking,
) -> None:
    """WeChat then sends it again. Nothing is shown meanwhile, and the deletion is made later."""
    openid = await agreed(asking)
    file = asking.consents._file
    assert file is not None
    file._db.execute("pragma query_only = on")  # as on a read-only mount
    answer = await asking.event("unsubscribe", openid)
    assert answer["status"] == 503
    assert (await asking.status_of(openid))[0] == "withheld"
    file._db.execute("pragma query_only = off")
    await asking.consents.settle()
    assert file.all(0) == []


@given(st.binary(max_size=300))
def test_no_bytes_make_the_parser_raise_anything_but_its_own_error(body: bytes) -> None:
    try:
        fields = push.fields_of(body)
    except push.PushError:
        return
    assert all(isinstance(value, str) for value in fields.values())


@given(st.text(max_size=120))
def test_no_text_makes_decryption_raise_anything_but_its_own_error(text: str) -> None:
    with pytest.raises(push.PushError):
        push.decrypt(OFFICIAL_KEY, APPID, text)
