"""The sandbox's data APIs: followers, avatars, tickets, media.

The facts are WECHAT.md W31, W34, W38 to W44, W54, W55.
"""

import hashlib
import io
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from pytest_aiohttp import AiohttpClient

from broker.sandbox import SandboxOptions
from broker.sandbox.answers import encode
from broker.sandbox.pictures import draw, picture_id
from tests.harness.sandbox_bench import APP, T0, SandboxBench


class Caller:
    """A bench with a token in hand."""

    def __init__(self, bench: SandboxBench, token: str) -> None:
        self.bench = bench
        self.token = token

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        """Ask a data API."""
        return await self.bench.get(f"/cgi-bin/{path}", access_token=self.token, **query)

    async def post(self, path: str, body: object) -> dict[str, Any]:
        """Tell a data API."""
        return await self.bench.post(f"/cgi-bin/{path}", body, access_token=self.token)

    async def openids(self) -> list[str]:
        """List the first page of followers."""
        return list((await self.get("user/get"))["data"]["openid"])


async def calling(aiohttp_client: AiohttpClient, options: SandboxOptions) -> Caller:
    bench = await SandboxBench().opened(aiohttp_client, options)
    return Caller(bench, (await bench.classic())["access_token"])


@pytest.fixture
async def caller(aiohttp_client: AiohttpClient) -> Caller:
    return await calling(aiohttp_client, SandboxOptions())


async def test_every_data_api_wants_a_token(caller: Caller) -> None:
    for path in ("get_api_domain_ip", "user/get", "user/info", "ticket/getticket", "media/get"):
        assert (await caller.bench.get(f"/cgi-bin/{path}"))["errcode"] == 41001
    for path in ("user/info/batchget", "media/upload"):
        assert (await caller.bench.post(f"/cgi-bin/{path}", {}))["errcode"] == 41001
        assert (await caller.get(path))["errcode"] == 43002


async def test_the_cheap_call_lists_addresses(caller: Caller) -> None:
    assert all(isinstance(ip, str) for ip in (await caller.get("get_api_domain_ip"))["ip_list"])


