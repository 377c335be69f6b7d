"""One app on the status page, in words. Its numbers are those of /v1/status."""

from collections.abc import Mapping
from typing import Any, Final

from broker.core.credential import Account, Doubt, HeldToken
from broker.http.language import span
from broker.logins.logins import GOOD
from broker.tokens.keeper import Keeper
from broker.web.api.status import app_status, without_token, without_token_status
from broker.web.context import Edge
from broker.web.page.advice import advice, reason
from broker.web.page.messages import PAGE
from broker.web.params import iso

TONES: Final = {"fresh": "good", "stale": "good", "suspect": "warn", "unavailable": "bad"}
WORST_FIRST: Final = ("bad", "warn", "good")
ALMOST_SPENT: Final = 0.8


def cards(edge: Edge, lang: str) -> list[dict[str, Any]]:
    """Every app, the troubled ones first."""
    shown = [
        *(card(edge, keeper, lang) for keeper in edge.registry),
        *(_login_only_card(edge, account, lang) for account in without_token(edge)),
    ]
    return sorted(shown, key=lambda one: WORST_FIRST.index(one["tone"]))


def card(edge: Edge, keeper: Keeper, lang: str) -> dict[str, Any]:
    """What is said of an app."""
    said, words = app_status(edge, keeper), PAGE[lang]
    error, rivals, quota, tone = (
        said["last_error"],
        said["second_issuer"],
        said["quota"],
        TONES[said["state"]],
    )
    is_spent = quota["remaining"] == 0
    is_troubled = (
        error or said["logins"]["news"] or rivals["suspected"] or said["store_error"] or is_spent
    )
    return {
        **said,
        **_token(edge, keeper, said, lang),
        **_logins(said, lang),
        "tone": "warn" if tone == "good" and is_troubled else tone,
        "state_said": words[said["state"]],
        "endpoint_said": words[f"endpoint_{said['endpoint']}"],
        "due_said": _due(said["next_refresh_in"], words, lang),
        "again_said": _again(said["next_refresh_in"], edge.wall(), words, lang),
        "quota_said": words["quota_of"].format(used=quota["used_today"], limit=quota["limit"]),
        "quota_more": (
            words["quota_more"].format(rolling=quota["used_24h"], remaining=quota["remaining"])
        ),
        "quota_high": quota["limit"] * ALMOST_SPENT,
        "spent_said": words["spent_said"].format(limit=quota["limit"]) if is_spent else "",
        "error_reason": reason(error["reason"], lang) if error else "",
        "error_advice": advice(error, lang, quota["remaining"], said["endpoint"]) if error else "",
        "error_at": stamp(error["at"]) if error else "",
        "rivals_said": (
            words["second_issuer_said" if rivals["suspected"] else "second_issuer_sign"].format(
                count=rivals["count"], since=stamp(rivals["since"] or "")
            )
        ),
        "tickets_said": [_ticket(kind, ticket, lang) for kind, ticket in said["tickets"].items()],
        "store_said": words["store_error_said"].format(error=said["store_error"]),
    }


def _login_only_card(edge: Edge, account: Account, lang: str) -> dict[str, Any]:
    """What is said of an app that keeps no token."""
    said, words = without_token_status(edge, account), PAGE[lang]
    return {
        **said,
        **_logins(said, lang),
        "tone": "warn" if said["logins"]["news"] else "good",
        "spent_said": "",
        "state_said": words[said["state"]],
        "endpoint_said": words[f"endpoint_{said['endpoint']}"],
    }


def _logins(said: Mapping[str, Any], lang: str) -> dict[str, str]:
    """How logins go; nothing where there were none."""
    words, logins = PAGE[lang], said["logins"]
    news, failure, total = logins["news"], logins["last_failure"], sum(logins["outcomes"].values())
    good = logins["outcomes"].get(GOOD, 0)
    return {
        "logins_said": words["logins_of"].format(good=good, total=total) if total else "",
        "logins_failed": (
            words["logins_failed"].format(
                reason=reason(failure["reason"], lang), at=stamp(failure["at"])
            )
            if failure
            else ""
        ),
        "news_reason": reason(news["reason"], lang) if news else "",
        "news_advice": advice(news, lang, 0, said["endpoint"]) if news else "",
        "news_at": stamp(news["at"]) if news else "",
    }


def _ticket(kind: str, said: Mapping[str, Any], lang: str) -> dict[str, str]:
    words, error, left = PAGE[lang], said["last_error"], said["expires_in"]
    state = words["fresh_ticket" if left else "no_ticket"].format(age=span(left, lang))
    return {"type": kind, "said": state, "why": reason(error["reason"], lang) if error else ""}


def stamp(moment: str) -> str:
    """An ISO time as people read it."""
    return moment[:16].replace("T", " ") + " UTC"


def _token(edge: Edge, keeper: Keeper, said: Mapping[str, Any], lang: str) -> dict[str, Any]:
    """How old the token is, and how much is left of it."""
    words, left, credential = PAGE[lang], said["expires_in"], keeper.credential
    token, doubt = credential.token, credential.suspicion and credential.suspicion.doubt
    return {
        "lifetime": max(round(token.lifetime) if token else 0, left, 1),
        "left_said": span(left, lang) if left else words["no_time_left"],
        "age_said": (
            words["unknown"]
            if doubt is Doubt.CLOCK
            else _age(token, edge.response_cache.now(), lang)
        ),
    }


def _age(token: HeldToken | None, now: float, lang: str) -> str:
    # From its own clock and not from what is left: of a token in doubt less is left than its age
    # would leave.
    return span(now - token.requested_at, lang) if token else PAGE[lang]["none"]


def _due(seconds: int, words: Mapping[str, str], lang: str) -> str:
    return words["in"].format(age=span(seconds, lang)) if seconds else words["now"]


def _again(seconds: int, wall: float, words: Mapping[str, str], lang: str) -> str:
    at = stamp(iso(wall + seconds))
    return words["again"].format(age=span(seconds, lang), at=at) if seconds else words["again_now"]
