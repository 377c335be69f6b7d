"""From a code to a person and an avatar (WECHAT.md W76, W82, W83).

The broker exchanges the code, since only it has the AppSecret. The user's token is used for one
call and dropped; nickname, unionid, sex and region are not even read.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from broker.avatars.errors import AvatarError
from broker.avatars.urls import PictureHosts
from broker.avatars.wechat_api import WeChatCalls, errcode_of
from broker.client import AsyncTokenClient, BrokerError

OPENID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
CODE: Final = re.compile(r"[!-~]{1,512}")
USED: Final = {40029, 40163}
UNAUTHORIZED: Final = 48001
REFRESH_OVER: Final = {40030, 42002, 42007, 42003}
STILL_GOOD: Final = {"login-throttled", "stopping"}


class ExchangeError(Exception):
    """Nothing came of it. `code` names a page in texts.py."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Avatar(NamedTuple):
    """A person's avatar, and what asks for it again."""

    openid: str
    headimgurl: str
    refresh_token: str


@dataclass(frozen=True, slots=True)
class CodeExchange:
    """Exchanges codes. Methods raise ExchangeError."""

    client: AsyncTokenClient
    calls: WeChatCalls
    hosts: PictureHosts
    appid: str

    async def openid(self, code: str) -> str:
        """Return who brought the code."""
        return _openid(await self._token(code))

    async def avatar(self, code: str) -> Avatar:
        """Return the avatar of who brought the code."""
        return await self._avatar(await self._token(code))

    async def avatar_again(self, refresh_token: str) -> Avatar:
        """Return the avatar of somebody who agreed earlier.

        The ExchangeError `over` says that they would have to agree anew.
        """
        answer = await self._ask(
            "/sns/oauth2/refresh_token",
            {
                "appid": self.appid,
                "grant_type": "refresh_token",
                "refresh_token": refresh_token,
            },
        )
        errcode = errcode_of(answer)
        if errcode in REFRESH_OVER:
            raise ExchangeError("over")
        if errcode:
            raise ExchangeError("unavailable")
        return await self._avatar(answer)

    async def _token(self, code: str) -> Mapping[str, Any]:
        """Return the user's token with its openid, not of a snapshot user (WECHAT.md W111)."""
        if not CODE.fullmatch(code):
            raise ExchangeError("used")
        try:
            answer = await self.client.login(code, kind="web")
        except BrokerError as error:
            raise ExchangeError("busy" if error.code in STILL_GOOD else "unavailable") from None
        if errcode := errcode_of(answer):
            raise ExchangeError("used" if errcode in USED else "unavailable")
        if str(answer.get("is_snapshotuser", 0)) == "1":
            raise ExchangeError("snapshot")
        return answer

    async def _avatar(self, token: Mapping[str, Any]) -> Avatar:
        openid, value = _openid(token), token.get("access_token")
        if not isinstance(value, str) or not value:
            raise ExchangeError("unavailable")
        told = await self._ask(
            "/sns/userinfo", {"access_token": value, "openid": openid, "lang": "zh_CN"}
        )
        if errcode := errcode_of(told):
            # A snapshot user may lack the mark and be refused here instead (WECHAT.md W112).
            raise ExchangeError("snapshot" if errcode == UNAUTHORIZED else "unavailable")
        if told.get("openid") != openid:
            raise ExchangeError("unavailable")
        headimgurl = told.get("headimgurl")
        if not isinstance(headimgurl, str) or not self.hosts.accept(headimgurl):
            raise ExchangeError("no-picture")
        renewal = token.get("refresh_token")
        return Avatar(openid, headimgurl, renewal if isinstance(renewal, str) else "")

    async def _ask(self, path: str, query: Mapping[str, str]) -> Mapping[str, Any]:
        try:
            return await self.calls.ask(path, query)
        except AvatarError:
            raise ExchangeError("unavailable") from None


def _openid(answer: Mapping[str, Any]) -> str:
    openid = answer.get("openid")
    if not isinstance(openid, str) or not OPENID.fullmatch(openid):
        raise ExchangeError("unavailable")
    return openid
