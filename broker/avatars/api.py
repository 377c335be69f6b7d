"""The JSON routes, and the way to one avatar."""

import json
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from broker.avatars import queries
from broker.avatars.companion import COMPANION
from broker.avatars.errors import AvatarError
from broker.avatars.followers import OPENID, Follower, Status, cursor
from broker.avatars.listing import Cursor
from broker.http.problems import ProblemError

FEW: Final = 100
MOST: Final = 1000
MOST_FLAT: Final = (
    10_000  # without a cursor this is the only way to many: as many as WeChat lists at once
)
GONE: Final = {
    Status.WITHHELD: (
        "avatar-withheld",
        "WeChat withholds this follower's avatar, as it does since 2021-12-27.",
    ),
    Status.NOT_FOLLOWING: ("not-following", "Nobody with this openid follows the account."),
}


def routes() -> list[web.RouteDef]:
    """Every JSON route, and the redirect."""
    return [
        web.get("/avatars", get_flat),
        web.get("/avatars/{openid}", get_one),
        web.get("/v1/avatars", get_page),
        web.get("/livez", livez),
        web.get("/readyz", readyz),
    ]


async def get_flat(request: web.Request) -> web.Response:
    """Answer the URLs of the first followers' avatars, in order; `""` where there is none.

    This is what the old mobile client reads.
    """
    queries.known(request, ("limit", "size"))
    limit, size = queries.limit(request, FEW, MOST_FLAT), queries.size(request)
    page = await request.app[COMPANION].followers.page(Cursor(), limit)
    return _answer(
        request, [one.url(size) or "" for one in page.followers], page.age_s, page.trouble
    )


async def get_page(request: web.Request) -> web.Response:
    """Answer a page of followers with what there is of their avatars.

    The page says `stale` where it is older than it should be.
    """
    queries.known(request, ("limit", "cursor", "size"))
    limit, place, size = (
        queries.limit(request, FEW, MOST),
        queries.place(request),
        queries.size(request),
    )
    page = await request.app[COMPANION].followers.page(place, limit)
    shown = [
        {"openid": one.openid, "avatar_url": one.url(size), "status": one.status}
        for one in page.followers
    ]
    body: dict[str, Any] = {
        "avatars": shown,
        "next_cursor": cursor(page.next) if page.next else None,
    }
    return _answer(
        request, body | ({"stale": True} if page.trouble else {}), page.age_s, page.trouble
    )


async def get_one(request: web.Request) -> web.Response:
    """302 to a follower's avatar; 404 says whether it is withheld or nobody's."""
    queries.known(request, ("size",))
    size = queries.size(request)
    follower, age_s, trouble = await find(request)
    url = follower.url(size)
    if url is None:
        raise ProblemError(404, *GONE[follower.status])
    return web.Response(
        status=302, headers={"Location": url, **_freshness(request, age_s, trouble)}
    )


async def find(request: web.Request) -> tuple[Follower, float, AvatarError | None]:
    """The follower that the path names."""
    openid = request.match_info["openid"]
    if not OPENID.fullmatch(openid):
        raise ProblemError(404, *GONE[Status.NOT_FOLLOWING])
    return await request.app[COMPANION].followers.one(openid)


async def livez(request: web.Request) -> web.Response:
    """200: it answers."""
    queries.known(request, ())
    return _probe("")


async def readyz(request: web.Request) -> web.Response:
    """200 while it has something to show: a list, if from yesterday, or a token to get one with.

    Never calls WeChat.
    """
    queries.known(request, ())
    companion = request.app[COMPANION]
    return _probe("" if companion.followers.is_known else await companion.why_no_token())


def _probe(why_not: str) -> web.Response:
    body = {"status": "fail", "output": why_not} if why_not else {"status": "pass"}
    return web.json_response(
        body, status=503 if why_not else 200, headers={"Cache-Control": "no-store"}
    )


def _answer(
    request: web.Request, body: object, age_s: float, trouble: AvatarError | None
) -> web.Response:
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return web.Response(
        text=text, content_type="application/json", headers=_freshness(request, age_s, trouble)
    )


def _freshness(
    request: web.Request, age_s: float, trouble: AvatarError | None
) -> Mapping[str, str]:
    """How old it is.

    `Age` runs against `max-age`, so that a cache keeps it for what is left of its time.
    """
    ttl_s = int(request.app[COMPANION].options.cache_ttl_s)
    headers = {"Age": str(int(age_s)), "Cache-Control": f"private, max-age={ttl_s}"}
    return headers | ({"Warning": '110 - "Response is Stale"'} if trouble else {})
