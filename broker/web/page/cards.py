"""One app on the status page, in words. Its numbers are those of /v1/status."""

from collections.abc import Mapping
from typing import Any, Final

from broker.core.credential import Account, Doubt, Endpoint, HeldToken
from broker.http.language import span
from broker.logins.logins import GOOD
from broker.tokens.keeper import Keeper
from broker.web.api.status import StatusReport
from broker.web.page import reached
from broker.web.page.messages import FAILURES, PAGE
from broker.web.page.moments import moment, sentence
from broker.web.params import iso

TONES: Final = {"fresh": "good", "stale": "good", "suspect": "warn", "unavailable": "bad"}
WORST_FIRST: Final = ("bad", "warn", "good")
ALMOST_SPENT: Final = 0.8


# What a card is made of: an app that keeps a token, or the account of one that only logs in.
CardSubject = Keeper | Account


def account_of(shown: CardSubject) -> Account:
    """Return whose card it is."""
    return shown if isinstance(shown, Account) else shown.account


def tone(report: StatusReport, shown: CardSubject) -> str:
    """Return how an app stands in one word: `good`, `warn` (somebody should look) or `bad`."""
    news = report.login_record(account_of(shown).name).news
    if isinstance(shown, Account):
        return "warn" if news else "good"
    found = _tone(shown)
    return "warn" if found == "good" and news else found


def _tone(keeper: Keeper) -> str:
    served, held = keeper.serve(), keeper.credential
    found = TONES[served.state.value if served else "unavailable"]
    is_troubled = (
        held.failure is not None
        or held.second_issuer.suspected
        or keeper.store_error is not None
        or not keeper.usage().remaining
    )
    return "warn" if found == "good" and is_troubled else found


def card(report: StatusReport, shown: CardSubject, lang: str) -> dict[str, Any]:
    """Return what the template shows of an app: its status, and sentences about it."""
    status = report.login_only(shown) if isinstance(shown, Account) else report.app(shown)
    more: dict[str, Any] = {"spent_text": "", "stable_text": "", "sinks": []}
    if not isinstance(shown, Account):
        more = _with_token(report, shown, status, lang)
    return {
        **status,
        **more,
        **_logins(report, status, lang),
        "tone": tone(report, shown),
        "state_text": PAGE[lang][status["state"]],
        "endpoint_text": PAGE[lang][f"endpoint_{status['endpoint']}"],
    }


def _logins(report: StatusReport, status: Mapping[str, Any], lang: str) -> dict[str, str]:
    """Return how logins go, in sentences that are empty where there is nothing to say."""
    words, failures = PAGE[lang], FAILURES[lang]
    record = report.login_record(status["app"])
    total, failure, news = record.counts.total(), record.failure, record.news
    texts = {
        "logins_text": "",
        "logins_failed_text": "",
        "news_reason": failures.reason(news) if news else "",
        "news_advice": failures.advice(news) if news else "",
        "news_at": moment(iso(news.wall)) if news else "",
    }
    if total:
        good = record.by_outcome().get(GOOD, 0)
        texts["logins_text"] = words["logins_of"].format(good=good, total=total)
    if failure:
        texts["logins_failed_text"] = sentence(
            words["logins_failed"], reason=failures.reason(failure), at=moment(iso(failure.wall))
        )
    return texts


def _with_token(
    report: StatusReport, keeper: Keeper, status: Mapping[str, Any], lang: str
) -> dict[str, Any]:
    words, failures = PAGE[lang], FAILURES[lang]
    failure, spent = keeper.credential.failure, keeper.usage()
    error, second_issuer, quota = status["last_error"], status["second_issuer"], status["quota"]
    second_issuer_text = words[
        "second_issuer_text" if second_issuer["suspected"] else "second_issuer_sign"
    ]
    tickets = report.tickets_of(keeper.account.name)
    return {
        **status,
        **_token(report, keeper, lang),
        "due_text": _due(status["next_refresh_in"], words, lang),
        "again_text": _again(status["next_refresh_in"], report.clock.wall(), words, lang),
        "quota_text": words["quota_of"].format(used=quota["used_today"], limit=quota["limit"]),
        "quota_more": words["quota_more"].format(
            rolling=quota["used_24h"], remaining=quota["remaining"]
        ),
        "quota_high": quota["limit"] * ALMOST_SPENT,
        "stable_text": _stable_text(keeper, words),
        "spent_text": "" if spent.remaining else words["spent_text"].format(limit=quota["limit"]),
        "error_reason": failures.reason(failure) if failure else "",
        "error_advice": failures.advice_beside(failure, spent) if failure else "",
        "error_at": moment(error["at"]) if error else "",
        "second_issuer_text": sentence(
            second_issuer_text,
            count=second_issuer["count"],
            since=moment(second_issuer["since"] or ""),
        ),
        "sinks": reached.sinks(report.reach.sinks_of(keeper.account.name), lang),
        "ticket_texts": [_ticket(kind, ticket, lang) for kind, ticket in tickets.items()],
        "store_text": words["store_error_text"].format(error=status["store_error"]),
    }


def _stable_text(keeper: Keeper, words: Mapping[str, str]) -> str:
    """Say why the stable endpoint would be the better choice; empty where it would not be."""
    held, spent = keeper.credential, keeper.usage()
    if keeper.account.endpoint is not Endpoint.TOKEN:
        return ""
    if held.second_issuer.count:
        return words["stable_second-issuer"]
    if held.suspicion is not None and held.suspicion.doubt is Doubt.LOST_ANSWER:
        return words["stable_lost-answer"]
    return words["stable_quota"] if spent.last_24h >= spent.limit * ALMOST_SPENT else ""


def _ticket(kind: str, keeper: Keeper, lang: str) -> dict[str, str]:
    words, failure, served = PAGE[lang], keeper.credential.failure, keeper.serve()
    left = served.expires_in if served else 0
    return {
        "type": kind,
        "state": words["fresh_ticket" if left else "no_ticket"].format(age=span(left, lang)),
        "reason": FAILURES[lang].reason(failure) if failure else "",
    }


def _token(report: StatusReport, keeper: Keeper, lang: str) -> dict[str, Any]:
    """Return how old the token is, and how much is left of it."""
    words, credential, served = PAGE[lang], keeper.credential, keeper.serve()
    token, left = credential.token, served.expires_in if served else 0
    ends = served.token_expires_in if served else 0
    is_of_unknown_age = credential.suspicion and credential.suspicion.doubt is Doubt.CLOCK
    return {
        "lifetime": max(round(token.lifetime) if token else 0, ends, left, 1),
        "left_text": span(left, lang) if left else words["no_time_left"],
        "ends_text": words["ends_in"].format(age=span(ends, lang)) if ends else words["none"],
        "age_text": words["unknown"] if is_of_unknown_age else _age(report, token, lang),
    }


def _age(report: StatusReport, token: HeldToken | None, lang: str) -> str:
    # Not computed from what is left: of a token in doubt less is left than its age would leave.
    return span(report.clock.now() - token.requested_at, lang) if token else PAGE[lang]["none"]


def _due(seconds: int, words: Mapping[str, str], lang: str) -> str:
    return words["in"].format(age=span(seconds, lang)) if seconds else words["now"]


def _again(seconds: int, wall: float, words: Mapping[str, str], lang: str) -> str:
    if not seconds:
        return words["again_now"]
    return sentence(words["again"], age=span(seconds, lang), at=moment(iso(wall + seconds)))
