"""One app on the status page, in words. Its numbers are those of /v1/status."""

from collections.abc import Mapping
from typing import Any, Final

from broker.core.credential import Doubt, HeldToken
from broker.http.language import span
from broker.tokens.keeper import Keeper
from broker.web.api.status import StatusReport
from broker.web.page import reached
from broker.web.page.messages import FAILURES, PAGE
from broker.web.page.moments import moment, sentence
from broker.web.params import iso

TONES: Final = {"fresh": "good", "stale": "good", "suspect": "warn", "unavailable": "bad"}
WORST_FIRST: Final = ("bad", "warn", "good")
ALMOST_SPENT: Final = 0.8


def tone(keeper: Keeper) -> str:
    """Return how an app stands in one word: `good`, `warn` (somebody should look) or `bad`."""
    served, held = keeper.serve(), keeper.credential
    found = TONES[served.state.value if served else "unavailable"]
    is_troubled = (
        held.failure is not None
        or held.second_issuer.suspected
        or keeper.store_error is not None
        or not keeper.usage().remaining
    )
    return "warn" if found == "good" and is_troubled else found


def card(report: StatusReport, keeper: Keeper, lang: str) -> dict[str, Any]:
    """Return what the template shows of an app: its status, and sentences about it."""
    status, words, failures = report.app(keeper), PAGE[lang], FAILURES[lang]
    failure, spent = keeper.credential.failure, keeper.usage()
    error, second_issuer, quota = status["last_error"], status["second_issuer"], status["quota"]
    second_issuer_text = words[
        "second_issuer_text" if second_issuer["suspected"] else "second_issuer_sign"
    ]
    tickets = report.tickets_of(keeper.account.name)
    return {
        **status,
        **_token(report, keeper, lang),
        "tone": tone(keeper),
        "state_text": words[status["state"]],
        "endpoint_text": words[f"endpoint_{status['endpoint']}"],
        "due_text": _due(status["next_refresh_in"], words, lang),
        "again_text": _again(status["next_refresh_in"], report.clock.wall(), words, lang),
        "quota_text": words["quota_of"].format(used=quota["used_today"], limit=quota["limit"]),
        "quota_more": words["quota_more"].format(
            rolling=quota["used_24h"], remaining=quota["remaining"]
        ),
        "quota_high": quota["limit"] * ALMOST_SPENT,
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
    is_of_unknown_age = credential.suspicion and credential.suspicion.doubt is Doubt.CLOCK
    return {
        "lifetime": max(round(token.lifetime) if token else 0, left, 1),
        "left_text": span(left, lang) if left else words["no_time_left"],
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
