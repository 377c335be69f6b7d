"""The page on which people agree: what it says, what the button does, and what cannot be forged."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from broker.sandbox import SandboxOptions
from broker.sandbox.followers import openid as openid_of
from tests.harness.consent import DAY_S, DAYS, Asking, asking_scene, query_of
from tests.harness.doubles import APPID, CANARY
from tests.harness.small_disk import fill

USERINFO, EXCHANGE = "/sns/userinfo", "/sns/oauth2/access_token"


# --- reading --------------------------------------------------------------------------------------


async def test_the_page_says_who_what_why_how_long_and_how_to_take_it_back(asking: Asking) -> None:
    async with asking.visitor() as visitor:
        page = await visitor.get("/consent")
        english = await visitor.get("/consent", **{"Accept-Language": "en"})
    assert page.status == 200
    assert 'lang="zh-CN"' in page.text
    for said in ("示例公司", "在关注者墙上显示头像", "30 天", "privacy@example.com", "撤回同意"):
        assert said in page.text
    assert 'lang="en"' in english.text
    for said in (
        "Example Ltd",
        "to show it on the wall of followers",
        "For 30 days",
        "Take it back",
    ):
        assert said in english.text
    assert page.text.count('class="agree"') == 1
    assert "<script" not in page.text
    assert asking.there.wire.calls[EXCHANGE] == asking.there.wire.calls[USERINFO] == 0


@pytest.mark.parametrize(
    ("accept", "language"),
    [
        ("", "zh-CN"),
        ("*", "zh-CN"),
        ("fr", "zh-CN"),
        ("zh-TW", "zh-CN"),
        ("en-GB,zh;q=0.5", "en"),
        ("zh,en;q=0.9", "zh-CN"),
    ],
)
async def test_it_speaks_chinese_unless_english_is_asked_for(
    asking: Asking, accept: str, language: str
) -> None:
    async with asking.visitor() as visitor:
        page = await visitor.get("/consent", **{"Accept-Language": accept})
    assert f'lang="{language}"' in page.text


async def test_its_cookie_and_headers_keep_the_page_to_itself(asking: Asking) -> None:
    async with asking.visitor() as visitor:
        page = await visitor.get("/consent")
    cookie = page.headers["Set-Cookie"]
    assert cookie.startswith("__Host-consent=")
    for attribute in ("HttpOnly", "Secure", "SameSite=Lax", "Path=/"):
        assert attribute in cookie
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert f"form-action 'self' {asking.there.sandbox};" in policy


async def test_only_what_people_need_is_on_the_public_listener(asking: Asking) -> None:
    async with asking.visitor() as visitor:
        for path in ("/", "/avatars", "/v1/avatars", "/readyz", "/images/x", "/MP_verify_x.txt"):
            assert (await visitor.get(path)).status == 404
        assert (await visitor.get("/consent", Host="evil.example")).status == 403


async def test_the_file_that_proves_the_domain_is_served_where_it_is_named(tmp_path: Path) -> None:
    async with (
        asking_scene(tmp_path, verification_file="MP_verify_aB3.txt") as asking,
        asking.visitor() as visitor,
    ):
        proof = await visitor.get("/MP_verify_aB3.txt")
        assert (proof.status, proof.text) == (200, "aB3")
        assert (await visitor.get("/MP_verify_other.txt")).status == 404


# --- agreeing -------------------------------------------------------------------------------------


async def test_the_button_leads_to_wechats_dialog(asking: Asking) -> None:
    async with asking.visitor() as visitor:
        led = await visitor.press("agree")
    assert led.status == 303
    assert led.location.startswith(f"{asking.there.sandbox}/connect/oauth2/authorize?appid=")
    assert led.location.endswith("#wechat_redirect")
    query = query_of(led.location.removesuffix("#wechat_redirect"))
    state = query.pop("state")
    assert re.fullmatch(r"[a-zA-Z0-9]{64,128}", state)
    assert query == {
        "appid": APPID,
        "redirect_uri": f"{asking.public}/consent/return",
        "response_type": "code",
        "scope": "snsapi_userinfo",
        "forcePopup": "true",
    }


async def test_who_agrees_is_shown_in_every_list(asking: Asking) -> None:
    openid = await asking.phone()
    assert await asking.status_of(openid) == ("withheld", None)
    flat_before = (await asking.there.get("/avatars?limit=12&size=64"))[1]
    async with asking.visitor() as visitor:
        done = await visitor.agree()
    assert (done.status, done.outcome) == (200, "kept")
    status, url = await asking.status_of(openid)
    assert status == "consented"
    assert url is not None
    flat = (await asking.there.get("/avatars?limit=12&size=64"))[1]
    assert [place for place, url in enumerate(flat_before) if not url] == [5, 11]
    assert [place for place, url in enumerate(flat) if not url] == [11]
    assert flat[5] == url.removesuffix("132") + "64"
    redirect = await asking.there.ask(f"/avatars/{openid}?size=0")
    assert (redirect.status, redirect.headers["Location"][-2:]) == (302, "/0")
    gallery = (await asking.there.get("/", **{"Accept-Language": "en"}))[1]
    assert "1 of 24 followers agreed to show their avatar." in gallery
    assert f'href="{asking.public}/consent"' in gallery
    assert f'<img src="{url}"' in gallery


async def test_what_is_kept_is_the_avatar_and_nothing_else(asking: Asking) -> None:
    openid = await asking.phone(unionid=f"{CANARY}-union")
    async with asking.visitor() as visitor:
        assert (await visitor.agree()).outcome == "kept"
    (one,) = await asking.consents.all()
    now = int(asking.there.clock.wall())
    assert (one.openid, one.agreed_at, one.source) == (openid, now, "follower")
    assert one.expires_at == now + DAYS * DAY_S
    assert (one.refresh_token, one.asked_at) == (None, None)
    content = (asking.settings.store).read_bytes()
    for secret in (f"{CANARY}-union", "微信用户", "98_"):
        assert secret.encode() not in content
    assert asking.settings.store.stat().st_mode & 0o777 == 0o600


async def test_it_is_shown_within_its_time_only(asking: Asking) -> None:
    openid = await asking.phone()
    async with asking.visitor() as visitor:
        await visitor.agree()
    asking.there.clock.pass_(DAYS * DAY_S - 1)
    assert (await asking.status_of(openid))[0] == "consented"
    asking.there.clock.pass_(1)
    assert (await asking.status_of(openid))[0] == "withheld"


async def test_who_refuses_reads_so_and_nothing_changes(asking: Asking) -> None:
    openid = await asking.phone()
    async with asking.visitor() as visitor:
        done = await visitor.agree("refuse")
    assert (done.status, done.outcome) == (200, "refused")
    assert await asking.kept() == []
    assert (await asking.status_of(openid))[0] == "withheld"
    assert asking.there.wire.calls[EXCHANGE] == 0


async def test_a_snapshot_user_is_told_how_to_leave_it_and_nothing_is_kept(asking: Asking) -> None:
    await asking.phone(snapshot=True)
    async with asking.visitor() as visitor:
        done = await visitor.agree()
    assert done.outcome == "snapshot"
    assert "使用完整服务" in done.text
    assert await asking.kept() == []
    assert asking.there.wire.calls[USERINFO] == 0


async def test_a_snapshot_user_without_the_mark_is_told_the_same(asking: Asking) -> None:
    await asking.there.fault(USERINFO, "errcode", errcode=48001)
    async with asking.visitor() as visitor:
        assert (await visitor.agree()).outcome == "snapshot"
    assert await asking.kept() == []


async def test_silent_authorisation_is_asked_into_a_dialog(asking: Asking) -> None:
    await asking.phone(silent=True)
    async with asking.visitor() as visitor:
        led = await visitor.press("agree")
        asked = await visitor.get(led.location.partition("#")[0])
        assert asked.status == 200, "forcePopup asks for the dialog"
        silent = led.location.partition("#")[0].replace("&forcePopup=true", "")
        assert (await visitor.get(silent)).status == 302


async def test_somebody_who_does_not_follow_may_agree_but_is_in_no_list(tmp_path: Path) -> None:
    async with asking_scene(tmp_path, SandboxOptions(followers=3)) as asking:
        stranger = await asking.phone(openid="oSomebodyWhoFollowsNobody012")
        async with asking.visitor() as visitor:
            assert (await visitor.agree()).outcome == "kept"
        (one,) = await asking.consents.all()
        assert (one.openid, one.source) == (stranger, "visitor")
        status, problem = await asking.there.get(f"/avatars/{stranger}")
        assert (status, problem["code"]) == (404, "not-following")
        assert "0 of 3 followers" in (await asking.there.get("/", **{"Accept-Language": "en"}))[1]


async def test_agreeing_again_takes_the_place_of_the_first_time(asking: Asking) -> None:
    openid = await asking.phone()
    async with asking.visitor() as visitor:
        await visitor.agree()
        first = await asking.status_of(openid)
        await asking.there.control("/picture", {"appid": APPID, "openid": openid})
        asking.there.clock.pass_(5)
        assert (await visitor.agree()).outcome == "kept"
    assert await asking.kept() == [openid]
    assert await asking.status_of(openid) != first


# --- taking it back -------------------------------------------------------------------------------


async def test_a_button_takes_it_back(asking: Asking) -> None:
    openid = await asking.phone()
    async with asking.visitor() as visitor:
        await visitor.agree()
        led = await visitor.press("withdraw")
        query = query_of(led.location.partition("#")[0])
        assert query["scope"] == "snsapi_base"
        done = await visitor.get(await visitor.answer(led.location))
        assert (done.status, done.outcome) == (200, "withdrawn")
        assert await asking.kept() == []
        assert (await asking.status_of(openid))[0] == "withheld"
        assert (await visitor.withdraw()).outcome == "nothing-kept"
    assert openid.encode() not in asking.settings.store.read_bytes(), "secure_delete"


async def test_a_withdrawal_that_wechat_does_not_confirm_changes_nothing(asking: Asking) -> None:
    openid = await asking.phone()
    async with asking.visitor() as visitor:
        await visitor.agree()
        led = await visitor.press("withdraw")
        back = await visitor.answer(led.location)
        state = query_of(back)["state"]
        done = await visitor.get(f"/consent/return?state={state}")
        assert (done.status, done.outcome) == (200, "not-withdrawn")
    assert await asking.kept() == [openid]


async def test_nobody_takes_back_what_somebody_else_agreed_to(asking: Asking) -> None:
    openid = await asking.phone()
    async with asking.visitor() as visitor, asking.visitor() as other:
        await visitor.agree()
        await asking.phone(openid="oSomebodyElse000000000000000")
        assert (await other.withdraw()).outcome == "nothing-kept"
    assert await asking.kept() == [openid]


# --- what cannot be forged ------------------------------------------------------------------------


@pytest.mark.parametrize("bend", ["", "x", "%C3%A9", "f", "flip", "cut", "twice"])
async def test_a_forged_state_changes_nothing(asking: Asking, bend: str) -> None:
    async with asking.visitor() as visitor:
        led = await visitor.press("agree")
        back = await visitor.answer(led.location)
        state = query_of(back)["state"]
        flipped = state[:-1] + ("0" if state[-1] != "0" else "1")
        other = {"flip": flipped, "cut": state[:-1], "twice": f"{state}&state={state}"}
        done = await visitor.get(back.replace(state, other.get(bend, bend)))
    assert (done.status, done.outcome) == (400, "state")
    assert asking.there.wire.calls[EXCHANGE] == 0
    assert await asking.kept() == []


async def test_a_state_is_good_once(asking: Asking) -> None:
    async with asking.visitor() as visitor:
        led = await visitor.press("agree")
        back = await visitor.answer(led.location)
        assert (await visitor.get(back)).outcome == "kept"
        assert (await visitor.get(back)).outcome == "state"
        other = await visitor.answer(led.location)  # another code, the same state
        assert (await visitor.get(other)).outcome == "state"
    assert asking.there.wire.calls[EXCHANGE] == 1


async def test_a_state_is_good_for_ten_minutes(asking: Asking) -> None:
    async with asking.visitor() as visitor:
        led = await visitor.press("agree")
        asking.there.clock.pass_(601)
        back = await visitor.answer(led.location)
        assert (await visitor.get(back)).outcome == "state"
    assert await asking.kept() == []


async def test_a_state_is_good_in_its_own_browser_only(asking: Asking) -> None:
    async with asking.visitor() as attacker, asking.visitor() as victim:
        led = await attacker.press("agree")
        back = await attacker.answer(led.location)
        await victim.get("/consent")
        assert (await victim.get(back)).outcome == "state"
        assert await asking.kept() == []
        assert (await attacker.get(back)).outcome == "kept", "it was not used up by the other"


async def test_a_withdrawal_is_no_agreement(asking: Asking) -> None:
    """What a state is for is signed: WeChat's answer to one button is none to the other."""
    async with asking.visitor() as visitor:
        led = await visitor.press("withdraw")
        back = await visitor.answer(led.location)
        state = query_of(back)["state"]
        done = await visitor.get(back.replace(state, "a" + state[1:]))
    assert done.outcome == "state"


