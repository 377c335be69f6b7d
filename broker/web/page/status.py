"""The status page: what /v1/status says, for people.

Reading it calls nobody, and no token is anywhere near it.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from aiohttp import hdrs, web

from broker import __version__
from broker.core.ports import StoreError
from broker.http.language import language, span
from broker.http.pages import Pages
from broker.web.api.status import nodes, uptime
from broker.web.context import EDGE, Edge
from broker.web.gate import LOCAL, SOCKET, open_to_browsers
from broker.web.page.cards import cards, stamp
from broker.web.page.messages import PAGE
from broker.web.page.plot import HEIGHT, HOUR, HOURS, LANES, STEP, WIDTHS, Plot, Result, plot
from broker.web.params import iso

PAGES: Final = Pages(Path(__file__).parent)
APPS_A_PAGE: Final = 12
VISITORS_SHOWN: Final = 50
GONE_S: Final = 10  # a node that was not seen for so long has missed several heartbeats
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    hdrs.CACHE_CONTROL: "no-store",
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
GRID: Final = {
    "step": STEP,
    "width": HOURS * STEP,
    "height": HEIGHT,
    "lanes": [(lane, WIDTHS[lane]) for lane in LANES],
    "results": [(result.value, WIDTHS[LANES[0]]) for result in Result],
}


def routes() -> list[web.RouteDef]:
    """The page and what it is made of."""
    return [web.get("/", get_page), web.get("/static/{name}", get_static)]


@open_to_browsers
async def get_static(request: web.Request) -> web.Response:
    """What the page is made of."""
    response = await PAGES.get_static(request)
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@open_to_browsers
async def get_page(request: web.Request) -> web.Response:
    """The page: troubled apps first, a dozen at a time; `?app=NAME` shows one."""
    edge, lang = request.app[EDGE], language(request.headers.get(hdrs.ACCEPT_LANGUAGE, ""))
    edge.response_cache.account()
    # Words, a thousand cards and the template are work for a thread: the loop is for those who ask
    # for tokens.
    every = await asyncio.to_thread(cards, edge, lang)
    chosen = request.query.get("app")
    some = [card for card in every if chosen in {None, card["app"], card["appid"]}]
    pages = max(1, -(-len(some) // APPS_A_PAGE))
    number = min(pages, max(1, _number(request.query.get("page", "1"))))
    shown = some[(number - 1) * APPS_A_PAGE : number * APPS_A_PAGE]
    for card in shown:
        card["plot"] = await _plot(edge, card["app"])
    facts = {
        "cards": shown,
        "headline": _headline(edge, every, lang),
        "is_one_of_many": chosen is not None and len(every) > 1,
        "page": number,
        "pages": pages,
        "version": __version__,
        "uptime": span(uptime(), lang),
        "client_stats": _visitors(edge, lang),
        "nodes": _nodes(edge, lang),
        "visitors_more": max(0, len(edge.client_stats) - VISITORS_SHOWN),
        "grid": GRID,
        "stamp": lambda wall: stamp(iso(wall)),
    }
    response = await asyncio.to_thread(PAGES.response, "status.html", lang, PAGE[lang], facts)
    response.headers.update(HEADERS)
    return response


def _number(text: str) -> int:
    # Long enough
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 7 else 1  # noqa: PLR2004


def _headline(edge: Edge, every: Sequence[dict[str, Any]], lang: str) -> dict[str, str]:
    words, tones = PAGE[lang], [card["tone"] for card in every]
    bad, warn = tones.count("bad"), tones.count("warn")
    if edge.registry.stopping or not edge.registry.ticking:
        return {
            "tone": "bad",
            "text": words["stopping" if edge.registry.stopping else "not_ticking"],
        }
    if not every:
        return {"tone": "warn", "text": words["no_apps"]}
    tone = "bad" if bad else "warn" if warn else "good"
    text = words[{"bad": "some_bad", "warn": "some_warn", "good": "all_well"}[tone]]
    return {"tone": tone, "text": text.format(bad=bad, warn=warn, all=len(every))}


async def _plot(edge: Edge, app: str) -> Plot | None:
    """Two days of an app's calls; None where the ledger cannot be read.

    The ledger is read again only where it can say something else: its thread has tokens to write,
    whoever looks on.
    """
    keeper, wall = edge.registry.find(app), edge.wall()
    if keeper is None:
        return None
    key = (keeper.credential, keeper.usage(), keeper.store_error, wall // HOUR)
    kept = edge.plots.get(app)
    if kept is not None and kept[0] == key:
        return kept[1]
    try:
        calls = await edge.history(wall - (HOURS + 1) * HOUR, keeper.account)
    except StoreError:
        return None
    drawn = await asyncio.to_thread(plot, calls, wall)
    edge.plots[app] = key, drawn
    return drawn


def _nodes(edge: Edge, lang: str) -> list[dict[str, Any]]:
    """Who shares the store: how long ago they were seen and notified, and how many apps they serve another version of."""
    words, every = PAGE[lang], nodes(edge)
    ours = {keeper.account.name: keeper.credential.version for keeper in edge.registry}

    def ago(seconds: int | None) -> str:
        if seconds is None:
            return words["never"]
        return (
            words["ago"].format(age=span(seconds, lang)) if seconds >= GONE_S else words["just_now"]
        )

    return [
        {
            "name": node["node"],
            "seen": ago(node["seen_ago"]),
            "is_gone": node["seen_ago"] >= GONE_S,
            "notified": ago(node["notified_ago"]),
            "others": sum(node["versions"][app] != version for app, version in ours.items()),
        }
        for node in every
    ]


def _visitors(edge: Edge, lang: str) -> list[dict[str, str]]:
    words, now = PAGE[lang], edge.client_stats.now()
    ours = {LOCAL.name: words["local"], SOCKET.name: words["socket"]}
    shown = []
    for one in list(edge.client_stats)[:VISITORS_SHOWN]:
        since = now - one.last_at
        ago = words["ago"].format(age=span(since, lang)) if since >= 1 else words["just_now"]
        shown.append(
            {"name": ours.get(one.name, one.name), "requests": f"{one.requests:,}", "last": ago}
        )
    return shown
