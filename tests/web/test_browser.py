"""Both pages in a real browser: what people see.

With and without scripts, on a phone, in dark mode, and by keyboard.
"""

import hashlib
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

from tests.harness.chromium import Browser
from tests.harness.cluster import Cluster
from tests.harness.doubles import APPID, CANARY
from tests.harness.processes import House, ask, process, until

pytestmark = pytest.mark.needs("chromium", "chromedriver", "axe-core")

FOLLOWERS = 150  # more than one screen of the gallery
SCREEN = 72
LOOKS = [(390, False), (390, True), (1280, False), (1280, True)]
PICTURES = "[...document.querySelectorAll('.face img')]"
TILES = "[...document.querySelectorAll('.grid li')]"


@dataclass
class Site:
    """Sandbox, daemon and two companions: one that links to the pictures, one that fetches them."""

    house: House
    gallery: str
    proxied: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    house = House(tmp_path_factory.mktemp("site"), log_level="info")
    with ExitStack() as stack:
        stack.enter_context(house.sandboxed("--followers", str(FOLLOWERS)))
        house.configure(policy="min_gap = 0.5\nverify_gap = 0.1\n")
        stack.enter_context(house.serving())
        until(lambda: house.get("/readyz")[0] == 200, "a token")
        bases = [_companion(house, stack, proxied) for proxied in (False, True)]
        yield Site(house, *bases)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Iterator[House]:
    """A daemon that shares its store with three peers.

    One was seen just now; two have not been seen for long.
    """
    house, name = House(tmp_path_factory.mktemp("shared"), log_level="info"), cluster.database()
    with house.sandboxed():
        key = f'[clients.{"y" * 64}]\nkey_sha256 = "{hashlib.sha256(b"key").hexdigest()}"\n'
        house.configure(more=key)
        with house.serving(
            TOKEN_BROKER_STORE__URL=cluster.dsn(name), TOKEN_BROKER_STORE__NODE="broker-1"
        ):
            until(
                lambda: house.get("/v1/tokens/main", Authorization="Bearer key")[0] == 200,
                "a token",
            )
            cluster.sql(PEERS, name)
            until(lambda: len(house.get("/v1/status")[1]["nodes"]) == 4, "the others are known")
            yield house
    cluster.sql(f"drop database {name} with (force)")


def _companion(house: House, stack: ExitStack, proxied: bool) -> str:  # noqa: FBT001 -- one of two
    config = house.home / f"gallery-{proxied}.toml"
    plain = house.config.read_text()
    told = (
        f'[avatars]\nlisten = "127.0.0.1:0"\nbroker = "{house.daemon}"\nproxy_images ='
        f" {str(proxied).lower()}\n"
    )
    config.write_text(plain + told)
    log = house.home / f"gallery-{proxied}.log"
    companion = stack.enter_context(process(log, "avatars", "--config", str(config)))
    base = companion.first_line().split()[-1]
    until(lambda: ask("GET", f"{base}/readyz")[0] == 200, "the companion is ready")
    return base


def weight(browser: Browser) -> float:
    """The kilobytes of a page, and what they are made of, on a first visit.

    People's pictures and the page's updates are counted apart.
    """
    parts: list[int] = until(partial(_parts, browser), "everything has come")
    return sum(parts) / 1024


def _parts(browser: Browser) -> list[int]:
    sizes = [one.size for one in browser.requests() if one.kind not in {"Image", "Fetch"}]
    return [] if None in sizes else [size for size in sizes if size is not None]


def hosts(browser: Browser) -> set[str]:
    return {urlsplit(one.url).netloc for one in browser.requests()}


def show_every_picture(browser: Browser) -> list[int]:
    """Scroll as a reader does, until every picture has come or failed; how wide each is."""
    browser.run(
        f"for (const one of {PICTURES}) {{ one.loading = 'eager'; }} scrollTo(0,"
        " document.body.scrollHeight)"
    )
    until(
        lambda: browser.run(f"return {PICTURES}.every(one => one.complete)"),
        "every picture has come, or failed",
    )
    widths: list[int] = browser.run(f"return {PICTURES}.map(one => one.naturalWidth)")
    return widths


# --- the gallery ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
@pytest.mark.parametrize("proxied", [False, True], ids=["linked pictures", "proxied pictures"])
def test_the_gallery_shows_every_picture_and_asks_nobody_else(
    browser: Browser, site: Site, *, proxied: bool, scripts: bool
) -> None:
    base = site.proxied if proxied else site.gallery
    browser.look(base, scripts=scripts)
    widths = show_every_picture(browser)
    assert len(widths) == sum(one["status"] == "available" for one in listed(site))
    assert min(widths) > 0
    assert hosts(browser) == {urlsplit(base).netloc} | (
        set() if proxied else {urlsplit(site.house.sandbox).netloc}
    )
    assert browser.complaints() == []


