"""The two data APIs: who follows, and what they show of themselves (WECHAT.md W38, W43).

Errors of others end here.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import aiohttp
from yarl import URL

from broker.avatars.errors import AvatarError, of_broker, refused, unreachable
from broker.avatars.urls import avatar_url
from broker.client import AsyncTokenClient, BrokerError
from broker.core.text import visible
from broker.http.way_out import PROXY_ERRORS, OutgoingSession, under

MOST_BYTES: Final = 8 * 1024 * 1024  # ten thousand openids are 310 KB
BATCH: Final = 100
INVALID_OPENID: Final = 40003
UNVERIFIED: Final = 48001


class Listed(NamedTuple):
    """A page of `user/get`."""

    total: int
    openids: list[str]
    next_openid: str


class Profile(NamedTuple):
    """What WeChat shows of a follower; empty and None where it withholds."""

    nickname: str
    avatar_url: str | None
    follows: bool


STRANGER: Final = Profile("", None, follows=False)


@dataclass(frozen=True, slots=True)
class WeChatCalls:
    """Single calls to WeChat, with a JSON object as the answer."""

    session: OutgoingSession
    api_base: str
    timeout_s: float

    async def ask(
        self, path: str, query: Mapping[str, str], method: str = "GET", body: object = None
    ) -> Mapping[str, Any]:
        """Return the answer, errcode included. Raises AvatarError, never with a token in it."""
        url = under(URL(self.api_base), path).with_query(query)
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                self.session.request(method, url, json=body) as response,
            ):
                if response.status != HTTPStatus.OK:
                    raise unreachable("status", response.status)
                return _object(await bounded(response, MOST_BYTES))
        except TimeoutError:
            raise unreachable("silent", self.timeout_s) from None
        except PROXY_ERRORS as error:
            raise unreachable("proxy", getattr(error, "status", 0)) from None
        # Without the error's text: it holds the URL, and the URL the token.
        except (aiohttp.ClientError, OSError):
            raise unreachable("broken") from None


@dataclass(frozen=True, slots=True)
class DataApi:
    """WeChat's data APIs with the daemon's token.

    `broker` is what people call the daemon, in sentences. Methods raise AvatarError, never with a
    token in it.
    """

    calls: WeChatCalls
    client: AsyncTokenClient
    broker: str
    wall: Callable[[], float]

    async def followers(self, after: str) -> Listed:
        """Up to 10 000 openids that follow `after`; from the first where it is empty.

        Counts against 500 calls a day.
        """
        answer = await self._ask(
            "GET", "/cgi-bin/user/get", {"next_openid": after} if after else {}, None
        )
        data, total, beyond = answer.get("data"), answer.get("total"), answer.get("next_openid")
        openids = data.get("openid") if isinstance(data, dict) else []
        if (
            not isinstance(openids, list)
            or not all(map(_is_openid, openids))
            or not isinstance(total, int)
        ):
            raise unreachable("garbage")
        return Listed(total, openids, str(beyond) if _is_openid(beyond) else "")

    async def profiles(self, openids: Sequence[str]) -> dict[str, Profile]:
        """Return the profiles of up to a hundred; whom WeChat leaves out counts as a stranger."""
        described = await self.described(openids)
        return {openid: described.get(openid, STRANGER) for openid in openids}

    async def described(self, openids: Sequence[str]) -> dict[str, Profile]:
        """Return what WeChat says of up to a hundred openids; whom it leaves out is left out.

        One openid that is none spoils a whole batch at WeChat: then it is halved.
        """
        wanted = [{"openid": openid, "lang": "zh_CN"} for openid in openids]
        try:
            answer = await self._ask(
                "POST", "/cgi-bin/user/info/batchget", {}, {"user_list": wanted}
            )
        except AvatarError as trouble:
            if trouble.facts.get("errcode") != INVALID_OPENID:
                raise
            if len(openids) == 1:
                return {openids[0]: STRANGER}
            half = len(openids) // 2
            return await self.described(openids[:half]) | await self.described(openids[half:])
        found = answer.get("user_info_list")
        if not isinstance(found, list):
            raise unreachable("garbage")
        return {
            one["openid"]: _profile(one)
            for one in found
            if isinstance(one, dict) and isinstance(one.get("openid"), str)
        }

    async def _ask(
        self, method: str, path: str, query: Mapping[str, str], body: object
    ) -> Mapping[str, Any]:
        async def call(token: str) -> Mapping[str, Any]:
            return await self.calls.ask(path, {**query, "access_token": token}, method, body)

        try:
            answer = await self.client.using(call)
        except BrokerError as error:
            raise of_broker(error, self.broker) from None
        if errcode := errcode_of(answer):
            raise refused(answer, errcode, self.wall)
        return answer


async def bounded(response: aiohttp.ClientResponse, most: int) -> bytes | None:
    """The body as it came, None where it is longer.

    The session must not decompress: 48 KB inflate to 50 MB.
    """
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > most:
            return None
    return bytes(body)


def _object(body: bytes | None) -> Mapping[str, Any]:
    try:
        answer = json.loads((body or b"").decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise unreachable("garbage")
    return answer


def errcode_of(answer: Mapping[str, Any]) -> int:
    """Return the errcode, which may arrive as a string; 0 where there is none, -1 if it is none."""
    try:
        return int(answer.get("errcode") or 0)
    except (TypeError, ValueError, OverflowError):
        return -1


def _is_openid(value: object) -> bool:
    return (
        isinstance(value, str)
        and value.isascii()
        and value.isprintable()
        and value != ""
        and " " not in value
    )


def _profile(info: Mapping[str, Any]) -> Profile:
    nickname = info.get("nickname")
    follows = info.get("subscribe") not in {0, "0"}
    return Profile(
        visible(nickname.strip()) if isinstance(nickname, str) else "",
        avatar_url(info.get("headimgurl")),
        follows,
    )
