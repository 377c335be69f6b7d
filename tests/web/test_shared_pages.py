"""Pages that are made once for everybody: who waits for which, how long one is kept, how many."""

import asyncio
import gzip
from collections.abc import Callable

import pytest
from aiohttp.test_utils import make_mocked_request

from broker.web.shared_pages import SharedPage, SharedPages, shared_page


class Maker:
    """Makes pages that say which one they are; each takes `takes_s` of a clock set by hand."""

    def __init__(self, takes_s: float = 0.1) -> None:
        self.now = 100.0
        self.made = 0
        self.takes_s = takes_s
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def page(self) -> SharedPage:
        self.made += 1
        body = b"%d" % self.made
        await self.may_go_on.wait()
        self.now += self.takes_s
        return SharedPage(body, "text/plain")

    def pages(self, **limits: int) -> SharedPages:
        return SharedPages(lambda: self.now, **limits)


async def test_all_who_ask_at_a_time_share_one_page_and_each_may_leave() -> None:
    maker = Maker()
    pages = maker.pages()
    maker.may_go_on.clear()
    asking = [asyncio.create_task(pages.get("a", maker.page)) for _ in range(9)]
    await asyncio.sleep(0)
    asking[0].cancel()
    maker.may_go_on.set()
    rest = await asyncio.gather(*asking[1:])
    assert {page.body for page in rest} == {b"1"}
    assert (maker.made, asking[0].cancelled()) == (1, True)


async def test_a_page_is_kept_for_a_second_at_most() -> None:
    maker = Maker(takes_s=0.1)
    pages = maker.pages()
    assert (await pages.get("a", maker.page)).body == b"1"
    maker.now += 0.99
    assert (await pages.get("a", maker.page)).body == b"1"
    assert (await pages.get("b", maker.page)).body == b"2"
    maker.now += 0.02
    assert (await pages.get("a", maker.page)).body == b"3"


async def test_a_page_that_is_quickly_made_is_hardly_kept() -> None:
    maker = Maker(takes_s=0.001)
    pages = maker.pages()
    await pages.get("a", maker.page)
    maker.now += 0.019
    assert (await pages.get("a", maker.page)).body == b"1"
    maker.now += 0.002
    assert (await pages.get("a", maker.page)).body == b"2"


async def test_what_is_kept_is_bounded_in_bytes_whatever_is_asked_for() -> None:
    maker = Maker()
    pages = maker.pages(most_bytes=10_000)

    def big(size: int) -> Callable[[], "asyncio.Future[SharedPage]"]:
        async def make() -> SharedPage:
            maker.now += 0.0001
            return SharedPage(b"x" * size, "text/plain")

        return lambda: asyncio.ensure_future(make())

    for number in range(100):
        await pages.get(f"key {number}", big(3000))
        assert pages._bytes <= 10_000
    assert len(pages._kept) <= 3
    assert len((await pages.get("huge", big(50_000))).body) == 50_000
    assert (pages._bytes, pages._kept) == (0, {})


async def test_a_bug_is_raised_to_everybody_who_waits_and_not_kept() -> None:
    pages, calls = SharedPages(), 0

    async def broken() -> SharedPage:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        raise ZeroDivisionError

    found = await asyncio.gather(
        *(pages.get("a", broken) for _ in range(3)), return_exceptions=True
    )
    assert {type(one) for one in found} == {ZeroDivisionError}
    assert calls == 1
    with pytest.raises(ZeroDivisionError):
        await pages.get("a", broken)


@pytest.mark.parametrize(
    ("accepts", "size", "is_packed"),
    [("gzip, deflate", 5000, True), ("", 5000, False), ("br", 5000, False), ("gzip", 100, False)],
)
def test_a_page_is_packed_for_whoever_takes_it_packed(
    accepts: str,
    size: int,
    is_packed: bool,  # noqa: FBT001 -- a case
) -> None:
    page = shared_page(b"a" * size, "text/html", {"Vary": "Accept-Language"})
    answer = page.response(make_mocked_request("GET", "/", {"Accept-Encoding": accepts}))
    assert isinstance(answer.body, bytes)
    assert ("Content-Encoding" in answer.headers) is is_packed
    assert (gzip.decompress(answer.body) if is_packed else answer.body) == b"a" * size
    assert answer.headers["Vary"].startswith("Accept-Language")
    assert ("Accept-Encoding" in answer.headers["Vary"]) is (size > 1024)