def listed(site: Site) -> list[dict[str, str]]:
    """The first screen, as programs see it."""
    avatars: list[dict[str, str]] = ask("GET", f"{site.gallery}/v1/avatars?limit={SCREEN}")[1][
        "avatars"
    ]
    return avatars


def test_a_withheld_avatar_is_a_silhouette_with_one_sentence_why(
    browser: Browser, site: Site
) -> None:
    browser.look(site.gallery)
    withheld = [n for n, one in enumerate(listed(site)) if one["status"] == "withheld"]
    without = f"{TILES}.flatMap((tile, n) => tile.querySelector('img') ? [] : [n])"
    assert browser.run(f"return {without}") == withheld
    assert browser.text().count("27 December 2021") == 1
    assert f"{len(withheld)} of these avatars are withheld." in browser.text()
    for number in withheld:
        said = browser.run(
            f"return {TILES}[arguments[0]].textContent.replace(/\\s+/g, ' ')", number
        )
        assert said.strip() == f"Follower {number + 1} , avatar withheld"
    drawn = (
        f"{without}.map(n => {TILES}[n].querySelector('use').getBoundingClientRect()).map(box =>"
        " box.width * box.height)"
    )
    assert min(browser.run(f"return {drawn}")) > 500, (
        "the silhouette is in a file of its own, and it has come"
    )


def test_where_a_picture_does_not_come_the_silhouette_stays(browser: Browser, site: Site) -> None:
    with browser.without("*/mmopen/*"):
        browser.look(site.gallery)
        assert set(show_every_picture(browser)) == {0}
        browser.shot("gallery-1280-light-no-pictures")
        face = browser.driver.find_element(By.CSS_SELECTOR, ".face")
        seen = face.screenshot_as_png
        browser.run("arguments[0].querySelector('img').remove()", face)
        is_the_same = seen == face.screenshot_as_png
        assert is_the_same, "no sign of a broken picture over it"


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_the_gallery_is_paged_by_keyboard(browser: Browser, site: Site, *, scripts: bool) -> None:
    browser.look(site.gallery, scripts=scripts)
    first = browser.driver.find_element(By.CSS_SELECTOR, ".name").text
    tab_to(browser, "next")
    until(lambda: "cursor=" in browser.driver.current_url, "the next page")
    assert browser.driver.find_element(By.CSS_SELECTOR, ".name").text != first
    tab_to(browser, "prev")
    until(lambda: "cursor=" not in browser.driver.current_url, "the first page again")
    assert browser.driver.find_element(By.CSS_SELECTOR, ".name").text == first


def tab_to(browser: Browser, rel: str) -> None:
    """Press Tab until a link has the focus, visibly, and follow it.

    The link comes before the list, not behind seventy pictures.
    """
    for _ in range(4):
        browser.press(Keys.TAB)
        if browser.run("return document.activeElement.rel") == rel:
            assert (
                browser.run("return getComputedStyle(document.activeElement).outlineStyle")
                == "solid"
            )
            return browser.press(Keys.ENTER)
    pytest.fail(f"no link {rel} among the first stops of the keyboard")


def test_the_first_stop_of_the_keyboard_skips_to_the_content(browser: Browser, site: Site) -> None:
    for base, target in ((site.gallery, "followers"), (site.house.daemon, "apps")):
        browser.look(base)
        browser.press(Keys.TAB)
        assert browser.run("return document.activeElement.className") == "skip"
        browser.press(Keys.ENTER)
        until(partial(_is_at, browser, target), "the content")


def _is_at(browser: Browser, target: str) -> bool:
    return browser.driver.current_url.endswith(f"#{target}")


# --- the status page ------------------------------------------------------------------------------


