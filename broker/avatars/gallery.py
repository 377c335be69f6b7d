"""The gallery: the followers' avatars as a page for people, made without a script."""

import time
import unicodedata
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from aiohttp import hdrs, web

from broker.avatars import messages as words
from broker.avatars import queries
from broker.avatars.api import find
from broker.avatars.companion import COMPANION
from broker.avatars.errors import AvatarError
from broker.avatars.followers import Follower, Page, Status, cursor
from broker.avatars.images import PictureGoneError
from broker.avatars.listing import Cursor
from broker.http.language import age, language
from broker.http.pages import Pages
from broker.http.problems import ProblemError

SCREEN: Final = 72  # fills rows of 2, 3, 4, 6, 8, 9 and 12
SIDE: Final = 132
FULL: Final = 0
PAGES: Final = Pages(Path(__file__).parent)
A_DAY: Final = "private, max-age=86400"
BRIEFLY: Final = "private, max-age=600"  # who takes a consent back is not shown for a day


def routes(*, proxy_images: bool) -> list[web.RouteDef]:
    """The gallery, what it is made of, and, where we fetch them ourselves, its pictures."""
    pictures = [web.get("/images/{openid}", get_image)] if proxy_images else []
    return [web.get("/", get_gallery), web.get("/static/{name}", PAGES.get_static), *pictures]


async def get_gallery(request: web.Request) -> web.Response:
    """One screen of followers; where there is none to show, a page that says why."""
    lang = language(request.headers.get(hdrs.ACCEPT_LANGUAGE, ""))
    try:
        queries.known(request, ("cursor",))
        page = await request.app[COMPANION].followers.page(queries.place(request), SCREEN)
    except ProblemError as bad:
        return _render(
            "sorry.html",
            lang,
            bad.status,
            title="bad_request",
            sentence=words.PAGE[lang]["bad_address"],
            more=bad.detail,
        )
    except AvatarError as trouble:
        sentence = words.sentence(trouble.code, trouble.facts, lang)
        response = _render("sorry.html", lang, trouble.status, title="trouble", sentence=sentence)
        if trouble.retry_after is not None:
            response.headers["Retry-After"] = str(trouble.retry_after)
        return response
    shown = _shown(request, page, lang) | await _agreement(request, page, lang)
    return _render("gallery.html", lang, 200, **shown)


async def get_image(request: web.Request) -> web.Response:
    """A follower's avatar, fetched by us."""
    queries.known(request, ("size",))
    size = queries.size(request)
    follower, _, _ = await find(request)
    url = follower.url(size)
    if url is None:
        raise ProblemError(404, "no-avatar", "There is no avatar to show for this openid.")
    companion, is_agreed = request.app[COMPANION], follower.status is Status.CONSENTED
    try:
        picture = await companion.images.get(url, keep=not is_agreed)
    except PictureGoneError:
        if is_agreed and companion.consents is not None:
            await companion.consents.gone(follower.openid)
        raise
    headers = {"Cache-Control": BRIEFLY if is_agreed else A_DAY, "ETag": f'"{picture.tag}"'}
    if any(tag.value in {picture.tag, "*"} for tag in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    return web.Response(body=picture.body, content_type=picture.content_type, headers=headers)


def initial(nickname: str) -> str:
    """The letter that stands for a name, or nothing where it begins with none: an emoji, say."""
    first = unicodedata.normalize("NFC", nickname)[:1]
    return first.upper() if unicodedata.category(first or " ").startswith(("L", "N")) else ""


def _shown(request: web.Request, page: Page, lang: str) -> dict[str, Any]:
    """What the template shows, in words."""
    texts, many = words.PAGE[lang], len(page.followers)
    withheld = sum(one.status is Status.WITHHELD for one in page.followers)
    options, wall = request.app[COMPANION].options, request.app[COMPANION].wall
    read_at = time.gmtime(wall() - page.age_s)
    return {
        "tiles": [_tile(one, texts, proxied=options.proxy_images) for one in page.followers],
        "count": texts["count_one" if page.total == 1 else "count"].format(total=f"{page.total:,}"),
        "range": (
            texts["range"].format(
                first=f"{page.start + 1:,}", last=f"{page.start + many:,}", total=f"{page.total:,}"
            )
        ),
        "withheld": _withheld(withheld, many, texts),
        "nothing": "" if many else texts["past_the_end" if page.total else "nobody"],
        "stale": texts["stale"].format(age=age(page.age_s, lang)) if page.trouble else "",
        "why_stale": (
            words.sentence(page.trouble.code, page.trouble.facts, lang) if page.trouble else ""
        ),
        "read_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", read_at),
        "read_at_shown": time.strftime("%Y-%m-%d %H:%M UTC", read_at),
        "links": _links(page),
    }


async def _agreement(request: web.Request, page: Page, lang: str) -> dict[str, str]:
    """Return how many agreed to show their avatar, and where one does; empty where nobody asks."""
    companion, texts = request.app[COMPANION], words.PAGE[lang]
    settings = companion.options.consent
    if settings is None or companion.consents is None:
        return {"agreed": "", "agree_link": ""}
    agreed = await companion.consents.number()
    sentence = texts["agreed"].format(agreed=f"{agreed:,}", total=f"{page.total:,}")
    return {"agreed": sentence, "agree_link": f"{settings.public_url}/consent"}


def _withheld(count: int, many: int, texts: Mapping[str, str]) -> str:
    if not count:
        return ""
    key = "withheld_all" if count == many else "withheld_one" if count == 1 else "withheld"
    return texts[key].format(count=count)


def _links(page: Page) -> list[tuple[str, str]]:
    """Where paging leads: (word, address). None on a list of one page."""
    links = []
    if page.start:
        before = max(0, page.start - SCREEN)
        links = [
            ("first", "/"),
            ("previous", f"/?cursor={cursor(Cursor(before))}" if before else "/"),
        ]
    return [*links, ("next", f"/?cursor={cursor(page.next)}")] if page.next else links


def _tile(one: Follower, texts: Mapping[str, str], *, proxied: bool) -> dict[str, str]:
    way = "images" if proxied else "avatars"
    label = {
        Status.AVAILABLE: "",
        Status.CONSENTED: "",
        Status.WITHHELD: texts["withheld_label"],
        Status.NOT_FOLLOWING: texts["gone_label"],
    }[one.status]
    url = one.url(SIDE)
    return {
        "name": one.profile.nickname or texts["number"].format(number=f"{one.number:,}"),
        "initial": initial(one.profile.nickname),
        "picture": (f"/images/{one.openid}?size={SIDE}" if proxied else url) if url else "",
        "link": f"/{way}/{one.openid}?size={FULL}" if url else "",
        "label": label,
    }


def _render(template: str, lang: str, status: int, **shown: Any) -> web.Response:
    response = PAGES.response(template, lang, words.PAGE[lang], {"side": SIDE, **shown}, status)
    response.headers["Cache-Control"] = "no-cache" if status == HTTPStatus.OK else "no-store"
    return response
