"""Code exchanges, by which people log in: what is asked, and what an answer says of it.

The facts are WECHAT.md W74 to W79.
"""

import re
from enum import StrEnum
from typing import Final

from broker.core.answer import NotAnAnswer, _errcode, _object, _refusal
from broker.core.errcodes import Failure, FailureCode, Flaw, Kind, rule_for


class LoginKind(StrEnum):
    """Which of WeChat's two exchanges a code is for."""

    MINIPROGRAM = "miniprogram"  # Mini Programs and Mini Games (WECHAT.md W75)
    WEB = "web"  # pages inside WeChat, websites and mobile apps (WECHAT.md W76)


CODE: Final = re.compile(r"[!-~]{1,512}")  # WeChat's have some 32 characters
SECRET_REFUSED: Final = frozenset({40001, 40125})
# WeChat looks at a code after it has looked at the secret and the caller's address.
CODE_REFUSED: Final = frozenset({40029, 40163, 40226, 45011})
_ABOUT_THE_APP: Final = frozenset({Kind.CONFIGURATION, Kind.ADMISSION, Kind.CONFIRMATION})


def login_failure(body: bytes) -> Failure | None:
    """Return what an HTTP 200 answer refuses or lacks, or None where it says who logs in.

    Never raises. A failure without an errcode means that the answer is not WeChat's and must not be
    passed on.
    """
    try:
        answer = _object(body)
        if errcode := _errcode(answer):
            return _refusal(errcode, answer.get("errmsg"), wecom=False)
        if not isinstance(answer.get("openid"), str):
            raise NotAnAnswer(Flaw.MISSING, field="openid")
    except NotAnAnswer as why:
        return Failure(Kind.TRANSIENT, FailureCode.NOT_AN_ANSWER, lost=True, facts=why.facts)
    return None


def is_about_the_app(failure: Failure) -> bool:
    """Return True if a person must see to the app's secret, whitelist or rights."""
    return failure.errcode is not None and rule_for(failure.errcode).kind in _ABOUT_THE_APP


def proves_the_secret(failure: Failure | None) -> bool:
    """Return True if WeChat must have accepted the secret and our address to answer so."""
    return failure is None or failure.errcode in CODE_REFUSED