def shown(browser: Browser, name: str) -> str:
    script = (
        "const e = document.querySelector(`[data-value=${arguments[0]}]`); return e.dataset.number"
        " ?? e.textContent"
    )
    return str(browser.run(script, name))


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_the_status_page_shows_what_v1_status_says(
    browser: Browser, site: Site, *, scripts: bool
) -> None:
    browser.look(site.house.daemon, scripts=scripts)
    (app,) = site.house.get("/v1/status")[1]["apps"]
    assert shown(browser, "version") == app["version"]
    assert int(shown(browser, "used_today")) == app["quota"]["used_today"]
    assert 0 <= int(shown(browser, "expires_in")) - app["expires_in"] <= 2
    assert abs(int(shown(browser, "next_refresh_in")) - app["next_refresh_in"]) <= 2
    quota, said = app["quota"], browser.text()
    assert f"{quota['used_today']} of {quota['limit']}" in said
    assert f"{quota['used_24h']} in 24 h, {quota['remaining']} left now." in said
    assert (app["state"], browser.driver.find_element(By.CSS_SELECTOR, ".card .state").text) == (
        "fresh",
        "Valid",
    )
    assert app["appid"] in said
    bar = browser.run("const p = document.querySelector('progress'); return [p.value, p.max]")
    assert bar == [int(shown(browser, "expires_in")), 7200]
    gauge = browser.run("const m = document.querySelector('meter'); return [m.value, m.max]")
    assert gauge == [quota["used_today"], quota["limit"]]
    assert browser.complaints() == []


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_the_browser_is_told_to_come_again_only_where_no_script_does(
    browser: Browser, site: Site, *, scripts: bool
) -> None:
    browser.look(site.house.daemon, scripts=scripts)
    told = browser.run(
        "return [...document.querySelectorAll('meta[http-equiv=refresh]')].map(one => one.content)"
    )
    assert told == ([] if scripts else ["15"])


def test_a_refresh_shows_within_three_seconds_without_reloading(
    browser: Browser, site: Site
) -> None:
    browser.look(site.house.daemon)
    browser.run("window.untouched = true")
    until(lambda: site.house.post("/v1/tokens/main/refresh")[0] == 200, "min_gap is over")
    (app,) = site.house.get("/v1/status")[1]["apps"]
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
    print(f"a refresh showed after {took / 1000:.1f} s")


def test_what_was_opened_stays_open_while_the_page_updates_itself(
    browser: Browser, site: Site
) -> None:
    browser.look(site.house.daemon)
    browser.driver.find_element(By.CSS_SELECTOR, "summary").send_keys(Keys.ENTER)
    before = shown(browser, "expires_in")
    until(lambda: shown(browser, "expires_in") != before, "an update")
    assert browser.run("return document.querySelector('details').open") is True
    assert browser.run("return document.activeElement.tagName") == "SUMMARY"


def test_a_daemon_that_goes_away_is_said_to_be_away_and_back_again(
    browser: Browser, tmp_path: Path
) -> None:
    house = House(tmp_path, log_level="info")
    with house.sandboxed():
        config = house.configure()
        with house.serving() as daemon:
            browser.look(house.daemon)
            assert not is_away(browser)
            config.write_text(
                config.read_text().replace("127.0.0.1:0", urlsplit(house.daemon).netloc)
            )
            daemon.kill()
            until(lambda: is_away(browser), "it says so")
            assert "what it said last" in browser.text()
        with house.serving():
            until(lambda: not is_away(browser), "it is back")


def is_away(browser: Browser) -> bool:
    return browser.driver.find_element(By.ID, "away").is_displayed()


def test_trouble_is_said_with_what_to_do(browser: Browser, site: Site) -> None:
    house = site.house
    house.control("/faults", {"appid": APPID, "kind": "errcode", "errcode": 40164})
    until(
        lambda: house.post("/v1/tokens/main/refresh")[1].get("code") == "upstream-refused",
        "the order is refused",
    )
    error = house.get("/v1/status")[1]["apps"][0]["last_error"]
    browser.look(house.daemon)
    for said in ("IP whitelist", f"errcode {error['errcode']}", error["ip"], error["rid"]):
        assert said in browser.text()
    assert (
        browser.driver.find_element(By.CSS_SELECTOR, "time").get_attribute("datetime")
        == error["at"]
    )
    assert browser.barriers() == []
    browser.shot("status-trouble-1280-light")
    browser.look(house.daemon, width=390, dark=True, language="zh-CN")
    assert "白名单" in browser.text()
    assert browser.overflow() == 0
    assert browser.barriers() == []
    browser.shot("status-trouble-390-dark-zh")
    until(lambda: house.post("/v1/tokens/main/refresh")[0] == 200, "well again")


