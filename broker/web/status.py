"""The status page: what /v1/status says, for people. Reading it calls nobody, and no token is anywhere near it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from aiohttp import hdrs, web

from broker import __version__
from broker.core.ports import StoreError
from broker.keeper import Keeper
from broker.languages import language, span
from broker.pages import Pages
from broker.web.api import EDGE, Edge, app_status, iso, uptime
from broker.web.gate import open_to_browsers
from broker.web.plot import HEIGHT, HOUR, HOURS, LANES, STEP, plot
from broker.web.words import PAGE, advice

PAGES: Final = Pages(Path(__file__).parent)
APPS_A_PAGE: Final = 12
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
TONES: Final = {"fresh": "good", "stale": "good", "suspect": "warn", "unavailable": "bad"}
WORST_FIRST: Final = ("bad", "warn", "good")


def routes() -> list[web.RouteDef]:
    """The page and what it is made of."""
    return [web.get("/", get_page), web.get("/static/{name}", get_static)]


@open_to_browsers
async def get_static(request: web.Request) -> web.Response:
    """What the page is made of."""
    return await PAGES.get_static(request)


@open_to_browsers
async def get_page(request: web.Request) -> web.Response:
    """The page: troubled apps first, a dozen at a time; `?app=NAME` shows one."""
    edge, spoken = request.app[EDGE], language(request.headers.get(hdrs.ACCEPT_LANGUAGE, ""))
    edge.lane.account()
    # Words, a thousand cards and the template are work for a thread: the loop is for those who ask for tokens.
    cards = await asyncio.to_thread(_cards, edge, spoken)
    chosen = request.query.get("app")
    some = [card for card in cards if chosen in {None, card["app"], card["appid"]}]
    pages = max(1, -(-len(some) // APPS_A_PAGE))
    number = min(pages, max(1, _number(request.query.get("page", "1"))))
    shown = some[(number - 1) * APPS_A_PAGE : number * APPS_A_PAGE]
    for card in shown:
        card["plot"] = await _plot(edge, card["appid"])
    facts = {
        "cards": shown,
        "headline": _headline(edge, cards, spoken),
        "is_one_of_many": chosen is not None and len(cards) > 1,
        "page": number,
        "pages": pages,
        "version": __version__,
        "uptime": span(uptime(), spoken),
        "visitors": _visitors(edge, spoken),
        "grid": {"hours": HOURS, "step": STEP, "width": HOURS * STEP, "height": HEIGHT, "lanes": LANES},
    }
    response = await asyncio.to_thread(PAGES.response, "status.html", spoken, PAGE[spoken], facts)
    response.headers.update(HEADERS)
    return response


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 7 else 1  # noqa: PLR2004 -- long enough


def _headline(edge: Edge, cards: Sequence[dict[str, Any]], spoken: str) -> dict[str, str]:
    words, tones = PAGE[spoken], [card["tone"] for card in cards]
    bad, warn = tones.count("bad"), tones.count("warn")
    if edge.roster.stopping or not edge.roster.ticking:
        return {"tone": "bad", "text": words["stopping" if edge.roster.stopping else "not_ticking"]}
    if not cards:
        return {"tone": "warn", "text": words["no_apps"]}
    tone = "bad" if bad else "warn" if warn else "good"
    text = words[{"bad": "some_bad", "warn": "some_warn", "good": "all_well"}[tone]]
    return {"tone": tone, "text": text.format(bad=bad, warn=warn, all=len(cards))}


def _cards(edge: Edge, spoken: str) -> list[dict[str, Any]]:
    """Every app, the troubled ones first."""
    return sorted((_card(keeper, spoken) for keeper in edge.roster), key=lambda card: WORST_FIRST.index(card["tone"]))


def _card(keeper: Keeper, spoken: str) -> dict[str, Any]:
    """One app, in words; the numbers are those of /v1/status."""
    said, words, token = app_status(keeper), PAGE[spoken], keeper.credential.token
    error, rivals, quota = said["last_error"], said["second_issuer"], said["quota"]
    left, lifetime = said["expires_in"], int(token.lifetime) if token else 0
    due = said["next_refresh_in"]
    troubled = error or rivals["suspected"] or said["store_error"]
    tone = TONES[said["state"]]
    return {
        **said,
        "tone": "warn" if tone == "good" and troubled else tone,
        "state_said": words[said["state"]],
        "endpoint_said": words[f"endpoint_{said['endpoint']}"],
        "lifetime": max(lifetime, left, 1),
        "left_said": span(left, spoken) if left else words["no_time_left"],
        "age_said": span(max(0, lifetime - left), spoken) if left else words["none"],
        "due_said": words["in"].format(age=span(due, spoken)) if due else words["now"],
        "quota_said": words["quota_of"].format(used=quota["used_today"], limit=quota["limit"]),
        "quota_more": words["quota_more"].format(rolling=quota["used_24h"], remaining=quota["remaining"]),
        "quota_high": quota["limit"] * 0.8,
        "error_advice": advice(error["advice"], error["class"], error["ip"], spoken) if error else "",
        "rivals_said": words["second_issuer_said" if rivals["suspected"] else "second_issuer_sign"].format(**rivals),
        "store_said": words["store_error_said"].format(error=said["store_error"]),
    }


async def _plot(edge: Edge, appid: str) -> dict[str, Any] | None:
    """Two days of an app's calls; None where the ledger cannot be read."""
    wall = edge.wall()
    try:
        calls = await edge.history(wall - (HOURS + 1) * HOUR, appid)
    except StoreError:
        return None
    drawn = plot(calls, wall)
    hours = [{"began": iso(hour.began)[:16].replace("T", " "), "counts": hour.counts} for hour in drawn.hours]
    return {"bars": drawn.bars, "hours": hours, "most": drawn.most, "total": drawn.total, "failed": drawn.failed}


def _visitors(edge: Edge, spoken: str) -> list[dict[str, str]]:
    words, now = PAGE[spoken], edge.visitors.now()
    shown = []
    for one in edge.visitors:
        since = now - one.last_at
        ago = words["ago"].format(age=span(since, spoken)) if since >= 1 else words["just_now"]
        shown.append({"name": words.get(one.name, one.name), "requests": f"{one.requests:,}", "last": ago})
    return shown
