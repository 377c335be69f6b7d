"""How WeChat and WeCom say no: their numbers, their words, and how they are asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from broker.core.credential import NEVER

WORDS: Final = {
    -1: "system error",
    40001: "invalid credential, access_token is invalid or not latest",
    40002: "invalid grant_type",
    40013: "invalid appid",
    40029: "invalid code",
    40125: "invalid appsecret",
    41001: "access_token missing",
    41002: "appid missing",
    41004: "appsecret missing",
    41008: "missing code",
    45009: "reach max api daily quota limit",
    45011: "api minute-quota reach limit, must slower, retry next minute",
    47001: "data format error",
    48001: "api unauthorized",
}
WECOM_WORDS: Final = {
    40001: "invalid credential",
    40013: "invalid corpid",
    41002: "corpid missing",
    41004: "corpsecret missing",
}


class ErrcodeError(Exception):
    """An errcode of WeChat's, and what the broker has to add; `until` that steady time it is the answer to the same question."""

    def __init__(self, errcode: int, why: str = "", until: float = NEVER) -> None:
        super().__init__(errcode)
        self.errcode, self.why, self.until = errcode, why, until


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a platform is asked: the parameters' names, its number for a wrong secret, how a good answer begins, its words."""

    who: str
    secret: str
    wrong_secret: int
    good: Mapping[str, object]
    words: Mapping[int, str]

    def refusal(self, why: ErrcodeError) -> dict[str, Any]:
        """The answer that says it."""
        return {"errcode": why.errcode, "errmsg": f"{self.words[why.errcode]} {why.why}".strip()}


WECHAT: Final = Dialect("appid", "secret", 40125, {}, WORDS)
WECOM: Final = Dialect(
    "corpid", "corpsecret", 40001, {"errcode": 0, "errmsg": "ok"}, {**WORDS, **WECOM_WORDS}
)
