"""WeChat's words: the text of its errors and the bytes of its answers (WECHAT.md W21, W22)."""

import json
import secrets
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

UNNAMED: Final = 40035
"""For mistakes whose errcode WECHAT.md does not give."""

_WORDS: Final[Mapping[int, str]] = {
    -1: "system error",
    40001: (
        "invalid credential, access_token is invalid or not latest, could get access_token by"
        " getStableAccessToken, more details at https://mmbizurl.cn/s/JtxxFh33r"
    ),
    40002: "invalid grant_type",
    40003: "invalid openid",
    40013: "invalid appid",
    40029: "invalid code",
    40030: "invalid refresh_token",
    40014: "invalid access_token",
    UNNAMED: "invalid parameter",
    40066: "invalid url",
    40125: "invalid appsecret,",
    40163: "code been used",
    40226: "code blocked",
    40164: "invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist",
    41001: "access_token missing",
    41002: "appid missing",
    41004: "appsecret missing",
    41008: "missing code",
    42001: "access_token expired",
    42002: "refresh_token expired",
    43002: "require POST method",
    45009: "reach max api daily quota limit",
    45011: "api minute-quota reach limit, must slower, retry next minute",
    48001: "api unauthorized",
}


class WeChatRefusal(Exception):  # noqa: N818 - an answer of WeChat's, not a bug
    """WeChat says no: an errcode, and optionally other words than the usual ones."""

    def __init__(self, errcode: int, words: str | None = None) -> None:
        super().__init__(errcode)
        self.errcode = errcode
        self.words = words

    def answer(self, now: float) -> dict[str, Any]:
        """Return the JSON answer.

        Its tail, the rid, begins with the request's Unix time in hex (WECHAT.md W24).
        """
        words = _WORDS.get(self.errcode, "error") if self.words is None else self.words
        rid = f"{int(now):08x}-{secrets.token_hex(4)}-{secrets.token_hex(4)}"
        return {"errcode": self.errcode, "errmsg": f"{words} rid: {rid}"}


def encode(answer: Mapping[str, Any]) -> bytes:
    r"""Write JSON as WeChat does: UTF-8, no blanks, every slash as ``\/``."""
    return (
        json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
        .replace("/", r"\/")
        .encode(errors="replace")
    )


def render(answer: Mapping[str, Any]) -> web.Response:
    """Answer HTTP 200, always, with WeChat's own idea of a content type (sic)."""
    return web.Response(
        body=encode(answer), headers={"Content-Type": "application/json; encoding=utf-8"}
    )
