"""Followers who do not exist: openids, nicknames and what is withheld of them (WECHAT.md W44)."""

import base64
import hashlib
from typing import Any

PAGE = 10_000
"""Openids per page of user/get."""
WITHHELD_EVERY, FIRST_WITHHELD = 6, 5
_PREFIX, _LENGTH = 22, 28
_NAMES = (
    "小林",
    "阿杰",
    "Mia",
    "月亮🌙",
    "老王",
    "Chloé",
    "晨曦",
    "Max",
    "豆豆",
    "Zoë",
    "大鹏",
    "静静/jing",
    "Ольга",
    "星星✨",
)


def openid(appid: str, index: int) -> str:
    """Return the ``index``-th follower's openid: 28 characters, the same at every call."""
    digest = hashlib.sha256(f"{appid}/{index}".encode()).digest()
    return f"o{base64.urlsafe_b64encode(digest).decode()[: _PREFIX - 1]}{index:06x}"


def index_of(appid: str, candidate: str) -> int | None:
    """Return which follower it is, or would be if there were so many.

    None for an openid that WeChat never gave.
    """
    try:
        index = int(candidate[_PREFIX:], 16)
    except ValueError:
        return None
    return index if index >= 0 and openid(appid, index) == candidate else None


def is_openid(candidate: str) -> bool:
    """Tell whether it at least looks like one."""
    return len(candidate) == _LENGTH and candidate.startswith("o") and candidate.isascii()


def page(appid: str, total: int, after: str) -> dict[str, Any] | None:
    """Answer user/get: up to 10 000 openids that follow ``after``; None if nobody has that openid.

    The real last page has a non-empty next_openid; the empty page has no ``data`` (WECHAT.md W39).
    """
    last = index_of(appid, after) if after else -1
    if last is None:
        return None
    openids = [openid(appid, index) for index in range(last + 1, min(last + 1 + PAGE, total))]
    if not openids:
        return {"total": total, "count": 0, "next_openid": ""}
    return {
        "total": total,
        "count": len(openids),
        "data": {"openid": openids},
        "next_openid": openids[-1],
    }


def profile(appid: str, total: int, who: str, *, withhold: bool, headimgurl: str) -> dict[str, Any]:
    """Answer user/info.

    Every sixth follower withholds nickname and avatar, or with ``withhold`` all of them do.

    ``headimgurl`` is that of those who do not.
    """
    index = index_of(appid, who)
    if index is None or index >= total:
        return {"subscribe": 0, "openid": who}
    known = {"subscribe": 1, "openid": who, "language": "zh_CN"}
    if withhold:
        return known | _withheld(index)
    if index % WITHHELD_EVERY == FIRST_WITHHELD:
        return known | _withheld(index // WITHHELD_EVERY)
    return known | {
        "nickname": _NAMES[index % len(_NAMES)],
        "headimgurl": headimgurl,
    }


def _withheld(index: int) -> dict[str, Any]:
    """Return one of the guises in which WeChat withholds: empty, absent, or the literal "/0"."""
    guises: tuple[dict[str, str], ...] = (
        {"nickname": "", "headimgurl": ""},
        {},
        {"nickname": "", "headimgurl": "/0"},
    )
    return dict(guises[index % len(guises)])
