"""The companion's routes and its cached list, against a real daemon and the sandbox.

The sockets are real, the clock is manual.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from broker.avatars import CompanionOptions
from broker.sandbox import SandboxOptions
from tests.harness.companion import BATCHGET, TTL, USER_GET, Scene, scene
from tests.harness.doubles import APPID


async def until(true: Any) -> None:
    """Let others run until it is so; bounded."""
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0)


# --- the flat list, as the old mobile client reads it ---------------------------------------------


async def test_the_flat_list_is_strings_in_the_followers_order_and_empty_where_withheld(
    there: Scene,
) -> None:
    status, urls = await there.get("/avatars?limit=12&size=64")
    assert status == 200
    assert [position for position, url in enumerate(urls) if not url] == [5, 11]
    assert all(isinstance(url, str) for url in urls)
    assert all(
        url.startswith(f"{there.sandbox}/mmopen/") and url.endswith("/64") for url in urls if url
    )
    _, page = await there.get("/v1/avatars?limit=12&size=64")
    assert [one["avatar_url"] or "" for one in page["avatars"]] == urls


async def test_every_url_of_the_flat_list_loads_as_a_picture(there: Scene) -> None:
    for url in filter(None, (await there.get("/avatars?limit=4&size=46"))[1]):
        async with there.http.get(url) as picture:
            assert (await picture.read()).startswith(b"\x89PNG")


async def test_without_parameters_the_first_hundred_come_as_wechat_gave_them(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path, SandboxOptions(followers=250)) as there:
        for query in ("", "?limit=&size="):
            status, urls = await there.get(f"/avatars{query}")
            assert (status, len(urls)) == (200, 100)
            assert all(url.endswith("/132") for url in urls if url)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/avatars?limit=0", "`limit` is a whole number from 1 to 10000"),
        ("/avatars?limit=10001", "from 1 to 10000"),
        ("/avatars?limit=1e3", "from 1 to 10000"),
        ("/avatars?limit=٣", "from 1 to 10000"),
        ("/avatars?limit=3&limit=4", "`limit` is given twice"),
        ("/avatars?size=100", "`size` is one of 0, 46, 64, 96, 132"),
        ("/avatars?size=-1", "`size` is one of"),
        ("/avatars?cursor=1", "Unknown query parameter `cursor`; there are: limit, size"),
        ("/v1/avatars?limit=1001", "from 1 to 1000"),
        ("/v1/avatars?cursor=nonsense", "`cursor` is the `next_cursor` of a page"),
        ("/v1/avatars?page=2", "Unknown query parameter `page`; there are: limit, cursor, size"),
        ("/avatars/oabc?size=1", "`size` is one of"),
        ("/livez?x=1", "there are none here"),
    ],
)
async def test_a_wrong_parameter_is_a_400_that_names_it_and_what_it_may_be(
    there: Scene, path: str, said: str
) -> None:
    response = await there.ask(path)
    body = await response.json()
    assert (response.status, response.content_type) == (400, "application/problem+json")
    assert (body["code"], body["status"], body["title"]) == (
        "invalid-parameter",
        400,
        "Bad Request",
    )
    assert said in body["detail"]
    assert response.headers["Cache-Control"] == "no-store"
    assert there.wire.calls[USER_GET] == 0


# --- pages ----------------------------------------------------------------------------------------


async def test_paging_by_cursor_gives_every_follower_once_and_ends_with_null(there: Scene) -> None:
    openids: list[str] = []
    at: str | None = ""
    while at is not None:
        _, page = await there.get(f"/v1/avatars?limit=7&cursor={at}")
        assert page.keys() == {"avatars", "next_cursor"}
        openids += [one["openid"] for one in page["avatars"]]
        at = page["next_cursor"]
    assert openids == await there.openids(24)
    assert len(set(openids)) == 24
    assert await there.listed() == 1


async def test_a_cursor_still_works_where_a_follower_before_it_has_left(there: Scene) -> None:
    openids = await there.openids()
    _, page = await there.get("/v1/avatars?limit=10")
    there.clock.pass_(TTL)
    rest = openids[:3] + openids[4:]
    await there.fault(
        USER_GET, "answer", answer={"total": 23, "count": 23, "data": {"openid": rest}}
    )
    _, after = await there.get(f"/v1/avatars?limit=10&cursor={page['next_cursor']}")
    assert [one["openid"] for one in after["avatars"]] == openids[10:20]


async def test_a_cursor_still_works_where_its_own_follower_has_left(there: Scene) -> None:
    openids = await there.openids()
    _, page = await there.get("/v1/avatars?limit=10")
    there.clock.pass_(TTL)
    rest = openids[:9] + openids[10:]
    await there.fault(
        USER_GET, "answer", answer={"total": 23, "count": 23, "data": {"openid": rest}}
    )
    _, after = await there.get(f"/v1/avatars?limit=10&cursor={page['next_cursor']}")
    assert [one["openid"] for one in after["avatars"]] == rest[10:20]


async def test_a_cursor_past_the_end_is_an_empty_last_page(there: Scene) -> None:
    assert await there.get("/v1/avatars?cursor=999999999") == (
        200,
        {"avatars": [], "next_cursor": None},
    )


async def test_an_account_without_followers_is_empty_not_an_error(tmp_path: Path) -> None:
    async with scene(tmp_path, SandboxOptions(followers=0)) as there:
        assert await there.get("/avatars") == (200, [])
        assert await there.get("/v1/avatars") == (200, {"avatars": [], "next_cursor": None})
        assert "Nobody follows this account yet" in (await there.get("/"))[1]
        assert await there.listed() == 1


@pytest.mark.soak
async def test_a_hundred_thousand_followers_cost_a_call_per_ten_thousand_in_bounded_memory(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path, SandboxOptions(followers=100_000)) as there:
        assert len((await there.get("/avatars?limit=3"))[1]) == 3
        assert await there.listed() == 1, "the first screen needs one page of the list"
        seen, resident = 0, 0
        at: str | None = "0"
        while at is not None:
            _, page = await there.get(f"/v1/avatars?limit=1000&cursor={at}")
            seen, at = seen + len(page["avatars"]), page["next_cursor"]
            resident = resident if seen > 30_000 else _resident()
        grown = _resident() - resident
    assert seen == 100_000
    assert there.wire.calls[USER_GET] == 10
    assert there.wire.calls[BATCHGET] == 1 + 1000
    assert grown < 16 * 1024 * 1024, (
        "beyond what 30 000 took: 33 bytes for each openid, and the profiles are bounded"
    )


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_exactly_ten_thousand_followers_are_one_call(tmp_path: Path) -> None:
    async with scene(tmp_path, SandboxOptions(followers=10_000)) as there:
        assert len((await there.get("/avatars?limit=10000"))[1]) == 10_000
        assert (there.wire.calls[USER_GET], there.wire.calls[BATCHGET]) == (1, 100)


async def test_pages_of_the_list_stay_joined_where_a_follower_at_a_seam_has_left(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path, SandboxOptions(followers=10_010)) as there:
        _, page = await there.get("/v1/avatars?limit=5&cursor=9998")
        ten_thousandth = page["avatars"][1]["openid"]
        before = [one["openid"] for one in page["avatars"]]
        assert there.wire.calls[USER_GET] == 2
        there.clock.pass_(TTL)
        first = await there.openids(
            1000
        )  # the same followers, but WeChat ends its first page one sooner
        await there.fault(
            USER_GET,
            "answer",
            answer={"count": 1000, "data": {"openid": first}, "next_openid": first[-1]},
        )
        there.clock.pass_(TTL)
        await there.get("/avatars?limit=1")
        _, page = await there.get("/v1/avatars?limit=5&cursor=9998")
        assert [one["openid"] for one in page["avatars"]] == before
        assert ten_thousandth in before


async def test_a_total_that_promises_more_than_comes_ends_at_the_page_without_data(
    there: Scene,
) -> None:
    await there.fault(USER_GET, "answer", answer={"total": 30})
    _, page = await there.get("/v1/avatars?limit=100")
    assert (len(page["avatars"]), page["next_cursor"]) == (24, None)
    assert there.wire.calls[USER_GET] == 2


# --- how often WeChat is asked --------------------------------------------------------------------


async def test_two_hundred_callers_at_once_cause_one_list_and_one_batch(there: Scene) -> None:
    there.wire.gate.clear()
    paths = ["/avatars?limit=24", "/v1/avatars", "/", "/v1/avatars?limit=24&size=46"] * 50
    asking = [asyncio.create_task(there.get(path)) for path in paths]
    await until(lambda: there.arrived.total() == 200)
    there.wire.gate.set()
    assert {status for status, _ in await asyncio.gather(*asking)} == {200}
    assert (there.wire.calls[USER_GET], there.wire.calls[BATCHGET]) == (1, 1)
    assert await there.listed() == 1


async def test_a_caller_who_hangs_up_does_not_end_the_call_for_the_others(there: Scene) -> None:
    there.wire.gate.clear()
    first = asyncio.create_task(there.get("/avatars"))
    await until(lambda: there.wire.calls[USER_GET] == 1)
    second = asyncio.create_task(there.get("/avatars"))
    await until(lambda: there.arrived["/avatars"] == 2)
    first.cancel()
    there.wire.gate.set()
    assert (await second)[0] == 200
    assert there.wire.calls[USER_GET] == 1


async def test_the_list_is_asked_for_again_only_after_cache_ttl(there: Scene) -> None:
    for _ in range(5):
        await there.get("/avatars")
        there.clock.pass_(TTL / 5 - 1)
    assert there.wire.calls[USER_GET] == 1
    there.clock.pass_(10)
    await there.get("/avatars")
    assert there.wire.calls[USER_GET] == 2


@pytest.mark.soak
async def test_without_a_cache_no_day_has_more_than_400_lists_and_the_last_is_shown_meanwhile(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path, cache_ttl_s=0) as there:
        stale = 0
        for _ in range(24 * 60):
            status, page = await there.get("/v1/avatars?limit=1")
            assert status == 200
            stale += page.get("stale", False)
            there.clock.pass_(60)
        assert 390 <= await there.listed() <= 400
        assert stale == 24 * 60 - await there.listed()


async def test_a_quiet_week_saves_no_lists_up(tmp_path: Path) -> None:
    async with scene(tmp_path, cache_ttl_s=0) as there:
        there.clock.pass_(7 * 86_400)
        for _ in range(60):
            await there.get("/avatars?limit=1")
        assert await there.listed() == 50


async def test_one_openid_that_wechat_does_not_know_does_not_spoil_the_other_ninety_nine(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path, SandboxOptions(followers=99)) as there:
        openids = await there.openids(99)
        there.clock.pass_(TTL)
        strange = [*openids[:40], "never-an-openid", *openids[40:]]
        await there.fault(
            USER_GET, "answer", answer={"total": 100, "count": 100, "data": {"openid": strange}}
        )
        _, page = await there.get("/v1/avatars?limit=100")
        assert [one["status"] for one in page["avatars"]].count("not-following") == 1
        assert page["avatars"][40] == {
            "openid": "never-an-openid",
            "avatar_url": None,
            "status": "not-following",
        }


# --- age ------------------------------------------------------------------------------------------


async def test_an_answer_says_how_old_it_is(there: Scene) -> None:
    await there.get("/avatars")
    there.clock.pass_(123.9)
    for path in ("/avatars", "/v1/avatars"):
        response = await there.ask(path)
        assert response.headers["Age"] == "123"
        assert response.headers["Cache-Control"] == f"private, max-age={TTL}"
        assert "Warning" not in response.headers


@pytest.mark.parametrize("path", [USER_GET, BATCHGET])
async def test_yesterdays_list_is_better_than_an_error_and_says_so(there: Scene, path: str) -> None:
    _, fresh = await there.get("/v1/avatars")
    _, urls = await there.get("/avatars")
    there.clock.pass_(86_400)
    await there.fault(path, times=None, errcode=-1)
    status, page = await there.get("/v1/avatars")
    assert (status, page) == (200, {**fresh, "stale": True})
    response = await there.ask("/avatars")
    assert await response.json() == urls
    assert (response.headers["Age"], response.headers["Warning"]) == (
        "86400",
        '110 - "Response is Stale"',
    )
    gallery = (await there.get("/"))[1]
    assert "This list is 1 day old." in gallery
    assert "WeChat cannot be asked just now" in gallery


async def test_a_list_that_recovers_is_no_longer_stale_and_each_change_is_told_once(
    there: Scene,
) -> None:
    await there.get("/avatars")
    there.clock.pass_(TTL)
    await there.fault(USER_GET, times=3, errcode=45011)
    for _ in range(3):
        for _ in range(5):
            assert (await there.get("/v1/avatars"))[1]["stale"]
        there.clock.pass_(61)
    assert "stale" not in (await there.get("/v1/avatars"))[1]
    assert [(event, facts["what"]) for event, facts in there.told] == [
        ("trouble", "user/get"),
        ("well-again", "user/get"),
    ]
    assert there.told[0][1]["code"] == "slow-down"
    assert there.wire.calls[USER_GET] == 1 + 3 + 1


async def test_where_wechat_is_silent_the_old_list_comes_soon(there: Scene) -> None:
    await there.get("/avatars")
    there.clock.pass_(TTL)
    there.wire.gate.clear()
    async with asyncio.timeout(4):
        _, page = await there.get("/v1/avatars")
    assert page["stale"]
    there.wire.gate.set()


# --- one follower ---------------------------------------------------------------------------------


async def test_one_follower_is_a_redirect_to_the_picture(there: Scene) -> None:
    openid = (await there.openids())[0]
    for query, end in (("", "/132"), ("?size=0", "/0"), ("?size=46", "/46")):
        response = await there.ask(f"/avatars/{openid}{query}")
        assert response.status == 302
        assert response.headers["Location"].startswith(f"{there.sandbox}/mmopen/")
        assert response.headers["Location"].endswith(end)


async def test_a_withheld_avatar_and_a_stranger_are_404_and_told_apart(there: Scene) -> None:
    withheld = (await there.openids())[5]
    assert [
        (status, body["code"]) for status, body in [await there.get(f"/avatars/{withheld}")]
    ] == [(404, "avatar-withheld")]
    for stranger in ("o" * 28, "never-an-openid", "a b", "../../etc", "%00", "x" * 65):
        status, body = await there.get(f"/avatars/{stranger}")
        assert (status, body["code"]) in {(404, "not-following"), (404, "not-found")}


async def test_one_follower_needs_no_list(there: Scene) -> None:
    status, _ = await there.get("/avatars/" + "o" * 28)
    assert status == 404
    assert (there.wire.calls[USER_GET], there.wire.calls[BATCHGET]) == (0, 1)
    await there.get("/avatars/" + "o" * 28)
    assert there.wire.calls[BATCHGET] == 1, "a stranger is remembered"


# --- withheld in every guise ----------------------------------------------------------------------


GUISES: list[object] = [
    "",
    "/0",
    None,
    0,
    [],
    {},
    " ",
    "javascript:alert(1)",
    "//qlogo.cn/132",
    "http://",
    "/132",
]


@pytest.mark.parametrize("guise", [{}, *({"headimgurl": value} for value in GUISES)], ids=str)
async def test_what_is_no_url_is_withheld_and_never_made_into_one(
    there: Scene, guise: dict[str, object]
) -> None:
    openid = (await there.openids())[0]
    there.clock.pass_(TTL)
    info = {"subscribe": 1, "openid": openid, **guise}
    await there.fault(BATCHGET, "answer", answer={"user_info_list": [info]})
    _, page = await there.get("/v1/avatars?limit=1")
    assert page["avatars"] == [{"openid": openid, "avatar_url": None, "status": "withheld"}]
    assert (await there.get("/avatars?limit=1&size=46"))[1] == [""]
    assert (await there.get(f"/avatars/{openid}"))[1]["code"] == "avatar-withheld"


async def test_an_account_whose_avatars_are_all_withheld_gets_a_page_that_says_why(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path, SandboxOptions(withhold_avatars=True)) as there:
        assert (await there.get("/avatars?limit=24"))[1] == [""] * 24
        gallery = (await there.get("/"))[1]
    assert "All of these avatars are withheld." in gallery
    assert "Since 27 December 2021 WeChat no longer tells" in gallery
    assert "<img" not in gallery


async def test_who_no_longer_follows_is_not_withheld(there: Scene) -> None:
    openids = await there.openids()
    await there.control("/followers", {"appid": APPID, "followers": 20})
    there.clock.pass_(TTL)
    await there.fault(
        USER_GET, "answer", answer={"total": 24, "count": 24, "data": {"openid": openids}}
    )
    _, page = await there.get("/v1/avatars")
    assert [one["status"] for one in page["avatars"][20:]] == ["not-following"] * 4
    assert "no longer follows" in (await there.get("/"))[1]


# --- who gets in, and what is said of the rest ----------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "a@localhost",
    ],
)
async def test_a_host_that_is_not_ours_gets_nothing_on_any_route(there: Scene, host: str) -> None:
    for path in ("/", "/avatars", "/livez", "/static/x", "/nothing"):
        status, body = await there.get(path, Host=host)
        assert (status, body["code"]) == (403, "host-not-allowed")


async def test_loopback_names_ip_addresses_and_allowed_hosts_get_in(tmp_path: Path) -> None:
    async with scene(tmp_path, hosts=frozenset({"pictures.example"})) as there:
        for host in (
            "localhost",
            "LOCALHOST:8766",
            "127.0.0.1",
            "127.8.9.1",
            "[::1]:8766",
            "10.1.2.3:8766",
            "[2001:db8::7]",
            "pictures.example:443",
        ):
            assert (await there.get("/livez", Host=host))[0] == 200


async def test_unknown_routes_and_methods_are_problems(there: Scene) -> None:
    status, body = await there.get("/nothing")
    assert (status, body["code"]) == (404, "not-found")
    async with there.http.post(f"{there.base}/avatars") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
        assert (await response.json())["code"] == "method-not-allowed"


async def test_every_answer_keeps_to_itself(there: Scene) -> None:
    for path in ("/", "/avatars", "/nothing", "/avatars?limit=0"):
        headers = (await there.ask(path)).headers
        policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["img-src"].split() == [
            "'self'",
            "http://*.qlogo.cn",
            "https://*.qlogo.cn",
            there.sandbox,
        ]
        assert "script-src" not in policy
        assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == (
            "nosniff",
            "no-referrer",
        )


async def test_with_wechat_itself_no_other_origin_may_show_pictures() -> None:
    assert CompanionOptions().image_sources == ("http://*.qlogo.cn", "https://*.qlogo.cn")
    assert CompanionOptions(proxy_images=True).image_sources == ()
