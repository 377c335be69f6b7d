"""What happens to consents as time passes, and what strangers may take of the public listener."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from broker.avatars.companion import COMPANION
from broker.avatars.consent import limits
from broker.avatars.consent.exchange import CodeExchange
from broker.avatars.consent.limits import ALL, EACH, VisitorLimits
from broker.avatars.consent.upkeep import ConsentUpkeep
from broker.core.secret import Secret
from tests.harness.companion import BATCHGET
from tests.harness.consent import DAY_S, DAYS, Asking, asking_scene
from tests.harness.doubles import APPID, ManualClock

REFRESH = "/sns/oauth2/refresh_token"
KEY = Secret("k" * 32)


@pytest.fixture
async def renewing(tmp_path: Path) -> AsyncIterator[Asking]:
    async with asking_scene(tmp_path, renew=True, encryption_key=KEY) as asking:
        yield asking


def upkeep_of(asking: Asking) -> ConsentUpkeep:
    parts = asking.there.app[COMPANION]
    exchange = CodeExchange(parts.client, parts.calls, parts.options.picture_hosts, APPID)
    return ConsentUpkeep(asking.consents, parts.followers, exchange, asking.there.clock.now)


async def agree(asking: Asking, **who: Any) -> str:
    openid = await asking.phone(**who)
    async with asking.visitor() as visitor:
        assert (await visitor.agree()).outcome == "kept"
    return openid


# --- the end of the time, and unfollowing ---------------------------------------------------------


async def test_what_has_come_to_its_end_is_deleted_from_the_file(asking: Asking) -> None:
    openid = await agree(asking)
    upkeep = upkeep_of(asking)
    asking.there.clock.pass_(DAYS * DAY_S - 1)
    await upkeep.once()
    assert openid.encode() in asking.settings.store.read_bytes()
    asking.there.clock.pass_(1)
    await upkeep.once()
    assert openid.encode() not in asking.settings.store.read_bytes()


async def test_who_follows_no_more_is_forgotten_within_a_day(asking: Asking) -> None:
    openid = await agree(asking)
    upkeep = upkeep_of(asking)
    await upkeep.once()
    assert await asking.kept() == [openid]
    asking.there.clock.pass_(DAY_S)
    gone = {"user_info_list": [{"subscribe": 0, "openid": openid}]}
    await asking.there.fault(BATCHGET, "answer", times=None, answer=gone)
    await upkeep.once()
    assert await asking.kept() == []
    status, problem = await asking.there.get(f"/avatars/{openid}")
    assert (status, problem["code"]) == (404, "not-following")


async def test_a_follower_who_is_left_out_of_an_answer_is_not_forgotten(asking: Asking) -> None:
    openid = await agree(asking)
    asking.there.clock.pass_(DAY_S)
    await asking.there.fault(BATCHGET, "answer", times=None, answer={"user_info_list": []})
    await upkeep_of(asking).once()
    assert await asking.kept() == [openid]


async def test_a_visitor_is_not_forgotten_and_counts_as_a_follower_once_they_are_one(
    asking: Asking,
) -> None:
    stranger = await agree(asking, openid="oSomebodyWhoFollowsNobody012")
    upkeep = upkeep_of(asking)
    await upkeep.once()
    assert await asking.kept() == [stranger]
    assert await asking.consents.number() == 0
    asking.there.clock.pass_(DAY_S)
    came = {"user_info_list": [{"subscribe": 1, "openid": stranger}]}
    await asking.there.fault(BATCHGET, "answer", times=None, answer=came)
    await upkeep.once()
    assert await asking.consents.number() == 1


async def test_a_wechat_that_fails_ends_no_consent_and_no_upkeep(asking: Asking) -> None:
    openid = await agree(asking)
    asking.there.clock.pass_(DAY_S)
    await asking.there.fault(BATCHGET, "errcode", errcode=-1)
    upkeep = upkeep_of(asking)
    await upkeep.once()
    assert await asking.kept() == [openid]


async def test_leavers_are_looked_for_four_times_a_day(asking: Asking) -> None:
    await agree(asking)
    upkeep = upkeep_of(asking)
    before = asking.there.wire.calls[BATCHGET]
    for _ in range(25):
        await upkeep.once()
        asking.there.clock.pass_(3600)
    assert asking.there.wire.calls[BATCHGET] - before == 5


# --- renewal --------------------------------------------------------------------------------------


async def test_without_renewal_nothing_is_asked_for_again(asking: Asking) -> None:
    await agree(asking)
    asking.there.clock.pass_(20 * DAY_S)
    await upkeep_of(asking).once()
    assert asking.there.wire.calls[REFRESH] == 0


async def test_a_picture_is_asked_for_again_once_a_week_where_that_is_switched_on(
    renewing: Asking,
) -> None:
    openid = await agree(renewing)
    first = await renewing.status_of(openid)
    await renewing.there.control("/picture", {"appid": APPID, "openid": openid})
    upkeep = upkeep_of(renewing)
    await upkeep.once()
    assert renewing.there.wire.calls[REFRESH] == 0
    renewing.there.clock.pass_(7 * DAY_S)
    await upkeep.once()
    await upkeep.once()
    assert renewing.there.wire.calls[REFRESH] == 1
    second = await renewing.status_of(openid)
    assert (first[0], second[0]) == ("consented", "consented")
    assert second[1] != first[1]
    (one,) = await renewing.consents.all()
    assert one.expires_at - one.agreed_at == DAYS * DAY_S, "renewal makes no consent longer"


async def test_the_refresh_token_is_kept_sealed_and_for_thirty_days(tmp_path: Path) -> None:
    options: dict[str, Any] = {"renew": True, "encryption_key": KEY, "keep_days": 365}
    async with asking_scene(tmp_path, **options) as asking:
        await agree(asking)
        (one,) = await asking.consents.all()
        assert one.refresh_token is not None
        assert one.refresh_token.encode() not in asking.settings.store.read_bytes()
        asking.there.clock.pass_(30 * DAY_S)
        await upkeep_of(asking).once()
        (one,) = await asking.consents.all()
        assert (one.refresh_token, one.asked_at) == (None, None)
        assert asking.there.wire.calls[REFRESH] == 0


@pytest.mark.parametrize(("errcode", "is_kept"), [(42002, False), (40030, False), (-1, True)])
async def test_a_refused_refresh_token_is_dropped_and_the_picture_stays(
    renewing: Asking, errcode: int, *, is_kept: bool
) -> None:
    openid = await agree(renewing)
    renewing.there.clock.pass_(7 * DAY_S)
    await renewing.there.fault(REFRESH, "errcode", errcode=errcode)
    await upkeep_of(renewing).once()
    (one,) = await renewing.consents.all()
    assert (one.refresh_token is not None) is is_kept
    assert (await renewing.status_of(openid))[0] == "consented"


# --- pictures that die ----------------------------------------------------------------------------


async def test_a_picture_that_died_counts_as_gone(tmp_path: Path) -> None:
    async with asking_scene(tmp_path, companion={"proxy_images": True}) as asking:
        openid = await agree(asking)
        shown = await asking.there.ask(f"/images/{openid}?size=64")
        assert (shown.status, shown.headers["Content-Type"]) == (200, "image/png")
        assert shown.headers["Cache-Control"] == "private, max-age=600"
        await asking.there.control("/picture", {"appid": APPID, "openid": openid})
        assert (await asking.there.ask(f"/images/{openid}?size=64")).status == 502
        assert await asking.kept() == []
        assert (await asking.status_of(openid))[0] == "withheld"


async def test_no_picture_of_those_who_agreed_is_kept_in_memory(tmp_path: Path) -> None:
    async with asking_scene(tmp_path, companion={"proxy_images": True}) as asking:
        openid = await agree(asking)
        other = (await asking.there.openids())[0]
        for one in (openid, other):
            assert (await asking.there.ask(f"/images/{one}?size=64")).status == 200
        kept = asking.there.app[COMPANION].images._kept
        assert len(kept) == 1


# --- limits of the public listener ----------------------------------------------------------------


def request(remote: str, **headers: str) -> web.Request:
    made = make_mocked_request("GET", "/consent", headers=headers)
    return made.clone(remote=remote)


def taken(visitors: VisitorLimits, remote: str, most: int = 1000, forwarded: str = "") -> int:
    """How many requests in a row are let in."""
    headers = {"X-Forwarded-For": forwarded} if forwarded else {}
    number = 0
    while number < most and visitors.take(request(remote, **headers)):
        number += 1
    return number


def test_one_address_takes_nothing_from_others() -> None:
    clock = ManualClock()
    visitors = VisitorLimits(clock.now, ())
    assert taken(visitors, "192.0.2.1") == EACH[1]
    assert taken(visitors, "192.0.2.2", 5) == 5
    clock.pass_(10)
    assert taken(visitors, "192.0.2.1") == 10 * EACH[0]


def test_everybody_together_is_bounded() -> None:
    visitors = VisitorLimits(ManualClock().now, ())
    let_in = sum(taken(visitors, f"192.0.2.{number}", 20) for number in range(100))
    assert let_in == ALL[1]


def test_a_customer_with_many_addresses_is_one() -> None:
    visitors = VisitorLimits(ManualClock().now, ())
    let_in = sum(taken(visitors, f"2001:db8::{number:x}", 10) for number in range(50))
    assert let_in == EACH[1]
    assert taken(visitors, "2001:db8:0:1::1", 5) == 5


def test_behind_a_proxy_visitors_are_told_apart_by_what_the_proxy_says() -> None:
    visitors = VisitorLimits(ManualClock().now, (ip_network("10.0.0.0/8"),))
    assert taken(visitors, "127.0.0.1", forwarded="9.9.9.9, 192.0.2.1") == EACH[1]
    assert taken(visitors, "10.1.2.3", forwarded="192.0.2.1") == 0, "the same visitor"
    assert taken(visitors, "10.1.2.3", 3, "192.0.2.2") == 3
    assert taken(visitors, "198.51.100.1", forwarded="203.0.113.9") == EACH[1]
    assert taken(visitors, "198.51.100.1", forwarded="203.0.113.10") == 0, "this is no proxy"
    assert taken(visitors, "127.0.0.1", 5, "no address") == 5


def test_the_table_of_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_ADDRESSES", 50)
    visitors = VisitorLimits(ManualClock().now, ())
    for number in range(200):
        visitors.take(request(f"192.0.2.{number}"))
    assert len(visitors._each) == 50


async def test_a_flood_of_requests_is_refused_and_the_rest_is_unharmed(asking: Asking) -> None:
    openid = await agree(asking)
    async with asking.visitor() as visitor:
        answers = [await visitor.get("/consent") for _ in range(int(EACH[1]) + 20)]
        assert {answer.status for answer in answers} == {200, 429}
        refused = next(answer for answer in answers if answer.status == 429)
        assert refused.headers["Retry-After"] == "5"
    assert (await asking.status_of(openid))[0] == "consented"
    answer = await asking.event("unsubscribe", openid)
    assert answer["body"] == "success", "events are not counted"


async def test_a_flood_of_connections_leaves_the_companion_alone(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MOST_CONNECTIONS", 20)
    port = asking.settings.listen.port
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
    try:
        await asking.there.get("/livez")
        ended = 0
        async with asyncio.timeout(20):
            while ended < 40:
                ended = sum(is_ended(one) for one in silent)
                await asyncio.sleep(0.01)
        status, page = await asking.there.get("/v1/avatars?limit=3")
        assert (status, len(page["avatars"])) == (200, 3)
    finally:
        for one in silent:
            one.close()


def is_ended(connection: socket.socket) -> bool:
    """Whether the other end has hung up."""
    connection.setblocking(False)  # noqa: FBT003 -- the standard library's signature
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


async def test_a_connection_that_says_nothing_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CONNECTION_S", 0.2)
    monkeypatch.setattr(limits, "LOOK_S", 0.05)
    async with asking_scene(tmp_path) as asking:
        reader, writer = await asyncio.open_connection("127.0.0.1", asking.settings.listen.port)
        writer.write(b"GET /consent HTTP/1.1\r\nHost: 127")
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()


async def test_a_connection_is_for_one_request(asking: Asking) -> None:
    async with asking.visitor() as visitor:
        assert (await visitor.get("/consent")).headers["Connection"] == "close"
