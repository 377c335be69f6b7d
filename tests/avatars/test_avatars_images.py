"""The image proxy fetches WeChat's and the sandbox's pictures, and nothing else.

It does so whoever asks, and however another address is disguised.
"""

import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from broker.avatars.errors import AvatarError
from broker.avatars.images import LARGEST, Images, PublicOnly
from broker.avatars.urls import PictureHosts
from tests.harness.companion import BATCHGET, TTL, Scene, scene


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(tmp_path, proxy_images=True) as there:
        yield there


async def wearing(there: Scene, url: str) -> str:
    """The openid of a follower whose avatar is there."""
    openid = (await there.openids())[0]
    there.clock.pass_(TTL)
    info = {"subscribe": 1, "openid": openid, "nickname": "小林", "headimgurl": url}
    await there.fault(BATCHGET, "answer", answer={"user_info_list": [info]})
    assert (await there.get("/v1/avatars?limit=1"))[1]["avatars"][0]["avatar_url"] == url
    return openid


async def test_a_picture_comes_through_as_it_is_and_is_fetched_once(there: Scene) -> None:
    page = (await there.get("/v1/avatars?limit=1&size=46"))[1]["avatars"][0]
    async with there.http.get(page["avatar_url"]) as original:
        body = await original.read()
    for _ in range(3):
        response = await there.ask(f"/images/{page['openid']}?size=46")
        assert (response.status, response.content_type) == (200, "image/png")
        assert await response.read() == body
        assert "max-age=86400" in response.headers["Cache-Control"]
    again = await there.ask(
        f"/images/{page['openid']}?size=46", **{"If-None-Match": response.headers["ETag"]}
    )
    assert (again.status, await again.read()) == (304, b"")
    path = page["avatar_url"].removeprefix(there.sandbox)
    assert there.wire.calls[path] == 1 + 1


async def test_the_gallery_shows_our_pictures_only_and_the_api_keeps_wechats(there: Scene) -> None:
    response = await there.ask("/")
    page = await response.text()
    assert 'src="/images/' in page
    assert there.sandbox not in page
    assert "img-src 'self';" in response.headers["Content-Security-Policy"]
    assert (await there.get("/avatars?limit=1"))[1][0].startswith(there.sandbox)


async def test_without_the_option_there_is_no_proxy(tmp_path: Path) -> None:
    async with scene(tmp_path) as there:
        assert (await there.get("/images/oabc"))[1]["code"] == "not-found"


async def test_a_follower_without_a_picture_is_404(there: Scene) -> None:
    withheld = (await there.openids())[5]
    for openid in (withheld, "o" * 28, "a b"):
        assert (await there.get(f"/images/{openid}"))[0] == 404


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example/mmopen/x/132",
        "http://thirdwx.qlogo.cn.evil.example/132",
        "http://thirdwx.qlogo.cn:8080/132",
        "http://127.0.0.1:9/mmopen/x/132",
        "http://169.254.169.254/latest/meta-data/132",
        "http://[::1]/132",
        "http://localhost/132",
    ],
)
async def test_a_picture_from_elsewhere_is_not_fetched(there: Scene, url: str) -> None:
    status, body = await there.get(f"/images/{await wearing(there, url)}")
    assert (status, body["code"]) == (502, "image-unavailable")
    assert "its address is not one of WeChat's" in body["detail"]
    assert url not in body["detail"]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"kind": "status", "status": 302, "headers": {"Location": "/elsewhere"}}, "HTTP 302"),
        ({"kind": "status", "status": 404}, "HTTP 404"),
        (
            {"kind": "garbage", "body": "<script>alert(1)</script>", "content_type": "image/png"},
            "it is no picture",
        ),
        (
            {"kind": "garbage", "body": "<svg/>", "content_type": "image/svg+xml"},
            "it is no picture",
        ),
        ({"kind": "garbage", "body": "", "content_type": "image/png"}, "it is no picture"),
        ({"kind": "gzip_bomb"}, "it is no picture"),
        ({"kind": "endless_body", "content_type": "image/png"}, "it is larger than 2 MiB"),
        ({"kind": "drop"}, "the connection failed"),
        ({"kind": "reset"}, "the connection failed"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["kind"],
)
async def test_what_is_no_picture_or_too_much_of_one_is_refused(
    there: Scene, fault: dict[str, Any], said: str
) -> None:
    openid = await wearing(there, f"{there.sandbox}/picture")
    await there.fault("/picture", times=None, **fault)
    status, body = await there.get(f"/images/{openid}")
    assert (status, body["code"]) == (502, "image-unavailable")
    assert said in body["detail"]
    assert there.wire.calls["/elsewhere"] == 0


class Told(AbstractResolver):
    """Resolves every name to the addresses it was told."""

    def __init__(self, *hosts: str) -> None:
        self._hosts = hosts

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=one,
                port=port,
                family=family,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for one in self._hosts
        ]

    async def close(self) -> None:
        pass


async def test_a_picture_host_that_resolves_into_a_private_network_is_not_called(
    there: Scene,
) -> None:
    port = int(there.sandbox.rpartition(":")[2])
    for private in (
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "192.168.1.1",
        "::1",
        "fd00::1",
        "::ffff:127.0.0.1",
    ):
        assert not await _public(private, port)
    assert await _public("203.0.113.9", port) is False, "a documentation address is nobody's"
    assert await _public("1.1.1.1", port)


async def _public(address: str, port: int) -> bool:
    try:
        return bool(await PublicOnly(Told(address)).resolve("wx.qlogo.cn", port))
    except OSError:
        return False


async def test_the_resolver_stands_before_every_picture_of_wechats(there: Scene) -> None:
    public = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=PublicOnly(Told("127.0.0.1")))
    )
    async with public, aiohttp.ClientSession() as local:
        images = Images(public, local, PictureHosts())
        with pytest.raises(AvatarError) as caught:
            await images.get("http://wx.qlogo.cn/mmopen/x/132")
    assert caught.value.facts["why"] == "broken"
    assert there.wire.calls.total() <= 1


async def test_pictures_are_kept_within_a_bound_the_longest_unused_dropped_first(
    there: Scene,
) -> None:
    urls = [one for one in (await there.get("/avatars?limit=10&size=46"))[1] if one]
    async with aiohttp.ClientSession() as session:
        images = Images(session, session, PictureHosts(sandbox=there.sandbox), room=2000)
        sizes = [len((await images.get(url)).body) for url in urls]
        assert sum(sizes) > 2000 > max(sizes), (
            "so that some must go and none is too large by itself"
        )
        before = there.wire.calls.total()
        await images.get(urls[-1])
        assert there.wire.calls.total() == before
        await images.get(urls[0])
        assert there.wire.calls.total() == before + 1


def test_a_face_is_far_below_the_limit() -> None:
    assert LARGEST == 2 * 1024 * 1024