PEERS = """
insert into token_broker.nodes (name, seen_at, notified_at, versions)
 select name, now - ago, now - 40000, '{}'
 from (
   values ('broker-2', 0), ('broker-3.shanghai.internal', 40000), (repeat('x', 64), 4000)
  ) as peers (name, ago),
  (select extract(epoch from clock_timestamp())::double precision as now) as moment
"""


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_tables_fit_into_their_cards_whatever_names_are_in_them(
    browser: Browser, shared: House, language: str, width: int
) -> None:
    browser.look(shared.daemon, width=width, language=language)
    assert "broker-3.shanghai.internal" in browser.text()
    browser.shot(f"status-nodes-{width}-{language}")
    beyond = browser.run("""
        return [...document.querySelectorAll(".card > table")].map(table => {
          const card = table.closest(".card");
          const beside = parseFloat(getComputedStyle(card).paddingRight) + card.clientLeft;
          return table.getBoundingClientRect().right + beside - card.getBoundingClientRect().right;
        })
        """)
    assert len(beyond) == 2  # of brokers, and of clients
    assert max(beyond) <= 0
    assert browser.overflow() == 0


# --- both -----------------------------------------------------------------------------------------


def page(site: Site, which: str) -> str:
    return {"gallery": site.gallery, "proxied": site.proxied, "status": site.house.daemon}[which]


@pytest.mark.parametrize("which", ["gallery", "proxied", "status"])
def test_no_page_holds_a_token(browser: Browser, site: Site, which: str) -> None:
    first = site.house.get("/v1/tokens/main")[1]["access_token"]
    until(lambda: site.house.post("/v1/tokens/main/refresh")[0] == 200, "min_gap is over")
    tokens = {first, site.house.get("/v1/tokens/main")[1]["access_token"]}
    assert len(tokens) == 2
    browser.look(page(site, which))
    sources = [browser.driver.page_source, *browser.bodies()]
    assert len(sources) > 2
    assert not [secret for secret in {CANARY, *tokens} for source in sources if secret in source]


@pytest.mark.parametrize(("which", "limit_kb"), [("gallery", 60), ("proxied", 60), ("status", 30)])
def test_the_first_visit_is_light(browser: Browser, site: Site, which: str, limit_kb: int) -> None:
    browser.look(page(site, which))
    heavy = weight(browser)
    print(f"{which}: {heavy:.1f} KB without pictures of people")
    assert 5 < heavy < limit_kb


@pytest.mark.parametrize("language", ["en", "zh-CN,zh;q=0.9"], ids=["en", "zh"])
@pytest.mark.parametrize(
    ("width", "dark"),
    LOOKS,
    ids=[f"{width}-{'dark' if dark else 'light'}" for width, dark in LOOKS],
)
@pytest.mark.parametrize("which", ["gallery", "status"])
def test_it_fits_and_nobody_is_kept_out(
    browser: Browser, site: Site, which: str, width: int, *, dark: bool, language: str
) -> None:
    browser.look(page(site, which), width=width, dark=dark, language=language)
    assert browser.run("return document.documentElement.lang") == language[:5]
    assert browser.overflow() == 0
    assert browser.barriers() == []
    if which == "gallery":
        show_every_picture(browser)
    assert len(browser.shot(f"{which}-{width}-{'dark' if dark else 'light'}-{language[:2]}")) > 5000
    ground = browser.run("return getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", ground)[0])
    assert (red < 60) is dark
    assert browser.complaints() == []


@pytest.mark.parametrize(
    ("which", "said"), [("gallery", "关注者"), ("status", "所有应用都有可用的令牌")]
)
def test_it_speaks_chinese_to_who_reads_it(
    browser: Browser, site: Site, which: str, said: str
) -> None:
    browser.look(page(site, which), language="zh-CN,zh;q=0.9")
    assert said in browser.text()
    browser.look(page(site, which), language="de,en;q=0.5,zh;q=0.2")
    assert said not in browser.text()


def test_the_demo_opens_what_it_says(browser: Browser, tmp_path: Path) -> None:
    with process(tmp_path / "demo.log", "demo") as demo:
        said = "".join(
            [
                demo.first_line(),
                *takewhile(lambda line: "Ctrl-C" not in line, demo.popen.stdout or ()),
            ]
        )
        pages = dict(re.findall(r"^  (status page|gallery) +(http\S+)$", said, re.MULTILINE))
        browser.look(pages["status page"])
        assert "Every app has a token." in browser.text()
        assert hosts(browser) == {urlsplit(pages["status page"]).netloc}
        browser.look(pages["gallery"])
        widths = show_every_picture(browser)
        assert len(widths) == 20, "of 24, every sixth is withheld"
        assert min(widths) > 0
        assert browser.complaints() == []
        browser.shot("demo-gallery")
        commands = re.findall(r"^  curl .*?(http[^'\s]+)'?$", said, re.MULTILINE)
        assert [
            ask("GET", command, headers={"X-Token-Broker": "1"})[0] for command in commands
        ] == [200] * 3
        assert demo.end() == 0
    with pytest.raises(OSError, match="refused"):
        ask("GET", pages["status page"])
