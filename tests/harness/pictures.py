"""The pictures of README, made anew: `python -m tests.harness.pictures`.

The status page is that of the running demo, in both languages, light and dark; the drawing is put
together here. Needs Chromium (tests/harness/tools.py), and Chinese fonts.
"""

import json
import re
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Final, NamedTuple

from tests.harness.chromium import Browser, chromium
from tests.harness.places import DEPLOY
from tests.harness.processes import process

PICTURES: Final = DEPLOY / "docs" / "pictures"
PATIENCE_S: Final = 30.0
LANGUAGES: Final = {"en": "", "zh-CN": ".zh-CN"}
WIDTH: Final = 1000


class Words(NamedTuple):
    """What stands in the drawing, in one language."""

    without: str
    within: str
    services: tuple[str, str, str]
    secret: str
    key: str
    quarrel: tuple[str, str]
    peace: tuple[str, str]


WORDS: Final = {
    "en": Words(
        "Without",
        "With token-broker",
        ("shop", "CRM", "cron job"),
        "AppSecret",
        "its own key",
        ("each fetch ends the others' token:", "40001 here and there, 45009 by noon"),
        ("one program fetches, all share;", "the AppSecret is in one place"),
    ),
    "zh-CN": Words(
        "没有中控服务器",
        "有了 token-broker",
        ("商城", "客户系统", "定时任务"),
        "AppSecret",
        "自己的密钥",
        ("谁重新获取，别人的就失效：", "到处 40001，中午就 45009"),
        ("只有一个程序获取，大家共用；", "AppSecret 只在一个地方"),
    ),
}
STYLE: Final = """
text { font: 15px system-ui, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif;
       fill: #1f2328; text-anchor: middle }
.title { font-size: 17px; font-weight: 600 }
.small { font-size: 12.5px; fill: #59636e }
.bad { fill: #c21f2e }
.good { fill: #19703a }
rect { fill: #f6f8fa; stroke: #b1bac4; stroke-width: 1.2 }
.broker { fill: #dafbe1; stroke: #19703a }
path { fill: none; stroke: #59636e; stroke-width: 1.4; marker-end: url(#arrow) }
.quarrel { stroke: #c21f2e; stroke-dasharray: 5 4 }
#arrow path { fill: #59636e; stroke: none }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 } .bad { fill: #ff8f88 } .good { fill: #5ccf75 }
  rect { fill: #161b22; stroke: #4a525c } .broker { fill: #12351f; stroke: #3fb950 }
  path { stroke: #9198a1 } .quarrel { stroke: #ff8f88 } #arrow path { fill: #9198a1 }
}
"""


def drawing(language: str) -> str:
    """Return the drawing: services beside WeChat, without a broker and with one, as SVG."""
    words, parts = WORDS[language], []

    def text(x: float, y: float, said: str, kind: str = "") -> None:
        mark = f' class="{kind}"' if kind else ""
        parts.append(f'<text x="{x:g}" y="{y:g}"{mark}>{escape(said)}</text>')

    def box(x: float, y: float, title: str, below: str = "", kind: str = "") -> None:
        mark = f' class="{kind}"' if kind else ""
        parts.append(f'<rect x="{x - 60:g}" y="{y - 24:g}" width="120" height="48" rx="8"{mark}/>')
        text(x, y + (-2 if below else 5), title)
        if below:
            text(x, y + 15, below, "small")

    def arrow(start: tuple[float, float], end: tuple[float, float], kind: str = "") -> None:
        mark = f' class="{kind}"' if kind else ""
        (x1, y1), (x2, y2) = start, end
        parts.append(f'<path d="M{x1:g} {y1:g} L{x2:g} {y2:g}"{mark}/>')

    rows = (95, 160, 225)
    text(180, 36, words.without, "title")
    text(680, 36, words.within, "title")
    for y, service in zip(rows, words.services, strict=True):
        box(80, y, service, words.secret)
        arrow((142, y), (246, 160 + (y - 160) * 0.2), "quarrel")
        box(470, y, service, words.key)
        arrow((532, y), (616, 160 + (y - 160) * 0.2))
    box(310, 160, "WeChat 微信")
    box(680, 160, "token-broker", words.secret, "broker")
    arrow((742, 160), (826, 160))
    box(890, 160, "WeChat 微信")
    for number, line in enumerate(words.quarrel):
        text(195, 284 + 20 * number, line, "bad")
    for number, line in enumerate(words.peace):
        text(680, 284 + 20 * number, line, "good")
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 320" role="img">'
        f"<title>{escape(words.without)} / {escape(words.within)}</title><style>{STYLE}</style>"
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8"'
        ' markerHeight="8" orient="auto"><path d="M0 0 L8 4 L0 8 z"/></marker></defs>'
    )
    return head + "\n" + "\n".join(parts) + "\n</svg>\n"


@contextmanager
def demo(home: Path) -> Iterator[str]:
    """Run the demo, asked for a while as services would; yield the status page's address."""
    with process(home / "demo.log", "demo") as running:
        stdout = running.popen.stdout
        assert stdout is not None
        said = ""
        while "Ctrl-C" not in said:
            line = stdout.readline()
            assert line, (home / "demo.log").read_text()
            said += line
        found = re.search(r"status page +(http\S+)", said)
        assert found, said
        try:
            _ask(found[1])
            yield found[1]
        finally:
            running.end()


def _ask(address: str) -> None:
    """Be three services: one that asks, one that waits for the next, one that signs a page."""
    headers = {"X-Token-Broker": "1"}
    for _ in range(12):
        _get(urllib.request.Request(f"{address}v1/tokens/main", headers=headers))
    sign = json.dumps({"url": "https://shop.example/cart"}).encode()
    kinds = {**headers, "Content-Type": "application/json"}
    where = f"{address}v1/tickets/main/jsapi/signature"
    _get(urllib.request.Request(where, sign, kinds))


def _get(request: urllib.request.Request) -> None:
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        answer.read()


def shoot(browser: Browser, address: str) -> None:
    """Take the status page in both languages, light and dark."""
    for language, ending in LANGUAGES.items():
        for theme in ("light", "dark"):
            dark = theme == "dark"
            # The window is low, so that a picture ends where the page does.
            browser.look(address, width=WIDTH, height=100, dark=dark, language=language)
            name = f"status-{theme}{ending}.png"
            (PICTURES / name).write_bytes(browser.shot(name))


def main() -> None:
    """Make them all."""
    PICTURES.mkdir(exist_ok=True)
    for language, ending in LANGUAGES.items():
        (PICTURES / f"overview{ending}.svg").write_text(drawing(language))
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        with demo(home) as address, chromium(home / "profile") as browser:
            time.sleep(1)  # the plot and the table of clients have what was just asked
            shoot(browser, address)


if __name__ == "__main__":
    main()
