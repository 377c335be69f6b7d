"""The page on which people agree, and take their consent back (WECHAT.md W103 to W113, W126, W130).

Nothing is asked on opening. A button is a form with a token bound to the browser's cookie, so that
no other site can press it; it leads to WeChat, which leads back to `/consent/return`.
"""

import secrets
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import hdrs, web

from broker.avatars.consent.consents import Consents, ConsentStoreError
from broker.avatars.consent.exchange import CodeExchange, ExchangeError
from broker.avatars.consent.state import FORM_S, StatePurpose, States
from broker.avatars.consent.store import FOLLOWER, VISITOR, Consent
from broker.avatars.consent.texts import BUTTONS, OUTCOMES, ConsentTexts
from broker.avatars.errors import AvatarError
from broker.avatars.followers import Followers, Status
from broker.config.settings import ConsentSettings
from broker.http.language import CHINESE, language
from broker.http.pages import Pages

COOKIE: Final = "__Host-consent"
PAGES: Final = Pages(Path(__file__).parent)
DAY_S: Final = 86_400
BEIJING_S: Final = 8 * 3600
SCOPES: Final = {StatePurpose.AGREE: "snsapi_userinfo", StatePurpose.WITHDRAW: "snsapi_base"}


class ConsentDesk:
    """The handlers."""

    def __init__(
        self,
        settings: ConsentSettings,
        states: States,
        exchange: CodeExchange,
        consents: Consents,
        followers: Followers,
    ) -> None:
        self._settings = settings
        self._states = states
        self._exchange = exchange
        self._consents = consents
        self._followers = followers
        self._texts = ConsentTexts(settings)

    def routes(self) -> list[web.RouteDef]:
        """Return the page, its buttons, where WeChat leads back to, and the file for WeChat."""
        routes = [
            web.get("/consent", self.show),
            web.post("/consent/agree", self.ask_to_agree),
            web.post("/consent/withdraw", self.ask_to_withdraw),
            web.get("/consent/return", self.come_back),
            web.get("/static/{name}", PAGES.get_static),
        ]
        if self._settings.verification_file is not None:
            routes.append(web.get(f"/{self._settings.verification_file}", self.verify_domain))
        return routes

    async def show(self, request: web.Request) -> web.Response:
        """Show who asks for what."""
        return self._page(request, is_stale=False)

    async def verify_domain(self, _request: web.Request) -> web.Response:
        """Answer WeChat's question whether the domain is the operator's (WECHAT.md W139)."""
        name = self._settings.verification_file or ""
        return web.Response(text=name.removeprefix("MP_verify_").removesuffix(".txt"))

    async def ask_to_agree(self, request: web.Request) -> web.Response:
        """Lead somebody who pressed the button to WeChat's dialog."""
        return await self._lead_to_wechat(request, StatePurpose.AGREE)

    async def ask_to_withdraw(self, request: web.Request) -> web.Response:
        """Lead somebody who wants to take their consent back to WeChat, which says who it is."""
        return await self._lead_to_wechat(request, StatePurpose.WITHDRAW)

    async def come_back(self, request: web.Request) -> web.Response:
        """Take what WeChat answered."""
        browser = request.cookies.get(COOKIE, "")
        opened = self._states.open(_one(request, "state"), browser)
        code = _one(request, "code")
        try:
            if opened is None:
                raise ExchangeError("state")
            is_withdrawal = opened.kind == StatePurpose.WITHDRAW
            if not code:
                raise ExchangeError("not-withdrawn" if is_withdrawal else "refused")
            if is_withdrawal:
                return self._said(request, await self._withdraw(code))
            until = await self._agree(code, opened.text_version)
        except ExchangeError as error:
            return self._said(request, error.code)
        return self._said(request, "kept", until=until)

    # --- what is done -----------------------------------------------------------------------------

    async def _agree(self, code: str, text_version: str) -> str:
        """Keep an avatar; return the day until which it is shown. Raises ExchangeError."""
        avatar = await self._exchange.avatar(code)
        now = int(self._consents.now())
        consent = Consent(
            avatar.openid,
            avatar.headimgurl,
            agreed_at=now,
            text_version=text_version,
            source=await self._source(avatar.openid),
            expires_at=now + self._settings.keep_days * DAY_S,
            refresh_token=avatar.refresh_token if self._settings.renew else None,
            asked_at=now,
        )
        try:
            await self._consents.keep(consent, self._texts.proof)
        except ConsentStoreError:
            raise ExchangeError("not-kept") from None
        return time.strftime("%Y-%m-%d", time.gmtime(consent.expires_at + BEIJING_S))

    async def _source(self, openid: str) -> str:
        """Return as whom a person agrees; in doubt as a follower, who is forgotten on leaving."""
        try:
            follower, _, _ = await self._followers.one(openid)
        except AvatarError:
            return FOLLOWER
        return VISITOR if follower.status is Status.NOT_FOLLOWING else FOLLOWER

    async def _withdraw(self, code: str) -> str:
        """Delete what is kept of who brought the code; return what to say."""
        openid = await self._exchange.openid(code)
        try:
            deleted = await self._consents.forget([openid], "withdrawn")
        except ConsentStoreError:
            return "not-deleted"
        return "withdrawn" if deleted else "nothing-kept"

    async def _lead_to_wechat(self, request: web.Request, kind: StatePurpose) -> web.Response:
        browser = request.cookies.get(COOKIE, "")
        form = (await request.post()).get("form", "")
        opened = self._states.open(form, browser) if isinstance(form, str) else None
        if opened is None or opened.kind != StatePurpose.FORM:
            return self._page(request, is_stale=True)
        if opened.text_version != self._texts.version:
            return self._page(request, is_stale=True)
        query = {  # in this order, which old clients mind (WECHAT.md W103)
            "appid": self._settings.appid,
            "redirect_uri": f"{self._settings.public_url}/consent/return",
            "response_type": "code",
            "scope": SCOPES[kind],
            "state": self._states.make(kind, browser, self._texts.version),
        }
        if kind == StatePurpose.AGREE:
            query["forcePopup"] = "true"
        where = f"{self._settings.authorize_url}?{urlencode(query)}#wechat_redirect"
        response = web.Response(status=303, headers={"Location": where})
        self._remember(response, browser)
        return response

    # --- what is shown ----------------------------------------------------------------------------

    def _page(self, request: web.Request, *, is_stale: bool) -> web.Response:
        lang = _language(request)
        browser = request.cookies.get(COOKIE, "") or secrets.token_urlsafe(32)
        text = self._texts.by_language[lang]
        shown = {
            "title": text.title,
            "sections": text.sections,
            "voluntary": text.voluntary,
            "form": self._states.make(StatePurpose.FORM, browser, self._texts.version),
            "is_stale": is_stale,
        }
        response = _rendered("consent.html", lang, shown, 400 if is_stale else 200)
        self._remember(response, browser)
        return response

    def _said(self, request: web.Request, outcome: str, **facts: str) -> web.Response:
        lang = _language(request)
        status, said = OUTCOMES[outcome]
        title, sentence = said[lang]
        shown = {"title": title.format(**facts), "sentence": sentence, "outcome": outcome}
        return _rendered("outcome.html", lang, shown, status)

    def _remember(self, response: web.Response, browser: str) -> None:
        """Bind what follows to this browser."""
        response.set_cookie(
            COOKIE, browser, max_age=FORM_S, path="/", secure=True, httponly=True, samesite="Lax"
        )


def _rendered(template: str, lang: str, shown: dict[str, Any], status: int) -> web.Response:
    response = PAGES.response(template, lang, BUTTONS[lang], shown, status)
    response.headers["Cache-Control"] = "no-store"
    return response


def _language(request: web.Request) -> str:
    """Return Chinese unless the browser asks for English rather than Chinese."""
    return language(request.headers.get(hdrs.ACCEPT_LANGUAGE, ""), CHINESE)


def _one(request: web.Request, name: str) -> str:
    """Return a parameter; nothing if it is missing or given twice."""
    given = request.query.getall(name, [])
    return given[0] if len(given) == 1 else ""
