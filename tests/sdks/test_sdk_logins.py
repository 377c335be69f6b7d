"""People log in through SDKs as the page says, and no key goes to WeChat: real packages."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import invariants
from tests.harness.doubles import APPID, CANARY
from tests.harness.processes import House
from tests.sdks.recipes import KEY, Recipe, chapters, is_told, marked, runnable, sections
from tests.sdks.running import running

RECIPES = [recipe for recipe in marked() if "login" in recipe.way]
WITH_SESSION = [recipe for recipe in RECIPES if recipe.sdk != "co-wechat-oauth"]
WITH_PROFILE = [recipe for recipe in RECIPES if recipe.sdk == "wechatpy"]
MORE = """
[compat]
enabled = true

[proxy]
enabled = true

[clients.sdk]
key_file = "{key}"
scopes = ["read", "report", "login"]
"""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    with house.sandboxed():
        key = tmp_path / "sdk.key"
        key.write_text(KEY)
        key.chmod(0o600)
        house.configure(more=MORE.format(key=key))
        with house.serving():
            yield house
            invariants.check(house)
    for log in tmp_path.glob("*.log"):
        assert KEY not in log.read_text()


def code(house: House, kind: str, **more: object) -> str:
    return str(
        house.control("/code", {"appid": APPID, "kind": kind, "openid": "o-1", **more})["code"]
    )


@pytest.mark.parametrize("recipe", runnable(WITH_SESSION))
def test_a_mini_programs_user_logs_in_once_with_a_code(recipe: Recipe, house: House) -> None:
    with running(recipe, house) as sdk:
        given = code(house, "miniprogram")
        assert sdk.do("session", given) == "o-1"
        again = sdk.do("session", given)
        assert (again["errcode"], sdk.do("session", "made-up")["errcode"]) == (40163, 40029)
        assert CANARY not in again["text"]
    assert house.control("")["login_calls"] == {"/sns/jscode2session": 3}


@pytest.mark.parametrize("recipe", runnable(RECIPES))
def test_a_pages_user_logs_in_once_with_a_code(recipe: Recipe, house: House) -> None:
    with running(recipe, house) as sdk:
        given = code(house, "web")
        assert sdk.do("web", given) == "o-1"
        assert sdk.do("web", given)["errcode"] == 40163
    assert house.control("")["login_calls"] == {"/sns/oauth2/access_token": 2}


@pytest.mark.parametrize("recipe", runnable(RECIPES))
def test_a_wrong_key_is_wechats_40125_and_leaves_the_code_alone(
    recipe: Recipe, house: House
) -> None:
    given = code(house, "web")
    with running(recipe, house, key="a-wrong-key") as sdk:
        refused = sdk.do("web", given)
        assert refused["errcode"] == 40125
        assert "a-wrong-key" not in refused["text"]
    with running(recipe, house) as sdk:
        assert sdk.do("web", given) == "o-1"


@pytest.mark.parametrize("recipe", runnable(WITH_PROFILE))
def test_users_tokens_are_good_for_the_rest(recipe: Recipe, house: House) -> None:
    with running(recipe, house) as sdk:
        assert sdk.do("web", code(house, "web", scope="snsapi_userinfo")) == "o-1"
        assert sdk.do("profile") == [True, "o-1", "微信用户"]


@pytest.mark.parametrize(("name", "text"), sections(chapters()[1]))
def test_a_section_says_which_recipes_are_run(name: str, text: str) -> None:
    assert is_told(RECIPES, name, text)


def test_the_page_names_in_bold_what_sends_the_key_to_wechat() -> None:
    _, chapter = chapters()
    rows = {
        line.split("|")[1].strip(): line for line in chapter.splitlines() if line.startswith("| ")
    }
    leaks = {
        name
        for name, row in rows.items()
        if "sends the key to WeChat**" in row
        or "the key goes to WeChat**" in row
        or "**`getOAuth()` sends" in row
    }
    assert leaks == {
        "wechatpy",
        "co-wechat-oauth",
        "wechat-oauth",
        "EasyWeChat",
        "silenceper/wechat",
        "PowerWeChat",
    }
    assert {"WxJava"} == rows.keys() - leaks - {"SDK", "---"}
