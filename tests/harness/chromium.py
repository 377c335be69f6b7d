"""A real browser: Debian's Chromium, driven by Selenium, and axe-core's opinion of a page."""

import base64
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains

from tests.harness.tools import path_of

FLAGS: Final = (
    "--headless=new",
    "--no-sandbox",  # CI is root
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
SERIOUS: Final = {"serious", "critical"}
SHOTS: Final = os.environ.get("SCREENSHOTS")


class Request(NamedTuple):
    """What the browser asked for.

    `size` is in bytes over the wire, headers too; None until it has ended.
    """

    url: str
    kind: str
    size: int | None


@contextmanager
def chromium(home: Path) -> Iterator["Browser"]:
    """A browser with an empty profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(path_of("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={home}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(path_of("chromedriver"))))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


class Browser:
    """What the tests do with it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self._events: list[dict[str, Any]] = []
        driver.set_page_load_timeout(30)

    def look(
        self,
        url: str,
        *,
        width: int = 1280,
        height: int = 1000,
        dark: bool = False,
        language: str = "en",
        scripts: bool = True,
    ) -> None:
        """Open a page as a reader would who comes for the first time."""
        self._cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self._cdp(
            "Emulation.setEmulatedMedia",
            features=[_feature("prefers-color-scheme", "dark" if dark else "light")],
        )
        self._cdp("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._cdp("Network.enable")
        self._cdp("Network.setExtraHTTPHeaders", headers={"Accept-Language": language})
        self._cdp(
            "Network.clearBrowserCache"
        )  # else a page seems to weigh less, the later its test comes
        self.driver.get("about:blank")  # where the last page asks for nothing more
        self.complaints()
        self._log("performance")
        self._events = []
        self.driver.get(url)

    def requests(self) -> list[Request]:
        """The requests over the network since the last look."""
        self._events += [
            json.loads(entry["message"])["message"] for entry in self._log("performance")
        ]
        ended = {"Network.loadingFinished", "Network.loadingFailed"}
        sizes = {
            event["params"]["requestId"]: int(event["params"].get("encodedDataLength", 0))
            for event in self._events
            if event["method"] in ended
        }
        sent = [
            event["params"]
            for event in self._events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [
            Request(one["request"]["url"], one.get("type", ""), sizes.get(one["requestId"]))
            for one in sent
            if not one["request"]["url"].startswith(("data:", "about:"))
        ]

    def complaints(self) -> list[str]:
        """What the console holds: errors of scripts, refused styles, pictures that did not come."""
        return [entry["message"] for entry in self._log("browser")]

    def run(self, script: str, *values: Any) -> Any:
        """Run a script on the page; what it returns."""
        return self.driver.execute_script(script, *values)

    def press(self, key: str) -> None:
        """Press a key, wherever the focus is."""
        ActionChains(self.driver).send_keys(key).perform()

    @contextmanager
    def without(self, *patterns: str) -> Iterator[None]:
        """A network on which these addresses do not answer."""
        self._cdp("Network.enable")
        self._cdp("Network.setBlockedURLs", urls=list(patterns))
        try:
            yield
        finally:
            self._cdp("Network.setBlockedURLs", urls=[])

    def bodies(self) -> list[str]:
        """The text of every answer that came since the last look."""
        self.requests()
        came = [
            one["params"] for one in self._events if one["method"] == "Network.responseReceived"
        ]
        texts = [one["requestId"] for one in came if one["type"] != "Image"]
        return [str(self._cdp("Network.getResponseBody", requestId=one)["body"]) for one in texts]

    def text(self) -> str:
        """What a reader sees."""
        return str(self.run("return document.body.innerText"))

    def overflow(self) -> int:
        """By how many pixels the page is wider than its window."""
        return int(
            self.run(
                "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
        )

    def barriers(self) -> list[str]:
        """What axe-core calls a serious or critical issue."""
        self.run(path_of("axe-core").read_text())
        found = self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1]; axe.run().then(r => done(r.violations),"
            " e => done([{id: String(e)}]))"
        )
        return [
            f"{one['id']}: {[node['html'][:120] for node in one.get('nodes', [])]}"
            for one in found
            if one.get("impact", "critical") in SERIOUS
        ]

    def shot(self, name: str) -> bytes:
        """A picture of the whole page; kept where $SCREENSHOTS says, for people to look at."""
        height = int(self.run("return document.documentElement.scrollHeight"))
        width = int(self.run("return document.documentElement.clientWidth"))
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        picture = base64.b64decode(
            self._cdp("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
        )
        if SHOTS:
            Path(SHOTS).mkdir(parents=True, exist_ok=True)
            path = Path(SHOTS) / f"{name}.png"
            path.write_bytes(picture)
            print(f"picture: {path}")
        return picture

    def _log(self, kind: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.driver.get_log(kind)  # type: ignore[no-untyped-call]
        return entries

    def _cdp(self, command: str, **parameters: Any) -> dict[str, Any]:
        found: dict[str, Any] = self.driver.execute_cdp_cmd(command, parameters) or {}
        return found


def _feature(name: str, value: str) -> dict[str, str]:
    return {"name": name, "value": value}
