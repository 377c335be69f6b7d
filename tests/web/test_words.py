"""Codes and facts as sentences: each code has one in every language; old codes are still read."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import pytest

from broker.core.errcodes import (
    RULES,
    WECOM_RULES,
    Advice,
    Failure,
    FailureCode,
    Flaw,
    Kind,
    rule_for,
)
from broker.core.quota import Limit, Usage
from broker.core.serving import Code, Unavailable, UnavailableReason
from broker.store.rows import _failure_of
from broker.web.words import chinese, english
from broker.web.words.failures import FailureWords

LANGUAGES = [english.FAILURES, chinese.FAILURES]
BROKE = Failure(Kind.TRANSIENT, FailureCode.CONNECTION_BROKE)
REFUSED = Failure(Kind.ADMISSION, FailureCode.ERRCODE, 40164, ip="203.0.113.7")
TABLES: list[tuple[Callable[[FailureWords], Mapping[Any, str]], type]] = [
    (lambda words: words.reasons, FailureCode),
    (lambda words: words.flaws, Flaw),
    (lambda words: words.advices, Advice),
]


@pytest.mark.parametrize(("table", "codes"), TABLES)
def test_every_code_has_a_sentence_in_each_language_with_the_same_facts(
    table: Callable[[FailureWords], Mapping[Any, str]], codes: type
) -> None:
    for words in LANGUAGES:
        assert set(table(words)) == set(codes)  # type: ignore[call-overload]
    for code, sentence in table(english.FAILURES).items():
        facts = set(re.findall(r"{\w+}", sentence))
        assert set(re.findall(r"{\w+}", table(chinese.FAILURES)[code])) == facts, code


@pytest.mark.parametrize("words", LANGUAGES)
def test_no_two_codes_have_the_same_sentence(words: FailureWords) -> None:
    for table, _ in TABLES:
        assert len(set(table(words).values())) == len(table(words))


def test_every_advice_is_of_use() -> None:
    used = {rule.advice for rules in (RULES, WECOM_RULES) for rule in rules.values()}
    assert used == set(Advice) - {Advice.PROXY}  # it goes with a kind, not with an errcode


@pytest.mark.parametrize(
    ("failure", "said", "zh"),
    [
        (
            Failure(Kind.TRANSIENT, FailureCode.NO_ANSWER, facts={"seconds": "10"}),
            "no answer within 10 s",
            "10 秒内没有应答",
        ),
        (
            Failure(Kind.TRANSIENT, FailureCode.HTTP_STATUS, facts={"status": "502"}),
            "HTTP 502",
            "HTTP 502",
        ),
        (
            Failure(
                Kind.TRANSIENT,
                FailureCode.NOT_AN_ANSWER,
                facts={"flaw": Flaw.MISSING.value, "field": "ticket"},
            ),
            "not an answer of WeChat's: no ticket",
            "应答不是微信的格式（没有 ticket）",
        ),
        (REFUSED, "errcode 40164", "错误码 40164"),
    ],
)
def test_a_reason_is_told_with_its_facts(failure: Failure, said: str, zh: str) -> None:
    assert english.FAILURES.reason(failure) == said
    assert chinese.FAILURES.reason(failure) == zh


def test_facts_that_another_version_did_not_store_do_not_keep_a_reason_from_being_told() -> None:
    bare = Failure(Kind.TRANSIENT, FailureCode.NOT_AN_ANSWER, facts={"flaw": "of-tomorrow"})
    for words in LANGUAGES:
        assert words.reason(bare)
        assert "?" in words.reason(replace(bare, code=FailureCode.HTTP_STATUS))


def test_a_spent_quota_that_our_ledger_does_not_know_of_is_somebody_elses() -> None:
    spent = Failure(Kind.QUOTA, FailureCode.ERRCODE, 45009)
    assert "at least 1990 calls" in english.FAILURES.advice_beside(spent, Usage(2000, 5, 10))
    assert "1990 次" in chinese.FAILURES.advice_beside(spent, Usage(2000, 5, 10))
    assert "at least" not in english.FAILURES.advice_beside(spent, Usage(10, 5, 10))
    assert "at least" not in english.FAILURES.advice_beside(REFUSED, Usage(2000, 5, 10))


@pytest.mark.parametrize("reason", UnavailableReason)
def test_why_there_is_nothing_is_told_of_tokens_and_of_tickets(reason: UnavailableReason) -> None:
    answer = Unavailable(
        Code.UPSTREAM_UNAVAILABLE, reason, 1, BROKE, Limit.DAILY_QUOTA, "disk I/O error"
    )
    token, ticket = english.unavailable(answer), english.unavailable(answer, english.TICKET)
    assert "{" not in token
    assert "ticket" not in token
    assert token == ticket or "token" not in ticket
    assert token[0].isupper() or reason is UnavailableReason.LIMIT


def test_a_tickets_failure_speaks_of_the_token_where_the_token_is_meant() -> None:
    refused = Failure(Kind.TRANSIENT, FailureCode.TICKET_TOKEN_REFUSED)
    answer = Unavailable(
        Code.UPSTREAM_UNAVAILABLE, UnavailableReason.CALL_FAILED, 1, failure=refused
    )
    assert english.unavailable(answer, english.TICKET).startswith(
        "WeChat gave no ticket: WeChat refused the token that the ticket was asked for with. "
    )


def test_the_log_gets_a_failure_in_sentences() -> None:
    told = english.event_facts({"lane": "scheduled", "failure": REFUSED, "retry_in": 300})
    assert told.pop("advice").startswith("Add this host's public IP")  # type: ignore[attr-defined]
    assert told == {
        "lane": "scheduled",
        "retry_in": 300,
        "reason": "errcode 40164",
        "ip": "203.0.113.7",
        "rid": None,
    }


# --- what is stored -------------------------------------------------------------------------------


def test_a_stored_failure_is_read_as_it_was_written() -> None:
    failure = Failure(
        Kind.TRANSIENT,
        FailureCode.HTTP_STATUS,
        retry_after=5.0,
        lost=True,
        wall=1.5,
        facts={"status": "502"},
    )
    assert _failure_of(json.dumps(asdict(failure))) == failure
    assert _failure_of(None) is None


@pytest.mark.parametrize(
    ("reason", "errcode", "code"),
    [
        ("errcode 40164", 40164, FailureCode.ERRCODE),
        ("cannot connect", None, FailureCode.UNKNOWN),
        ("no answer within 10 s", None, FailureCode.UNKNOWN),
    ],
)
def test_a_failure_that_version_0_1_stored_is_read(
    reason: str, errcode: int | None, code: FailureCode
) -> None:
    kind = Kind.TRANSIENT if errcode is None else rule_for(errcode).kind
    stored = {
        "kind": kind.value,
        "reason": reason,
        "errcode": errcode,
        "ip": "203.0.113.7",
        "rid": None,
        "retry_after": None,
        "lost": True,
        "wall": 7.0,
        "wecom": False,
    }
    read = _failure_of(json.dumps(stored))
    assert read == Failure(kind, code, errcode, ip="203.0.113.7", lost=True, wall=7.0)
    for words in LANGUAGES:
        assert words.reason(read)
        assert words.advice(read)


def test_a_failure_of_a_version_to_come_is_read() -> None:
    stored = {**asdict(BROKE), "code": "gone-fishing", "kind": "tidal", "moon": "full"}
    assert _failure_of(json.dumps(stored)) == replace(BROKE, code=FailureCode.UNKNOWN)