@pytest.mark.parametrize("button", ["agree", "withdraw"])
async def test_no_other_site_can_press_a_button(asking: Asking, button: str) -> None:
    async with asking.visitor() as attacker, asking.visitor() as victim:
        page = await attacker.get("/consent")
        (form, *_) = re.findall(r'name="form" value="(\w+)"', page.text)
        await victim.get("/consent")
        for forged in (form, "", "x" * 101):
            pressed = await victim.press(button, forged)
            assert pressed.status == 400
            assert "重新阅读" in pressed.text
            assert "Location" not in pressed.headers


async def test_a_page_that_was_open_for_an_hour_is_shown_again(asking: Asking) -> None:
    async with asking.visitor() as visitor:
        page = await visitor.get("/consent")
        (form, *_) = re.findall(r'name="form" value="(\w+)"', page.text)
        asking.there.clock.pass_(3601)
        assert (await visitor.press("agree", form)).status == 400
        assert (await visitor.press("agree")).status == 303


# --- what WeChat, the broker and the disk may do --------------------------------------------------


async def test_a_code_that_was_used_is_not_used_again(asking: Asking) -> None:
    await asking.there.fault(EXCHANGE, "errcode", errcode=40163)
    async with asking.visitor() as visitor:
        done = await visitor.agree()
    assert (done.status, done.outcome) == (400, "used")
    assert asking.there.wire.calls[EXCHANGE] == 1
    assert await asking.kept() == []


