"""The parser of WeChat's answers, which no bytes can break (WECHAT.md W21 to W26).

An answer is JSON in UTF-8 whatever its content type says. An error is HTTP 200 with an `errcode`,
an integer that may come as a string. Nothing of WeChat's text is kept but an IP address and a
request id, each checked for its shape.
"""

import json
import re
from typing import Any, Final

from broker.core.errcodes import TOKEN_REFUSED, Failure, FailureCode, Flaw, Kind, rule_for
from broker.core.ports import Minted, Verdict
from broker.core.secret import Secret
from broker.core.text import address_in

MOST_BYTES: Final = 64 * 1024
LONGEST_LIFE: Final = 86400.0  # seconds
# Opaque, and at least 512 characters must fit (WECHAT.md W5); but a token has no blanks.
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,8192}")
_RID: Final = re.compile(r"\brid: ?([0-9a-f]{1,16}(?:-[0-9a-f]{1,16}){1,3})\b")
_NUMBER: Final = re.compile(r"-?[0-9]{1,15}(?:\.0{1,9})?")


class NotAnAnswer(Exception):  # noqa: N818 -- a value in disguise, never shown
    """The bytes are not an answer of WeChat's: says what is wrong, without quoting them."""

    def __init__(self, flaw: Flaw, **facts: str) -> None:
        super().__init__(flaw)
        self.facts = {"flaw": flaw.value, **facts}


def token_answer(
    body: bytes, name: str = "access_token", *, wecom: bool = False
) -> Minted | Failure:
    """Read the HTTP 200 answer of a token endpoint or of the ticket endpoint. Never raises.

    `name` is the key under which the token or ticket stands. What cannot be read counts as a lost
    answer: the call was spent, and a token may have been minted.
    """
    try:
        answer = _object(body)
        errcode = _errcode(answer)
        if errcode:
            return _refusal(errcode, answer.get("errmsg"), wecom=wecom)
        return Minted(_token(answer.get(name), name), _seconds(answer.get("expires_in")))
    except NotAnAnswer as why:
        return Failure(Kind.TRANSIENT, FailureCode.NOT_AN_ANSWER, lost=True, facts=why.facts)


def verdict(body: bytes) -> Verdict:
    """Read what a data interface said of the token it was called with. Never raises."""
    try:
        answer = _object(body)
        errcode = _errcode(answer)
    except NotAnAnswer:
        return Verdict.UNKNOWN
    if errcode in TOKEN_REFUSED:
        return Verdict.DEAD
    is_good = not errcode and isinstance(answer.get("ip_list"), list)
    return Verdict.ALIVE if is_good else Verdict.UNDECIDED


def _refusal(errcode: int, errmsg: object, *, wecom: bool) -> Failure:
    text = errmsg if isinstance(errmsg, str) else ""
    rid = _RID.search(text)
    kind = rule_for(errcode, wecom=wecom).kind
    ip = address_in(text) if kind is Kind.ADMISSION else None
    return Failure(
        kind, FailureCode.ERRCODE, errcode, ip=ip, rid=rid[1] if rid else None, wecom=wecom
    )


def _object(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(
            body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except UnicodeDecodeError:
        raise NotAnAnswer(Flaw.NOT_UTF8) from None
    except RecursionError:
        raise NotAnAnswer(Flaw.TOO_DEEP) from None
    except ValueError:  # JSONDecodeError, and integers too long to convert
        raise NotAnAnswer(Flaw.NOT_JSON) from None
    if not isinstance(answer, dict):
        raise NotAnAnswer(Flaw.NOT_AN_OBJECT)
    return answer


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise NotAnAnswer(Flaw.KEY_TWICE)
    return dict(pairs)


def _no_constant(_: str) -> None:
    raise NotAnAnswer(Flaw.NOT_FINITE)


def _errcode(answer: dict[str, Any]) -> int:
    number = _integral(answer.get("errcode", 0))
    if number is None:
        raise NotAnAnswer(Flaw.ERRCODE)
    return int(number)


def _token(value: object, name: str) -> Secret:
    if not isinstance(value, str):
        raise NotAnAnswer(Flaw.MISSING, field=name)
    if not _TOKEN.fullmatch(value):
        raise NotAnAnswer(Flaw.MALFORMED, field=name)
    return Secret(value)


def _seconds(value: object) -> float:
    number = _integral(value)
    if number is None or number <= 0:
        raise NotAnAnswer(Flaw.EXPIRES_IN)
    return min(number, LONGEST_LIFE)


def _integral(value: object) -> float | None:
    """Return an integer, an integral float, or a string of either as a float; None for the rest."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value) else None
    if isinstance(value, int):
        return float(value) if abs(value) < 2**53 else None
    return value if isinstance(value, float) and value.is_integer() else None
