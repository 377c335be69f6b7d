"""Interfaces of WeChat's that a client of the proxy may not call unless the operator allows it.

A client could learn credentials from them, or spend what all services of an account share
(WECHAT.md W134 to W136). A path that ends in a slash means all paths under it.
"""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

QUOTES: Final = "it quotes requests, with the token or the AppSecret in them"
RESETS: Final = "it resets quotas, which all services of an account share, ten times a month"
HANDS_OUT: Final = "it hands out other credentials than the app's"

REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "/cgi-bin/openapi/rid/get": QUOTES,
        "/cgi-bin/clear_quota": RESETS,
        "/cgi-bin/openapi/quota/clear": RESETS,
        "/cgi-bin/component/": HANDS_OUT,
        "/cgi-bin/service/get_suite_token": HANDS_OUT,
        "/cgi-bin/service/get_corp_token": HANDS_OUT,
        "/cgi-bin/service/get_provider_token": HANDS_OUT,
        "/cgi-bin/service/get_permanent_code": HANDS_OUT,
        "/cgi-bin/service/v2/get_permanent_code": HANDS_OUT,
        "/cgi-bin/corpgroup/corp/gettoken": HANDS_OUT,
        "/tcb/getqcloudtoken": HANDS_OUT,
    }
)


def at_or_under(paths: Iterable[str]) -> re.Pattern[str]:
    """Return what matches a plain path that is one of these, or below it; group 1 is which.

    Some servers do not tell capitals from small letters, so neither does this.
    """
    known = "|".join(re.escape(path.rstrip("/")) for path in paths)
    return re.compile(f"({known})(?:/.*)?", re.IGNORECASE | re.ASCII)


_REFUSED: Final = at_or_under(REFUSED)


def refused_by_default(path: str) -> str | None:
    """Return which entry of `REFUSED` a path with one leading slash falls under, or None."""
    found = _REFUSED.fullmatch(path)
    if found is None:
        return None
    known = found[1].lower()
    return known if known in REFUSED else f"{known}/"
