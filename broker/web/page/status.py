"""The status page: what /v1/status says, for people.

To read it calls nobody, and no token comes near it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from aiohttp import hdrs, web

from broker import __version__
from broker.core.handouts import Handout
from broker.core.ports import StoreError
from broker.http.language import language, span
from broker.http.pages import Pages
from broker.tokens.keeper import Keeper
from broker.web.api.status import StatusReport, uptime
from broker.web.client_stats import ClientStats
from broker.web.connection.fast_path import ResponseCache
from broker.web.gate import LOCAL, SOCKET, open_to_browsers
from broker.web.handouts import Handouts
from broker.web.page import reached
from broker.web.page.cards import WORST_FIRST, CardSubject, account_of, card, tone
from broker.web.page.messages import PAGE
from broker.web.page.moments import moment, stamp
from broker.web.page.plot import HEIGHT, HOURS, LANES, STEP, WIDTHS, Plot, Result
from broker.web.page.plots import Plots
from broker.web.params import iso
from broker.web.shared_pages import SharedPage, SharedPages, shared_page

FILES: Final = Pages(Path(__file__).parent)
APPS_A_PAGE: Final = 12
CLIENTS_SHOWN: Final = 50
PREPARED_AFTER_S: Final = 2.0
LONGEST_NUMBER: Final = 6  # digits of a page's number
# Seconds. A node that was not seen for so long has missed several heartbeats.
GONE_S: Final = 10
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


class StatusPage:
    """The page and what it is made of."""

    def __init__(
        self,
        report: StatusReport,
        plots: Plots,
        client_stats: ClientStats,
        response_cache: ResponseCache,
        pages: SharedPages,
        handouts: Handouts,
    ) -> None:
        self._report = report
        self._plots = plots
        self._client_stats = client_stats
        self._response_cache = response_cache
        self._pages = pages
        self._handouts = handouts

    @asynccontextmanager
    async def prepared(self, after_s: float = PREPARED_AFTER_S) -> AsyncIterator[None]:
        """Import what the page needs, a moment after the start, which it must not slow down.

        Whoever asks for the page first may come after the installation has been replaced.
        """

        async def prepare() -> None:
            await asyncio.sleep(after_s)
            await asyncio.to_thread(FILES.prepare)

        task = asyncio.create_task(prepare(), name="prepare the page")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def routes(self) -> list[web.RouteDef]:
        """Return the page's route and that of its static files."""
        return [web.get("/", self.get_page), web.get("/static/{name}", self.get_static)]

    @open_to_browsers
    async def get_static(self, request: web.Request) -> web.Response:
        """Answer with a static file."""
        response = await FILES.get_static(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @open_to_browsers
    async def get_page(self, request: web.Request) -> web.Response:
        """Answer with the page: troubled apps first, a dozen at a time; `?app=NAME` shows one."""
        lang = language(request.headers.get(hdrs.ACCEPT_LANGUAGE, ""))
        chosen, number = request.query.get("app"), _number(request.query.get("page", "1"))

        async def make() -> SharedPage:
            return await self._page(lang, chosen, number)

        page = await self._pages.get(f"page {lang} {number} {chosen!r}", make)
        return page.response(request)

    async def _page(self, lang: str, chosen: str | None, number: int) -> SharedPage:
        self._response_cache.account()
        tones = await self._pages.on_thread(self._tones)
        found = [
            one for one, _ in tones if chosen in {None, account_of(one).name, account_of(one).appid}
        ]
        pages = max(1, -(-len(found) // APPS_A_PAGE))
        number = min(pages, max(1, number))
        shown = found[(number - 1) * APPS_A_PAGE : number * APPS_A_PAGE]
        plots = [await self._plots.of(one) if isinstance(one, Keeper) else None for one in shown]
        handouts = [
            await self._handouts_of(one) if isinstance(one, Keeper) else None for one in shown
        ]
        notifications = self._report.reach.notifications()

        def render() -> SharedPage:
            facts = {
                "cards": self._cards(shown, plots, handouts, lang),
                "headline": self._headline([tone for _, tone in tones], lang),
                "is_one_of_many": chosen is not None and len(tones) > 1,
                "page": number,
                "pages": pages,
                "version": __version__,
                "uptime": span(uptime(), lang),
                "client_stats": self._clients(lang),
                "nodes": self._nodes(lang),
                "clients_more": max(0, len(self._client_stats) - CLIENTS_SHOWN),
                "grid": GRID,
                "receivers": reached.receivers(notifications, lang),
                "told": reached.told(notifications, lang),
                "notices": [PAGE[lang][f"notice_{one.code}"] for one in self._report.notices],
                "held_back": notifications["held_back"],
                "stamp": lambda wall: stamp(iso(wall)),
                "moment": lambda wall: moment(iso(wall)),
                "iso": iso,
            }
            html = FILES.render("status.html", lang, PAGE[lang], facts)
            headers = {**HEADERS, hdrs.CONTENT_LANGUAGE: lang, hdrs.VARY: "Accept-Language"}
            return shared_page(html.encode(), "text/html; charset=utf-8", headers)

        return await self._pages.on_thread(render)

    def _tones(self) -> list[tuple[CardSubject, str]]:
        """Return how each app stands, the troubled ones first."""
        every: list[CardSubject] = [*self._report.keepers(), *self._report.registry.login_only]
        tones = [(one, tone(self._report, one)) for one in every]
        return sorted(tones, key=lambda one: WORST_FIRST.index(one[1]))

    def _cards(
        self,
        shown: Sequence[CardSubject],
        plots: Sequence[Plot | None],
        handouts: Sequence[Sequence[Handout] | None],
        lang: str,
    ) -> list[dict[str, Any]]:
        return [
            {
                **card(self._report, one, lang),
                "plot": plot,
                "handouts": reached.handouts(
                    rows, one.credential.version if isinstance(one, Keeper) else None, lang
                ),
            }
            for one, plot, rows in zip(shown, plots, handouts, strict=True)
        ]

    async def _handouts_of(self, keeper: Keeper) -> Sequence[Handout] | None:
        try:
            return await self._handouts.of(keeper.account.id, reached.HANDOUTS_SHOWN)
        except StoreError:
            return None

    def _headline(self, tones: Sequence[str], lang: str) -> dict[str, str]:
        words, registry = PAGE[lang], self._report.registry
        bad, warn = tones.count("bad"), tones.count("warn")
        if registry.stopping:
            return {"tone": "bad", "text": words["stopping"]}
        if not registry.ticking:
            return {"tone": "bad", "text": words["not_ticking"]}
        if not tones:
            return {"tone": "warn", "text": words["no_apps"]}
        worst = "bad" if bad else "warn" if warn else "good"
        text = words[{"bad": "some_bad", "warn": "some_warn", "good": "all_well"}[worst]]
        return {"tone": worst, "text": text.format(bad=bad, warn=warn, all=len(tones))}

    def _nodes(self, lang: str) -> list[dict[str, Any]]:
        """Return who shares the store.

        For each: how long ago it was seen and was told of a change, and how many apps it serves in
        another version than this broker.
        """
        words = PAGE[lang]
        ours = {keeper.account.name: keeper.credential.version for keeper in self._report.keepers()}

        def ago(seconds: int | None) -> str:
            if seconds is None:
                return words["never"]
            if seconds < GONE_S:
                return words["just_now"]
            return words["ago"].format(age=span(seconds, lang))

        return [
            {
                "name": node["node"],
                "seen": ago(node["seen_ago"]),
                "is_gone": node["seen_ago"] >= GONE_S,
                "notified": ago(node["notified_ago"]),
                "others": sum(
                    node["versions"].get(app) != version for app, version in ours.items()
                ),
            }
            for node in self._report.nodes()
        ]

    def _clients(self, lang: str) -> list[dict[str, str]]:
        """Return who asked for tokens, the last one first."""
        words, now = PAGE[lang], self._client_stats.now()
        names = {LOCAL.name: words["local"], SOCKET.name: words["socket"]}
        shown = []
        for client in list(self._client_stats)[:CLIENTS_SHOWN]:
            since = now - client.last_at
            ago = words["ago"].format(age=span(since, lang)) if since >= 1 else words["just_now"]
            name = names.get(client.name, client.name)
            shown.append({"name": name, "requests": f"{client.requests:,}", "last": ago})
        return shown


def _number(text: str) -> int:
    """Return a page's number; 1 if the text is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= LONGEST_NUMBER else 1