@pytest.mark.parametrize("code", ["x", "a%20b", "%C3%A9", "y" * 600])
async def test_a_made_up_code_is_none(asking: Asking, code: str) -> None:
    async with asking.visitor() as visitor:
        led = await visitor.press("agree")
        back = await visitor.answer(led.location)
        given = query_of(back)["code"]
        done = await visitor.get(back.replace(given, code))
    assert done.outcome == "used"
    assert await asking.kept() == []


@pytest.mark.parametrize(
    "headimgurl",
    [
        "",
        "/0",
        None,
        3,
        "javascript:alert(1)",
        "data:image/png;base64,AAAA",
        "https://evil.example/mmopen/x/132",
        "https://qlogo.cn.evil.example/x/132",
        "https://thirdwx.qlogo.cn@evil.example/x",
        'https://thirdwx.qlogo.cn/"onerror=alert(1)',
        "https://thirdwx.qlogo.cn/" + "x" * 2048,
    ],
)
async def test_what_is_no_picture_of_wechats_host_is_not_kept(
    asking: Asking, headimgurl: Any
) -> None:
    await asking.there.fault(USERINFO, "garbage", body=_profile(headimgurl))
    openid = await asking.phone()
    async with asking.visitor() as visitor:
        done = await visitor.agree()
    assert (done.status, done.outcome) == (200, "no-picture")
    assert await asking.kept() == []
    assert (await asking.status_of(openid))[0] == "withheld"


