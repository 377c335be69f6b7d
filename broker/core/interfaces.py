"""Interfaces of WeChat's that a client of the proxy may not call unless the operator allows it.

A client could learn credentials from them, or spend what all services of an account share
(WECHAT.md W134 to W136). A path that ends in a slash means all paths under it.
"""

from collections.abc import Mapping
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


def refused_by_default(path: str) -> str | None:
    """Return which entry of `REFUSED` a path with one leading slash falls under, or None.

    Some servers do not tell capitals from small letters, so neither does this.
    """
    return next((known for known in REFUSED if is_at_or_under(path, known)), None)


def is_at_or_under(path: str, known: str) -> bool:
    """Return True if a path is the known one or below it, in whatever case."""
    lowered, known = path.lower(), known.rstrip("/")
    return lowered == known or lowered.startswith(f"{known}/")
