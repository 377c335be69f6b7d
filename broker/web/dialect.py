"""How WeChat and WeCom refuse: their errcodes, their words, and the names of their parameters."""

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
    40164: "invalid ip, not in whitelist",
    40243: "appsecret is frozen",
    41008: "missing code",
    45009: "reach max api daily quota limit",
    45011: "api minute-quota reach limit, must slower, retry next minute",
    47001: "data format error",
    48001: "api unauthorized",
    89501: "this ip is awaiting confirmation by the administrator",
    89503: "this ip needs the confirmation of the administrator",
    89506: "the administrator has denied this ip for 24 hours",
    89507: "the administrator has denied this ip for an hour",
}
# What WeChat told the broker and a person must see to: services are told the same.
FOR_PEOPLE: Final = frozenset({40164, 40243, 89501, 89503, 89506, 89507})
WECOM_WORDS: Final = {
    40001: "invalid credential",
    40013: "invalid corpid",
    41002: "corpid missing",
    41004: "corpsecret missing",
}


class ErrcodeError(Exception):
    """A refusal in WeChat's manner: an errcode, and what the broker adds to its words.

    `until` is a steady time: before it, the same question gets the same refusal.
    """

    def __init__(self, errcode: int, addition: str = "", until: float = NEVER) -> None:
        super().__init__(errcode)
        self.errcode, self.addition, self.until = errcode, addition, until


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a platform is asked and how it answers.

    `app_field` and `secret_field` are the names of its parameters, `wrong_secret` its errcode for a
    wrong secret, `good` what a good answer begins with, `words` what it says for each errcode.
    """

    app_field: str
    secret_field: str
    wrong_secret: int
    good: Mapping[str, object]
    words: Mapping[int, str]

    def refusal(self, error: ErrcodeError) -> dict[str, Any]:
        """Return the answer's JSON."""
        errmsg = f"{self.words[error.errcode]} {error.addition}".strip()
        return {"errcode": error.errcode, "errmsg": errmsg}


WECHAT: Final = Dialect("appid", "secret", 40125, {}, WORDS)
WECOM: Final = Dialect(
    "corpid", "corpsecret", 40001, {"errcode": 0, "errmsg": "ok"}, {**WORDS, **WECOM_WORDS}
)