def _profile(headimgurl: Any) -> str:
    return json.dumps({"openid": openid_of(APPID, 5), "headimgurl": headimgurl})


async def test_pictures_of_wechats_hosts_are_kept_and_more_hosts_can_be_named(
    tmp_path: Path,
) -> None:
    async with asking_scene(tmp_path, picture_hosts=(".qlogo.cn", "pics.example.com")) as asking:
        for url in ("https://thirdwx.qlogo.cn/mmopen/a/132", "https://pics.example.com/a/132"):
            await asking.there.fault(USERINFO, "garbage", body=_profile(url))
            async with asking.visitor() as visitor:
                assert (await visitor.agree()).outcome == "kept"
            (one,) = await asking.consents.all()
            assert one.headimgurl == url
        page = await asking.there.ask("/")
        assert "https://pics.example.com" in page.headers["Content-Security-Policy"]


async def test_somebody_elses_profile_is_not_kept(asking: Asking) -> None:
    url = f"{asking.there.sandbox}/mmopen/x/132"
    body = json.dumps({"openid": "oSomebodyElse", "headimgurl": url})
    await asking.there.fault(USERINFO, "garbage", body=body)
    async with asking.visitor() as visitor:
        assert (await visitor.agree()).outcome == "unavailable"
    assert await asking.kept() == []


