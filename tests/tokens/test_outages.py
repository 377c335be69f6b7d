"""WeChat is down, an answer is lost, somebody else has our secret.

Each is told step by step, through the daemon's own API.
"""

import time
from pathlib import Path
from typing import Any

import pytest

from tests.harness import invariants
from tests.harness.crashpoints import ForkedDaemon, ForkServer
from tests.harness.doubles import APPID
from tests.harness.processes import ask, until

QUICK = "min_gap = 0.3\nmax_backoff = 0.6\nverify_gap = 0.1\nmin_serve = 1\n"


@pytest.fixture
def house(tmp_path: Path, forks: ForkServer) -> ForkedDaemon:
    return ForkedDaemon(tmp_path, fork_server=forks)


def another(house: ForkedDaemon, than: dict[str, Any]) -> dict[str, Any]:
    token: dict[str, Any] = until(
        lambda: (it := house.served())["version"] != than["version"] and it, "another token"
    )
    return token


def refreshed(house: ForkedDaemon) -> None:
    until(lambda: house.post("/v1/tokens/main/refresh")[0] == 200, "a refresh that min_gap allows")


def app(house: ForkedDaemon) -> dict[str, Any]:
    (state,) = house.get("/v1/status")[1]["apps"]
    assert isinstance(state, dict)
    return state


def test_an_outage_is_served_through_until_the_token_really_expires_then_503_then_one_call(
    house: ForkedDaemon,
) -> None:
    lifetime, answers = 3, list[dict[str, Any]]()
    with house.simulating("--expires-in", str(lifetime)):
        house.configure(policy=QUICK)
        with house.living():
            answers.append(house.served())
            house.control("/faults", {"kind": "status", "status": 503, "times": None})
            expires_at = answers[0]["received_at"] + lifetime
            until(lambda: told_or_refused(house, answers), "the token has expired")
            assert expires_at - 1.5 < time.time() < expires_at  # with min_serve left
            assert {answer["version"] for answer in answers} == {answers[0]["version"]}
            status, problem = house.get("/v1/tokens/main")
            assert (status, problem["code"]) == (503, "upstream-unavailable")
            known, asked_at = len(house.calls()), time.monotonic()
            until(lambda: len(house.calls()) > known, "the next attempt")
            assert time.monotonic() - asked_at < problem["retry_after"] + 1  # Retry-After was true
            ask("DELETE", f"{house.sandbox}/sandbox/faults")
            attempts = len(house.calls())
            answers.append(
                until(
                    lambda: house.get("/v1/tokens/main")[0] == 200 and house.served(),
                    "a token again",
                )
            )
        assert len(house.calls()) - attempts <= 1
        assert house.outcomes().count("minted") == 2
        invariants.check(house, answers)


def told_or_refused(house: ForkedDaemon, answers: list[dict[str, Any]]) -> bool:
    """Ask once more; whether there is no token any more."""
    asked_at = time.time()
    status, token = house.get("/v1/tokens/main")
    if status == 200:
        answers.append({**token, "asked_at": asked_at, "received_at": time.time()})
    return status == 503


@pytest.mark.parametrize("kind", ["drop", "reset", "silence", "garbage"])
def test_after_a_lost_answer_the_old_token_lives_on_and_a_new_one_comes_within_the_overlap(
    house: ForkedDaemon, kind: str
) -> None:
    overlap = 5
    with house.simulating("--overlap", str(overlap)):
        house.configure(policy=f"{QUICK}overlap = {overlap}")
        with house.living(environ={"TOKEN_BROKER_WECHAT__TIMEOUT": "0.4"}):
            first = house.served()
            until(lambda: app(house)["quota"]["used_24h"] == 1, "the first call is settled")
            house.control("/faults", {"kind": kind, "mint": True})
            until(
                lambda: house.post("/v1/tokens/main/refresh")[1]["code"] == "upstream-unavailable",
                "an answer is lost",
            )
            lost_at = time.monotonic()
            again = house.served()
            assert (again["version"], again["state"]) == (first["version"], "suspect")
            assert again["expires_in"] <= overlap
            last = another(house, first)
            # Not before what clients were promised is over: the call might end it at once.
            assert again["expires_in"] - 1 < time.monotonic() - lost_at < overlap
            assert accepted(house, last)
        assert house.outcomes() == ["minted", "lost", "minted"]
        assert len(house.calls()) == 3
        invariants.check(house, [first, again, last])


def accepted(house: ForkedDaemon, token: dict[str, Any]) -> bool:
    """Whether WeChat takes it."""
    return (
        "ip_list"
        in ask(
            "GET", f"{house.sandbox}/cgi-bin/get_api_domain_ip?access_token={token['access_token']}"
        )[1]
    )


def test_somebody_else_who_calls_with_our_secret_is_suspected_at_the_third_time_and_seen_everywhere(
    house: ForkedDaemon,
) -> None:
    with house.simulating("--overlap", "0"):
        house.configure(policy=QUICK)
        answers = []
        with house.living():
            for theft in (1, 2, 3):
                answers.append(house.served())
                house.control("/issue", {"appid": APPID})
                replaced = until(
                    lambda: report(house, answers[-1]), "a report that is not throttled"
                )
                # By the report itself, or, where min_gap was in its way, by the next tick.
                assert replaced["outcome"] in {"refreshed", "superseded"}
                assert replaced["version"] != answers[-1]["version"]
                rivals = app(house)["second_issuer"]
                assert (rivals["count"], rivals["suspected"]) == (theft, theft == 3)
                assert len(house.said("checked")) == theft  # one verification for each
            answers.append(house.served())
            metrics, page, health = (
                str(house.get(path)[1]) for path in ("/metrics", "/", "/health")
            )
        assert 'token_broker_second_issuer_suspected{app="main"} 1.0' in metrics
        assert "somebody else" in health
        assert [line["suspected"] for line in house.said("second-issuer")] == [False, False, True]
        assert house.outcomes() == ["minted"] * 4
        assert [row["lane"] for row in house.ledger()] == [
            "scheduled",
            "report",
            "report",
            "report",
        ]
        assert page
        invariants.check(house, answers)


def report(house: ForkedDaemon, token: dict[str, Any]) -> dict[str, Any] | None:
    status, answer = house.post(
        "/v1/tokens/main/report", {"version": token["version"], "errcode": 40001}
    )
    assert isinstance(answer, dict)
    return answer if status == 200 else None


@pytest.mark.parametrize("endpoint", ["token", "stable_token"])
def test_the_same_token_again_keeps_its_version_and_its_expiry_is_the_newer_answers(
    house: ForkedDaemon, endpoint: str
) -> None:
    with house.simulating():
        house.configure(policy=QUICK, app=f'endpoint = "{endpoint}"')
        with house.living():
            first = house.served()
            house.control(
                "/advance", {"seconds": 1000}
            )  # it is that much nearer to its end than we believe
            house.control("/faults", {"kind": "same_token"})
            refreshed(house)
            again = house.served()
        assert (again["version"], again["access_token"]) == (
            first["version"],
            first["access_token"],
        )
        assert again["expires_in"] <= 6200
        assert house.outcomes() == ["minted", "minted"]
        invariants.i1_every_call_has_its_row(house.calls(), house.ledger())
        invariants.i6_nothing_leaks(house.home)