@pytest.mark.parametrize(
    "path", ["/", "/cgi-bin/nothing", "/cgi-bin/token/", "/sns/%00", "/mmopen"]
)
async def test_an_unknown_path_is_http_200_and_40066(caller: Caller, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = await caller.bench.client.request(method, path)
        assert answer.status == 200
        body = await answer.json(content_type=None)
        assert (body["errcode"], body["errmsg"].startswith("invalid url rid: ")) == (40066, True)


# Followers.


async def test_followers_are_the_same_at_every_call_and_others_in_another_account(
    caller: Caller,
) -> None:
    page = await caller.get("user/get")
    openids = page["data"]["openid"]
    assert (page["total"], page["count"], page["next_openid"]) == (24, 24, openids[-1])
    assert len(set(openids)) == 24
    assert all(len(openid) == 28 and openid.startswith("o") for openid in openids)
    assert await caller.openids() == openids
    other = Caller(caller.bench, (await caller.bench.classic("wx_another"))["access_token"])
    assert not set(await other.openids()) & set(openids)


async def test_the_empty_page_has_count_0_and_no_data(caller: Caller) -> None:
    last = (await caller.openids())[-1]
    assert await caller.get("user/get", next_openid=last) == {
        "total": 24,
        "count": 0,
        "next_openid": "",
    }


async def test_pages_have_10_000_and_the_last_real_one_has_a_next_openid(
    aiohttp_client: AiohttpClient,
) -> None:
    caller = await calling(aiohttp_client, SandboxOptions(followers=20_001))
    counts, found, after = [], [], ""
    while True:
        page = await caller.get("user/get", next_openid=after)
        counts.append(page["count"])
        if "data" not in page:
            break
        found += page["data"]["openid"]
        after = page["next_openid"]
        assert after == found[-1]
    assert counts == [10_000, 10_000, 1, 0]
    assert len(set(found)) == 20_001


@pytest.mark.parametrize("openid", ["nonsense", "o" * 28, "o" + "é" * 27, "o" * 22 + "-00001"])
async def test_a_next_openid_that_never_was_is_40003(caller: Caller, openid: str) -> None:
    assert (await caller.get("user/get", next_openid=openid))["errcode"] == 40003


async def test_user_get_may_be_called_500_times_a_day(caller: Caller) -> None:
    for _ in range(500):
        await caller.get("user/get")
    assert (await caller.get("user/get"))["errcode"] == 45009
    caller.bench.time = T0 + 86_400
    caller.token = (await caller.bench.classic())["access_token"]
    assert (await caller.get("user/get"))["count"] == 24


async def test_a_follower_has_a_nickname_and_an_avatar_where_the_sandbox_was_called(
    caller: Caller,
) -> None:
    openid = (await caller.openids())[0]
    info = await caller.get("user/info", openid=openid, lang="zh_CN")
    client = caller.bench.client
    assert (info["subscribe"], info["openid"], bool(info["nickname"])) == (1, openid, True)
    assert info["headimgurl"].startswith(f"http://{client.host}:{client.port}/mmopen/")
    assert info["headimgurl"].endswith("/132")
    path = f"/cgi-bin/user/info?access_token={caller.token}&openid={openid}"
    elsewhere = await client.get(path, headers={"Host": "sandbox.test:99"})
    assert (await elsewhere.json(content_type=None))["headimgurl"].startswith(
        "http://sandbox.test:99/mmopen/"
    )


async def test_every_sixth_follower_withholds_in_different_guises(caller: Caller) -> None:
    infos = [await caller.get("user/info", openid=openid) for openid in await caller.openids()]
    guises = [info.get("headimgurl", "absent") for info in infos]
    assert [guises[index] for index in (5, 11, 17, 23)] == ["", "absent", "/0", ""]
    assert sum(guise.startswith("http") for guise in guises) == 20
    assert not any(infos[index].get("nickname") for index in (5, 11, 17, 23))


async def test_all_nicknames_and_avatars_can_be_withheld(aiohttp_client: AiohttpClient) -> None:
    caller = await calling(aiohttp_client, SandboxOptions(withhold_avatars=True))
    infos = [await caller.get("user/info", openid=openid) for openid in await caller.openids()]
    assert {info.get("headimgurl", "absent") for info in infos} == {"", "absent", "/0"}
    assert not any(info.get("nickname") for info in infos)


async def test_who_does_not_follow_has_subscribe_0_and_nonsense_is_40003(caller: Caller) -> None:
    stranger = "o" * 28
    assert await caller.get("user/info", openid=stranger) == {"subscribe": 0, "openid": stranger}
    for nonsense in ("", "x", "ö" * 28):
        assert (await caller.get("user/info", openid=nonsense))["errcode"] == 40003


async def test_batchget_answers_up_to_100_in_order(caller: Caller) -> None:
    asked = ["o" * 28, *reversed(await caller.openids())]
    users = [{"openid": openid, "lang": "zh_CN"} for openid in asked]
    infos = (await caller.post("user/info/batchget", {"user_list": users}))["user_info_list"]
    assert [info["openid"] for info in infos] == asked
    assert infos[1] == await caller.get("user/info", openid=asked[1])
    assert "user_info_list" in await caller.post(
        "user/info/batchget", {"user_list": users[:1] * 100}
    )


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"user_list": 1},
        {"user_list": [1]},
        {"user_list": []},
        {"user_list": [{"openid": "o" * 28}] * 101},
    ],
)
async def test_a_batch_that_is_not_one_is_an_errcode(caller: Caller, body: object) -> None:
    assert (await caller.post("user/info/batchget", body))["errcode"] == 40035


# Avatars.