@pytest.mark.parametrize(
    ("path", "kind"), [(EXCHANGE, "drop"), (USERINFO, "drop"), (USERINFO, "garbage")]
)
async def test_a_wechat_that_fails_is_said_and_nothing_is_kept(
    asking: Asking, path: str, kind: str
) -> None:
    await asking.there.fault(path, kind)
    async with asking.visitor() as visitor:
        done = await visitor.agree()
    assert (done.status, done.outcome) == (502, "unavailable")
    assert await asking.kept() == []


async def test_a_broker_that_is_away_is_said(asking: Asking) -> None:
    await asking.there.daemon.aclose()
    async with asking.visitor() as visitor:
        assert (await visitor.agree()).outcome == "unavailable"


async def test_on_a_full_disk_the_person_is_told_that_nothing_was_kept(
    small_disk: Path, tmp_path: Path
) -> None:
    async with asking_scene(tmp_path, store=small_disk / "consent.db") as asking:
        openid = await asking.phone()
        ballast = fill(small_disk)
        async with asking.visitor() as visitor:
            done = await visitor.agree()
            assert (done.status, done.outcome) == (503, "not-kept")
            assert (await asking.status_of(openid))[0] == "withheld"
            assert [event for event, _ in asking.there.told].count("consent-store-failed") == 1
            ballast.unlink()
            assert (await visitor.agree()).outcome == "kept"
            assert (await asking.status_of(openid))[0] == "consented"
            fill(small_disk)
            done = await visitor.withdraw()
            assert (done.status, done.outcome) == (503, "not-deleted")
            assert (await asking.status_of(openid))[0] == "withheld"


async def test_nothing_of_a_person_is_in_the_log(
    asking: Asking, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    openid = await asking.phone()
    async with asking.visitor() as visitor:
        await visitor.agree()
        await visitor.withdraw()
    assert openid not in caplog.text
    assert openid not in str(asking.there.told)


async def test_who_hangs_up_while_wechat_is_asked_has_agreed_all_the_same(asking: Asking) -> None:
    openid = await asking.phone()
    await asking.there.fault(USERINFO, "slow", seconds=0.3)
    async with asking.visitor() as visitor:
        led = await visitor.press("agree")
        back = await visitor.answer(led.location)
        task = asyncio.create_task(visitor.get(back))
        while not asking.there.wire.calls[USERINFO]:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(20):
        while await asking.kept() != [openid]:
            await asyncio.sleep(0.01)
