"""Both pages in a real browser: what people see, with and without scripts, on a phone, in the dark, by keyboard."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.chromium import Browser, chromium
from tests.doubles import APPID, CANARY
from tests.processes import House, ask, process, until

FOLLOWERS = 150  # more than one screen of the gallery
WITHHELD = 4
LOOKS = [(390, False), (390, True), (1280, False), (1280, True)]


@dataclass
class Town:
    """Sandbox, daemon and two companions: one that links to the pictures, one that fetches them."""

    house: House
    gallery: str
    proxied: str


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    house = House(tmp_path_factory.mktemp("town"), log_level="info")
    with ExitStack() as stack:
        stack.enter_context(house.sandboxed("--followers", str(FOLLOWERS)))
        house.configure(policy="min_gap = 0.5\nverify_gap = 0.1\n")
        stack.enter_context(house.serving())
        until(lambda: house.get("/readyz")[0] == 200, "a token")
        bases = [_companion(house, stack, proxied) for proxied in (False, True)]
        yield Town(house, *bases)


def _companion(house: House, stack: ExitStack, proxied: bool) -> str:  # noqa: FBT001 -- one of two
    config = house.home / f"gallery-{proxied}.toml"
    plain = house.config.read_text()
    told = f'[avatars]\nlisten = "127.0.0.1:0"\nbroker = "{house.daemon}"\nproxy_images = {str(proxied).lower()}\n'
    config.write_text(plain + told)
    log = house.home / f"gallery-{proxied}.log"
    companion = stack.enter_context(process(log, "avatars", "--config", str(config)))
    base = companion.first_line().split()[-1]
    until(lambda: ask("GET", f"{base}/readyz")[0] == 200, "the companion is ready")
    return base


def weight(requests: list[dict[str, object]]) -> float:
    """Kilobytes of a page and what it is made of; pictures of people apart."""
    return sum(int(str(one["bytes"])) for one in requests if one["kind"] != "Image") / 1024


# --- the gallery ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proxied", [False, True], ids=["linked pictures", "proxied pictures"])
def test_the_gallery_shows_pictures_and_asks_nobody_else(browser: Browser, town: Town, *, proxied: bool) -> None:
    base = town.proxied if proxied else town.gallery
    requests = browser.look(base)
    until(lambda: browser.run("return [...document.images].filter(i => i.complete).length") > 5, "pictures have come")
    broken = browser.run("return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
    assert broken == []
    ours = {urlsplit(base).netloc} | (set() if proxied else {urlsplit(town.house.sandbox).netloc})
    hosts = {urlsplit(str(one["url"])).netloc for one in [*requests, *browser.requests()] if str(one["url"]).startswith("http")}
    assert hosts <= ours
    assert browser.complaints() == []
    print(f"gallery: {weight(requests):.1f} KB without pictures")


def test_a_withheld_avatar_is_a_silhouette_with_one_sentence_why(browser: Browser, town: Town) -> None:
    browser.look(town.gallery)
    said = browser.text()
    assert "27 December 2021" in said
    assert said.count("27 December 2021") == 1
    tiles = "[...document.querySelectorAll('.grid li')]"
    faces = browser.run(f"return {tiles}.filter(t => !t.querySelector('img') && t.querySelector('svg, .initial')).length")
    assert faces > 0
    assert browser.run(f"return {tiles}.length") == browser.run(
        f"return {tiles}.filter(t => t.querySelector('img') || t.querySelector('svg, .initial')).length"
    )


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_the_gallery_is_paged_by_keyboard(browser: Browser, town: Town, *, scripts: bool) -> None:
    browser.look(town.gallery, scripts=scripts)
    first = browser.driver.find_element(By.CSS_SELECTOR, ".name").text
    link = browser.driver.find_element(By.CSS_SELECTOR, "nav a[rel=next]")
    link.send_keys(Keys.ENTER)
    until(lambda: "cursor=" in browser.driver.current_url, "the next page")
    assert browser.driver.find_element(By.CSS_SELECTOR, ".name").text != first
    browser.driver.find_element(By.CSS_SELECTOR, "nav a[rel=prev]").send_keys(Keys.ENTER)
    until(lambda: "cursor=" not in browser.driver.current_url, "the first page again")
    assert browser.driver.find_element(By.CSS_SELECTOR, ".name").text == first


def test_the_first_stop_of_the_keyboard_skips_to_the_content(browser: Browser, town: Town) -> None:
    for base, target in ((town.gallery, "followers"), (town.house.daemon, "apps")):
        browser.look(base)
        body = browser.driver.find_element(By.TAG_NAME, "body")
        body.send_keys(Keys.TAB)
        assert browser.run("return document.activeElement.className") == "skip"
        browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
        until(partial(_is_at, browser, target), "the content")


def _is_at(browser: Browser, target: str) -> bool:
    return browser.driver.current_url.endswith(f"#{target}")


# --- the status page --------------------------------------------------------------------------------------------------


def shown(browser: Browser, name: str) -> str:
    script = "const e = document.querySelector(`[data-value=${arguments[0]}]`); return e.dataset.number ?? e.textContent"
    return str(browser.run(script, name))


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_the_status_page_shows_what_v1_status_says(browser: Browser, town: Town, *, scripts: bool) -> None:
    browser.look(town.house.daemon, scripts=scripts)
    (app,) = town.house.get("/v1/status")[1]["apps"]
    assert shown(browser, "version") == app["version"]
    assert int(shown(browser, "used_today")) == app["quota"]["used_today"]
    assert 0 <= int(shown(browser, "expires_in")) - app["expires_in"] <= 2
    assert abs(int(shown(browser, "next_refresh_in")) - app["next_refresh_in"]) <= 2
    bar = browser.run("const p = document.querySelector('progress'); return [p.value, p.max]")
    assert bar == [int(shown(browser, "expires_in")), 7200]


def test_a_refresh_shows_within_three_seconds_without_reloading(browser: Browser, town: Town) -> None:
    requests = browser.look(town.house.daemon)
    browser.run("window.untouched = true")
    until(lambda: town.house.post("/v1/tokens/main/refresh")[0] == 200, "min_gap is over")
    (app,) = town.house.get("/v1/status")[1]["apps"]
    took = browser.driver.execute_async_script(
        """
        const [version, done] = arguments, began = performance.now();
        const look = () => document.querySelector("[data-value=version]").textContent === version
          ? done(performance.now() - began) : setTimeout(look, 20);
        look();
        """,
        app["version"],
    )
    assert took < 3000
    assert browser.run("return window.untouched") is True
    assert browser.complaints() == []
    print(f"status page: {weight(requests):.1f} KB; a refresh showed after {took / 1000:.1f} s")


def test_what_was_opened_stays_open_while_the_page_updates_itself(browser: Browser, town: Town) -> None:
    browser.look(town.house.daemon)
    browser.driver.find_element(By.CSS_SELECTOR, "summary").send_keys(Keys.ENTER)
    before = shown(browser, "expires_in")
    until(lambda: shown(browser, "expires_in") != before, "an update")
    assert browser.run("return document.querySelector('details').open") is True
    assert browser.run("return document.activeElement.tagName") == "SUMMARY"


def test_a_daemon_that_goes_away_is_said_to_be_away_and_back_again(browser: Browser, tmp_path: Path) -> None:
    house = House(tmp_path, log_level="info")
    with house.sandboxed():
        house.configure()
        with house.serving() as daemon:
            browser.look(house.daemon)
            assert not browser.driver.find_element(By.ID, "away").is_displayed()
            daemon.kill()
            until(lambda: browser.driver.find_element(By.ID, "away").is_displayed(), "it says so")
            assert "what it said last" in browser.text()
    browser.look("about:blank")
    browser.complaints()


def test_trouble_is_said_with_what_to_do(browser: Browser, town: Town) -> None:
    house = town.house
    house.control("/faults", {"appid": APPID, "kind": "errcode", "errcode": 40164})
    until(lambda: house.post("/v1/tokens/main/refresh")[1].get("code") == "upstream-refused", "the order is refused")
    browser.look(house.daemon)
    assert "IP whitelist" in browser.text()
    assert browser.barriers() == []
    browser.shot("status-trouble-1280-light")
    browser.look(house.daemon, width=390, dark=True, language="zh-CN")
    assert "白名单" in browser.text()
    assert browser.overflow() == 0
    browser.shot("status-trouble-390-dark-zh")
    until(lambda: house.post("/v1/tokens/main/refresh")[0] == 200, "well again")


def test_no_page_holds_a_token(browser: Browser, town: Town) -> None:
    token = town.house.get("/v1/tokens/main")[1]["access_token"]
    for base in (town.house.daemon, town.gallery, town.proxied):
        browser.look(base)
        source = browser.driver.page_source
        assert token not in source
        assert CANARY not in source


# --- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "dark"), LOOKS, ids=[f"{width}-{'dark' if dark else 'light'}" for width, dark in LOOKS])
@pytest.mark.parametrize("which", ["gallery", "status"])
def test_it_fits_and_nobody_is_kept_out(browser: Browser, town: Town, which: str, width: int, *, dark: bool) -> None:
    browser.look(town.gallery if which == "gallery" else town.house.daemon, width=width, dark=dark)
    assert browser.overflow() == 0
    assert browser.barriers() == []
    assert len(browser.shot(f"{which}-{width}-{'dark' if dark else 'light'}")) > 5000
    ground = browser.run("return getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", ground)[0])
    assert (red < 60) is dark


@pytest.mark.parametrize(("which", "said"), [("gallery", "关注者"), ("status", "所有应用都有可用的令牌")])
def test_it_speaks_chinese_to_who_reads_it(browser: Browser, town: Town, which: str, said: str) -> None:
    browser.look(town.gallery if which == "gallery" else town.house.daemon, language="zh-CN,zh;q=0.9")
    assert said in browser.text()
    assert browser.run("return document.documentElement.lang") == "zh-CN"
    browser.shot(f"{which}-1280-light-zh")


def test_the_demo_opens_what_it_says(browser: Browser, tmp_path: Path) -> None:
    with process(tmp_path / "demo.log", "demo") as demo:
        said = "".join([demo.first_line(), *takewhile(lambda line: "Ctrl-C" not in line, demo.popen.stdout or ())])
        pages = dict(re.findall(r"^  (status page|gallery) +(http\S+)$", said, re.MULTILINE))
        browser.look(pages["status page"])
        assert "Every app has a token." in browser.text()
        browser.look(pages["gallery"])
        assert browser.run("return document.querySelectorAll('.grid li').length") > 3
        browser.shot("demo-gallery")
        commands = re.findall(r"^  curl .*?(http[^'\s]+)'?$", said, re.MULTILINE)
        assert [ask("GET", command, headers={"X-Token-Broker": "1"})[0] for command in commands] == [200] * 3
        assert demo.end() == 0
    with pytest.raises(OSError, match="refused"):
        ask("GET", pages["status page"])