def pixels(png: bytes) -> tuple[int, int, bytes]:
    """Decode as little of PNG as the sandbox writes; every checksum is checked."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at, chunks = 8, {}
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length])[0] == zlib.crc32(
            kind + data
        )
        chunks[kind], at = data, at + 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    return width, height, zlib.decompress(chunks[b"IDAT"])


@pytest.mark.parametrize(("size", "side"), [(0, 640), (46, 46), (64, 64), (96, 96), (132, 132)])
async def test_an_avatar_is_a_png_of_the_size_in_its_last_segment(
    caller: Caller, size: int, side: int
) -> None:
    info = await caller.get("user/info", openid=(await caller.openids())[0])
    path = urlsplit(info["headimgurl"]).path.removesuffix("132") + str(size)
    answer = await caller.bench.client.get(path)
    assert (answer.status, answer.content_type) == (200, "image/png")
    width, height, data = pixels(await answer.read())
    assert (width, height, len(data)) == (side, side, side * (1 + 3 * side))


def test_a_face_is_its_owners_and_nobody_elses() -> None:
    assert draw(picture_id("a"), 64) == draw.__wrapped__(picture_id("a"), 64)
    assert len({draw(picture_id(str(number)), 46) for number in range(50)}) == 50


@pytest.mark.parametrize("path", ["dead/132", "dead/133", "dead/0000", "dead/%D9%A3", "%FF/64"])
async def test_a_dead_avatar_is_a_placeholder_image(caller: Caller, path: str) -> None:
    answer = await caller.bench.client.get(f"/mmopen/{path}")
    assert (answer.status, answer.content_type) == (200, "image/png")
    assert pixels(await answer.read())[0] in {64, 132}


# Tickets.


async def test_a_ticket_has_errcode_0_one_per_type_and_outlives_its_token(caller: Caller) -> None:
    ticket, card = (
        await caller.get("ticket/getticket", type="jsapi"),
        await caller.get("ticket/getticket", type="wx_card"),
    )
    assert (ticket["errcode"], ticket["errmsg"], ticket["expires_in"]) == (0, "ok", 7200)
    assert ticket["ticket"] != card["ticket"]
    await caller.bench.post("/sandbox/kill", {"appid": APP})
    caller.token = (await caller.bench.classic())["access_token"]
    caller.bench.time = T0 + 100
    assert await caller.get("ticket/getticket", type="jsapi") == ticket | {"expires_in": 7100}
    assert (await caller.get("ticket/getticket", type="other"))["errcode"] == 40035


async def test_a_ticket_is_renewed_at_its_own_expiry(caller: Caller) -> None:
    ticket = await caller.get("ticket/getticket", type="jsapi")
    caller.bench.time = T0 + 7200
    caller.token = (await caller.bench.classic())["access_token"]
    renewed = await caller.get("ticket/getticket", type="jsapi")
    assert (renewed["ticket"] != ticket["ticket"], renewed["expires_in"]) == (True, 7200)


# Media.


async def blocks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * 65_536


@pytest.mark.parametrize("multipart", [False, True])
async def test_an_upload_is_counted_hashed_and_comes_back_at_the_same_size(
    caller: Caller, *, multipart: bool
) -> None:
    size = 40 * 65_536
    body: Any = blocks(40)
    if multipart:
        body = aiohttp.FormData()
        body.add_field("media", io.BytesIO(b"x" * size), filename="a.png", content_type="image/png")
    url = f"/cgi-bin/media/upload?access_token={caller.token}&type=image"
    answer = await (await caller.bench.client.post(url, data=body)).json(content_type=None)
    assert (set(answer), answer["type"], answer["created_at"]) == (
        {"type", "media_id", "created_at"},
        "image",
        int(T0),
    )
    seen = (await caller.bench.get("/sandbox"))["media"][answer["media_id"]]
    assert (seen["size"], seen["sha256"]) == (size, hashlib.sha256(b"x" * size).hexdigest())
    url = f"/cgi-bin/media/get?access_token={caller.token}&media_id={answer['media_id']}"
    download = await caller.bench.client.get(url)
    data = await download.read()
    name = download.headers[
        "Content-Disposition"
    ]  # by which some SDKs know a file (WECHAT.md W140)
    assert name == f'attachment; filename="{answer["media_id"]}.png"'
    assert len(data) == size
    assert data == (bytes(range(251)) * (size // 251 + 1))[:size]


async def test_media_that_is_not_there_or_not_multipart_is_an_errcode(caller: Caller) -> None:
    assert (await caller.get("media/get", media_id="nothing"))["errcode"] == 40035
    url, headers = (
        f"/cgi-bin/media/upload?access_token={caller.token}",
        {"Content-Type": "multipart/form-data; boundary=x"},
    )
    for body in (b"not multipart at all", b"--x\r\nno header\r\n\r\n"):
        answer = await caller.bench.client.post(url, data=body, headers=headers)
        assert (await answer.json(content_type=None))["errcode"] == 40035


def test_text_that_is_not_unicode_is_answered_all_the_same() -> None:
    assert encode({"a": "\udcff/é"}) == '{"a":"?\\/é"}'.encode()
