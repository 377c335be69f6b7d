"""The whole way in a real browser: the gallery, the page, WeChat's dialog, one more picture."""

import re
from collections.abc import Iterator
from itertools import takewhile

import pytest
from selenium.webdriver.common.by import By

from tests.harness.chromium import Browser
from tests.harness.doubles import CANARY
from tests.harness.processes import ask, process, until

pytestmark = pytest.mark.needs("chromium", "chromedriver", "axe-core")

PICTURES = "return document.querySelectorAll('.face img').length"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The pages of a running demo, by what it calls them."""
    with process(tmp_path_factory.mktemp("demo") / "demo.log", "demo") as running:
        said = running.first_line() + "".join(
            takewhile(lambda line: "Ctrl-C" not in line, running.popen.stdout or ())
        )
        yield dict(re.findall(r"^  ([a-z ]+?) +(http\S+)$", said, re.MULTILINE))
        assert running.end() == 0


def press(browser: Browser, what: str) -> None:
    """Press a button or link, as with a finger, once it is there."""
    until(lambda: browser.driver.find_elements(By.CSS_SELECTOR, what), what)
    browser.driver.find_element(By.CSS_SELECTOR, what).click()


def outcome(browser: Browser) -> str:
    """Which page says what came of it, once it is there."""
    until(lambda: browser.driver.find_elements(By.CSS_SELECTOR, "h1[data-outcome]"), "an outcome")
    heading = browser.driver.find_element(By.TAG_NAME, "h1")
    return str(heading.get_attribute("data-outcome"))


def take_back(browser: Browser, demo: dict[str, str]) -> str:
    browser.look(demo["consent page"], scripts=False)
    press(browser, ".withdraw button")
    return outcome(browser)


def phone(demo: dict[str, str], **who: object) -> None:
    order = {"appid": "wx0000000000000000", **who}
    assert ask("POST", f"{demo['sandbox']}/phone", order)[0] == 200


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_from_the_gallery_a_click_later_one_more_picture_is_there_and_then_gone(
    browser: Browser, demo: dict[str, str], *, scripts: bool
) -> None:
    phone(demo)
    browser.look(demo["gallery"], width=320, scripts=scripts)
    before = browser.run(PICTURES)
    assert "0 of 24 followers agreed" in browser.text()
    press(browser, ".notice a")
    until(lambda: browser.driver.current_url == demo["consent page"], "the page that asks")
    press(browser, "button.agree")
    until(lambda: "/connect/oauth2/authorize" in browser.driver.current_url, "WeChat's dialog")
    press(browser, "button[value=allow]")
    assert outcome(browser) == "kept"
    browser.look(demo["gallery"], width=320, scripts=scripts)
    assert browser.run(PICTURES) == before + 1
    assert "1 of 24 followers agreed" in browser.text()
    assert browser.overflow() == 0
    assert browser.complaints() == []
    assert take_back(browser, demo) == "withdrawn"
    browser.look(demo["gallery"])
    assert browser.run(PICTURES) == before


def test_refusing_changes_nothing(browser: Browser, demo: dict[str, str]) -> None:
    phone(demo)
    browser.look(demo["consent page"], width=320, scripts=False)
    press(browser, "button.agree")
    press(browser, "button[value=refuse]")
    assert outcome(browser) == "refused"
    assert take_back(browser, demo) == "nothing-kept"


def test_a_snapshot_user_is_told_how_to_leave_it(browser: Browser, demo: dict[str, str]) -> None:
    phone(demo, snapshot=True)
    browser.look(demo["consent page"], width=320, language="zh-CN")
    press(browser, "button.agree")
    assert outcome(browser) == "snapshot"
    assert "使用完整服务" in browser.text()
    phone(demo)


@pytest.mark.parametrize("language", ["en", "zh-CN"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("page", ["question", "outcome"])
def test_it_fits_and_nobody_is_kept_out(
    browser: Browser, demo: dict[str, str], page: str, width: int, language: str, *, dark: bool
) -> None:
    where = demo["consent page"] + ("" if page == "question" else "/return?state=x")
    browser.look(where, width=width, dark=dark, language=language)
    assert browser.run("return document.documentElement.lang") == language
    assert browser.overflow() == 0
    assert browser.barriers() == []
    browser.shot(f"consent-{page}-{width}-{'dark' if dark else 'light'}-{language[:2]}")
    if page == "question":
        assert browser.complaints() == []
        heights = browser.run(
            "return [...document.querySelectorAll('button')]"
            ".map(one => one.getBoundingClientRect().height)"
        )
        assert min(heights) >= 44, "a finger's breadth"


def test_the_page_asks_nobody_and_holds_no_secret(browser: Browser, demo: dict[str, str]) -> None:
    browser.look(demo["consent page"])
    hosts = {one.url.split("/")[2] for one in browser.requests()}
    assert hosts == {demo["consent page"].split("/")[2]}
    assert CANARY not in browser.driver.page_source


def test_it_is_readable_without_a_style_or_a_cookie(browser: Browser, demo: dict[str, str]) -> None:
    browser.look(demo["consent page"], language="zh-CN")
    until(lambda: "示例公司" in browser.text(), "it says who asks")
    browser.driver.delete_all_cookies()
    press(browser, "button.agree")
    until(lambda: "重新阅读" in browser.text(), "the page is shown again")
