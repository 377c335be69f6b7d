"""How WeChat and WeCom refuse: their errcodes, their words, and the names of their parameters."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import hdrs, web

from broker.core.errcodes import Failure
from broker.core.serving import Code, Unavailable
from broker.http.problems import Problem
from broker.web.words import english

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
    43001: "require GET method",
    45009: "reach max api daily quota limit",
    45011: "api minute-quota reach limit, must slower, retry next minute",
    47001: "data format error",
    48001: "api unauthorized",
    60020: "not allow to access from your ip",
    89501: "this ip is awaiting confirmation by the administrator",
    89503: "this ip needs the confirmation of the administrator",
    89506: "the administrator has denied this ip for 24 hours",
    89507: "the administrator has denied this ip for an hour",
}
# What WeChat told the broker and a person must see to: services are told the same.
FOR_PEOPLE: Final = frozenset({40164, 40243, 60020, 89501, 89503, 89506, 89507})
# How a problem is said to an SDK, by its code, else by its HTTP status; all others are 47001.
BY_CODE: Final = {"unknown-app": 40013, "no-token": 40013}
BY_STATUS: Final = {401: 40001, 403: 48001, 405: 43001, 429: 45011, 500: -1, 503: -1}
BAD_REQUEST: Final = 47001
TOO_MANY: Final = 45011
WECOM_WORDS: Final = {
    40001: "invalid credential",
    40013: "invalid corpid",
    41002: "corpid missing",
    41004: "corpsecret missing",
}


class ErrcodeError(Exception):
    """A refusal in WeChat's manner: an errcode, and what the broker adds to its words."""

    def __init__(self, errcode: int, addition: str = "") -> None:
        super().__init__(errcode)
        self.errcode, self.addition = errcode, addition


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


class Refusal(web.Response):
    """A refusal as an SDK expects it: HTTP 200 with an errcode (WECHAT.md W89)."""

    def __init__(self, error: ErrcodeError, dialect: Dialect = WECHAT) -> None:
        super().__init__(
            text=json.dumps(dialect.refusal(error)),
            content_type="application/json",
            headers={hdrs.CACHE_CONTROL: "no-store"},
        )
        self.errcode = error.errcode


def refusal_of(problem: Problem, dialect: Dialect) -> Refusal:
    """Say a problem of ours as WeChat would say it."""
    errcode = BY_CODE.get(problem.code, BY_STATUS.get(problem.status, BAD_REQUEST))
    refusal = Refusal(ErrcodeError(errcode, f"(token-broker: {problem.detail})"), dialect)
    if problem.keep_alive is False:
        refusal.force_close()
    return refusal


def no_token(
    why: Unavailable, failure: Failure | None, thing: str = english.FAILURES.token
) -> ErrcodeError:
    """Return WeChat's own errcode where that is the cause and a person must act, else -1.

    `failure` is that of the last call for the token. SDKs try again after a -1, which cures none of
    those.
    """
    addition = f"(token-broker: {english.unavailable(why, thing)})"
    for known in (why.failure, failure):
        if known is not None and known.errcode in FOR_PEOPLE:
            return ErrcodeError(known.errcode, addition)
    return ErrcodeError(45009 if why.code is Code.QUOTA_EXHAUSTED else -1, addition)
