"""Sinks, notifications and hand-outs in a real browser: by zone, width, colour and language."""

import re
from collections.abc import Iterator

import pytest
from selenium.webdriver.common.by import By

from tests.harness.chromium import Browser
from tests.harness.cluster import free_port
from tests.harness.doubles import APPID, CANARY
from tests.harness.processes import House, until

pytestmark = pytest.mark.needs("chromium", "chromedriver", "axe-core")
LOOKS = [(320, False), (390, True), (1280, False), (1280, True)]


@pytest.fixture(scope="module")
def reaching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A daemon with a sink that holds, one that is behind, a robot that refuses, and a reader.

    Its configuration is dangerous, too.
    """
    house = House(tmp_path_factory.mktemp("reaching"), log_level="info")
    house.home.chmod(0o700)
    with house.sandboxed():
        urls = house.home / "notify.urls"
        urls.write_text(f"{house.sandbox}/cgi-bin/webhook/send?key=wrong{CANARY}\n")
        urls.chmod(0o600)
        house.configure(more=MORE.format(port=free_port()))
        with house.serving():
            until(lambda: house.get("/v1/tokens/main")[0] == 200, "a token")
            until(lambda: _troubles(house) == 2, "robot and Redis are in trouble")
            yield house


MORE = """
[compat]
enabled = true
[[apps.main.sinks]]
kind = "file"
path = "./main.json"
[[apps.main.sinks]]
kind = "redis"
url = "redis://127.0.0.1:{port}/0"
format = "easywechat"
[notify]
urls_file = "./notify.urls"
hold = 0
"""


def _troubles(house: House) -> int:
    status = house.get("/v1/status")[1]
    both = status["apps"][0]["sinks"] + status["notifications"]["receivers"]
    return sum(one["trouble"] is not None for one in both)


@pytest.mark.parametrize(("width", "dark"), LOOKS)
@pytest.mark.parametrize("language", ["en", "zh-CN"])
def test_all_three_are_shown_and_fit_and_bar_nobody(
    browser: Browser, reaching: House, width: int, language: str, *, dark: bool
) -> None:
    browser.look(reaching.daemon, width=width, dark=dark, language=language)
    for summary in browser.driver.find_elements(By.CSS_SELECTOR, "details > summary"):
        summary.click()
    text = browser.text()
    for said in {
        "en": ("Written to", "not reached", "refused (code 93000)", "A sink is behind", "in force"),
        "zh-CN": ("写入位置", "无法连接", "被拒绝（代码 93000）", "令牌没有写到位", "当前"),
    }[language]:
        assert said in text
    assert CANARY not in browser.driver.page_source
    assert browser.driver.find_element(By.CSS_SELECTOR, ".notices").is_displayed()
    assert browser.overflow() == 0
    # A heading that is squeezed stands on its head.
    heights = "return [...document.querySelectorAll('th')].map(one => one.offsetHeight)"
    assert max(browser.run(heights)) < 130
    assert browser.barriers() == []
    assert browser.complaints() == []
    browser.shot(f"status-reach-{width}-{'dark' if dark else 'light'}-{language}")


def test_times_are_in_the_readers_zone_with_utc_beside_them(
    browser: Browser, reaching: House
) -> None:
    browser._cdp("Emulation.setTimezoneOverride", timezoneId="Asia/Shanghai")
    try:
        browser.look(reaching.daemon, language="zh-CN")
        times = browser.run(
            "return [...document.querySelectorAll('time')].map(one =>"
            " [one.getAttribute('datetime'), one.textContent])"
        )
        assert times
        for iso, said in times:
            found = re.fullmatch(r"(\S+) (\d\d):(\d\d) \((?:\S+ )?(\d\d):(\d\d) UTC\)", said)
            assert found, said
            assert (int(found[2]) - int(found[4])) % 24 == 8
            assert found[5] == found[3] == iso[14:16]
    finally:
        browser._cdp("Emulation.setTimezoneOverride", timezoneId="UTC")
    browser.look(reaching.daemon)
    assert re.search(r"\d\d:\d\d UTC", browser.driver.page_source)


def test_without_a_script_times_are_in_utc(browser: Browser, reaching: House) -> None:
    browser.look(reaching.daemon, scripts=False)
    assert APPID in browser.driver.page_source
    assert re.search(r"<time datetime=\S+>\d{4}-\d\d-\d\d \d\d:\d\d UTC</time>", _source(reaching))


def _source(house: House) -> str:
    return str(house.get("/")[1])
