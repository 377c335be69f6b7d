"""The parsing of WeChat's answers: no bytes break it.

Of an answer only a token, an IP address and a request id are kept.
"""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core.answer import token_answer, verdict
from broker.core.errcodes import RULES, TOKEN_REFUSED, Failure, Kind
from broker.core.ports import Minted, Verdict
from broker.web.words import english

CANARY = "c4n4ry"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["errcode", "access_token", "expires_in", "x"]), inner)
    ),
    max_leaves=12,
)


@given(st.binary(max_size=400) | JSON.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=1500)
def test_no_bytes_make_the_parser_raise(body: bytes) -> None:
    assert isinstance(token_answer(body), Minted | Failure)
    assert isinstance(verdict(body), Verdict)


@given(st.binary(max_size=200), st.integers(0, 200))
def test_every_prefix_of_a_good_answer_is_a_lost_one(tail: bytes, cut: int) -> None:
    good = b'{"access_token":"ACCESS_TOKEN","expires_in":7200}'
    answer = token_answer(good[:cut] if cut < len(good) else good + b"x" + tail)
    assert isinstance(answer, Failure)
    assert answer.lost


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("7200", 7200),
        ('"7200"', 7200),
        ("7200.0", 7200),
        ("1", 1),
        ("1e12", 86400),
        ("1000000000000", 86400),
        ('"300.0"', 300),
    ],
)
def test_an_expiry_may_be_an_integer_an_integral_float_or_a_string_and_is_capped(
    written: str, seconds: float
) -> None:
    answer = token_answer(b'{"access_token":"T","expires_in":%s}' % written.encode())
    assert isinstance(answer, Minted)
    assert answer.expires_in == seconds


@pytest.mark.parametrize(
    "written",
    [
        "0",
        "-1",
        "7200.5",
        '"abc"',
        '""',
        "true",
        "null",
        "[]",
        "{}",
        "NaN",
        "Infinity",
        '"1e3"',
        "1e400",
    ],
)
def test_any_other_expiry_is_refused(written: str) -> None:
    assert isinstance(
        token_answer(b'{"access_token":"T","expires_in":%s}' % written.encode()), Failure
    )
    assert isinstance(token_answer(b'{"access_token":"T"}'), Failure)


@pytest.mark.parametrize("token", ["", " ", "a b", "a\r\nb", "ü", "x" * 8193, None, 5, ["t"], True])
def test_tokens_that_are_no_tokens_are_refused(token: object) -> None:
    assert isinstance(
        token_answer(json.dumps({"access_token": token, "expires_in": 7200}).encode()), Failure
    )


def test_a_token_of_512_characters_is_fine() -> None:
    answer = token_answer(json.dumps({"access_token": "x" * 512, "expires_in": 7200}).encode())
    assert isinstance(answer, Minted)
    assert answer.token.reveal() == "x" * 512


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"7",
        b"<html>login</html>",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe",
        b'{"access_token":"a","access_token":"b","expires_in":7200}',
        b'{"access_token":"a","expires_in":NaN}',
        b"[" * 10_000,
        b'{"errcode":' + b"9" * 5000 + b"}",
        b'{"errcode":"soon"}',
        b'{"errcode":1.5}',
        b'{"errcode":0}',
    ],
)
def test_what_is_no_answer_counts_as_a_lost_one(body: bytes) -> None:
    answer = token_answer(body)
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.lost) == (Kind.TRANSIENT, True)


@pytest.mark.parametrize("errcode", sorted(RULES))
@pytest.mark.parametrize("as_string", [False, True])
# A case
def test_every_errcode_has_its_class_and_is_an_answer(errcode: int, as_string: bool) -> None:  # noqa: FBT001
    body = {
        "errcode": str(errcode) if as_string else errcode,
        "errmsg": f"{CANARY} rid: 65ecc868-261f3825-3e9c4795",
    }
    answer = token_answer(json.dumps({**body, "access_token": "T", "expires_in": 7200}).encode())
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.errcode, answer.lost) == (RULES[errcode].kind, errcode, False)
    assert answer.rid == "65ecc868-261f3825-3e9c4795"
    assert CANARY not in repr(answer)


def test_errcode_zero_beside_a_token_is_success() -> None:
    assert isinstance(
        token_answer(b'{"errcode":0,"errmsg":"ok","access_token":"T","expires_in":7200}'), Minted
    )


@pytest.mark.parametrize(
    ("errmsg", "ip"),
    [
        (
            (
                "invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist rid:"
                " 65ecc868-261f3825-3e9c4795"
            ),
            "203.0.113.7",
        ),
        ("invalid ip 2001:db8::7, not in whitelist", "2001:db8::7"),
        ("invalid ip 999.1.1.1 <script>, not in whitelist", None),
        (None, None),
    ],
)
def test_the_address_wechat_saw_is_kept_and_nothing_that_is_no_address(
    errmsg: str | None, ip: str | None
) -> None:
    answer = token_answer(json.dumps({"errcode": 40164, "errmsg": errmsg}).encode())
    assert isinstance(answer, Failure)
    assert answer.ip == ip
    assert ip is None or ip in english.FAILURES.advice(answer)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"ip_list": ["101.226.62.77"]}, Verdict.ALIVE),
        *[({"errcode": code, "errmsg": "no"}, Verdict.DEAD) for code in sorted(TOKEN_REFUSED)],
        *[
            ({"errcode": code}, Verdict.UNDECIDED)
            for code in (-1, 41001, 42002, 42007, 40029, 40030, 40163, 48001, 45009, 40003)
        ],
        ({}, Verdict.UNDECIDED),
        ({"ip_list": "101.226.62.77"}, Verdict.UNDECIDED),
    ],
)
def test_only_three_errcodes_say_that_a_token_is_dead(
    body: dict[str, object], said: Verdict
) -> None:
    assert verdict(json.dumps(body).encode()) is said
