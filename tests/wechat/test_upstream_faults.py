"""E.

What WeChat may answer, through the daemon's own front door: nothing of it is taken for a token, the
old one goes on.

One daemon keeps two apps for each case: one that has a token when the trouble begins, and one that
has none.
"""

import base64
import json
import socket
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from broker.core.errcodes import RULES
from tests.harness import invariants
from tests.harness.crashpoints import Child, ForkedDaemon, ForkServer
from tests.harness.doubles import CANARY
from tests.harness.processes import until

POLICY = "min_gap = 1\nmax_backoff = 300\nmin_serve = 1\n"
AN_HOUR = 3600


@dataclass(frozen=True)
class Case:
    """A fault, and what WECHAT.md W29 asks for.

    It has the class, what the answer says, the pause, and what the ledger keeps.
    """

    name: str
    fault: dict[str, Any]
    kind: str = "transient"
    code: str = "upstream-unavailable"
    pause: float = 1
    outcome: str = "transient"

    @property
    def due_in(self) -> float:
        """The pause, which for a spent quota is what is left of the day."""
        return until_midnight() if self.kind == "quota" else self.pause

    @property
    def lost(self) -> bool:
        return self.outcome == "lost"


def errcode(number: int, kind: str, code: str, pause: float) -> Case:
    return Case(
        f"e{abs(number)}",
        {"kind": "errcode", "errcode": number},
        kind,
        code,
        pause,
        f"errcode {number}",
    )


def until_midnight() -> float:
    """Seconds until the next midnight in Beijing."""
    return 86400 - (time.time() + 8 * AN_HOUR) % 86400


REFUSED = "upstream-refused"
CORRECTABLE = [40001, 40013, 40125, 41002, 41004]
CONFIGURATION = [
    40002,
    40243,
    43002,
    48001,
    48004,
    50002,
    50004,
    50007,
    61024,
]
ERRCODES = [
    errcode(-1, "transient", "upstream-unavailable", 1),
    errcode(45011, "slow-down", "upstream-unavailable", 60),
    errcode(45009, "quota", "quota-exhausted", 0),
    *(errcode(number, "configuration", REFUSED, 60) for number in CORRECTABLE),
    *(errcode(number, "configuration", REFUSED, 600) for number in CONFIGURATION),
    *(errcode(number, "admission", REFUSED, 300) for number in (40164, 61004)),
    *(errcode(number, "confirmation", REFUSED, 300) for number in (89501, 89503)),
    errcode(89507, "blocked", REFUSED, AN_HOUR),
    errcode(89506, "blocked", REFUSED, 24 * AN_HOUR),
    errcode(99999, "transient", "upstream-unavailable", 1),  # one that nobody listed
]


def garbage(name: str, body: bytes) -> Case:
    return Case(
        name, {"kind": "garbage", "base64": base64.b64encode(body).decode()}, outcome="lost"
    )


def token_of(**fields: object) -> bytes:
    return json.dumps({"access_token": f"{CANARY}-t", "expires_in": 7200, **fields}).encode()


GARBAGE = [
    garbage("html", b"<html>busy</html>"),
    garbage(
        "portal",
        b"<!DOCTYPE html><title>Log in to the"
        b" network</title><script>location='http://10.0.0.1/'</script>",
    ),
    garbage("empty", b""),
    garbage("null", b"null"),
    garbage("list", b"[]"),
    garbage("truncated", token_of()[:-9]),
    garbage("twice", b'{"access_token":"c4n4ry-a","access_token":"c4n4ry-b","expires_in":7200}'),
    garbage("nan", b'{"access_token":"c4n4ry-a","expires_in":NaN}'),
    garbage("deep", b"[" * 10_000 + b"]" * 10_000),
    garbage("latin", b'{"access_token":"c4n4ry-\xff","expires_in":7200}'),
    garbage("bom", b"\xef\xbb\xbf" + token_of()),
    garbage("no-expiry", b'{"access_token":"c4n4ry-a"}'),
    *(
        garbage(f"expires-{number}", token_of(expires_in=value))
        for number, value in enumerate[object]([0, -1, 7200.5, "abc", True, None, "", []])
    ),
    *(
        garbage(f"token-{number}", token_of(access_token=value))
        for number, value in enumerate[object](
            ["", " ", "a b", "a\r\nb", "x" * 60_000, 5, None, "\u4e2d"]
        )
    ),
    garbage("1mb", token_of(access_token="x" * 500_000)),
]
WIRE = [
    Case("endless", {"kind": "endless_body"}, outcome="lost"),
    Case("bomb", {"kind": "gzip_bomb"}, outcome="lost"),
    Case("drip", {"kind": "drip", "interval": 1}, outcome="lost"),
    Case("headers", {"kind": "endless_headers"}, outcome="lost"),
    Case("silence", {"kind": "silence"}, outcome="lost"),
    Case("drop", {"kind": "drop", "mint": True}, outcome="lost"),
    Case("reset", {"kind": "reset", "mint": True}, outcome="lost"),
]


def status(name: str, number: int, pause: float = 1, retry_after: str = "") -> Case:
    headers = {"Retry-After": retry_after} if retry_after else {}
    return Case(name, {"kind": "status", "status": number, "headers": headers}, pause=pause)


IN_200_S = "in 200 s"  # as a date, when it is ordered
STATUSES = [
    status("s500", 500),
    status("s502", 502),
    status("s404", 404),
    status("s429", 429, 120, retry_after="120"),
    status("s503", 503, 200, retry_after=IN_200_S),
    status("absurd", 503, AN_HOUR, retry_after="999999999999"),
    status("never", 503, AN_HOUR, retry_after="Fri, 31 Dec 9999 23:59:59 GMT"),
    status("nonsense", 503, retry_after="-5 soon"),
]
REDIRECTS = [status(f"to{number}", number) for number in (301, 302, 303, 307, 308)]  # to the trap
ACCEPTED = {  # what the answer says, and the seconds it means
    "text": ({"expires_in": "7200"}, 7200),
    "integral": ({"expires_in": 300.0}, 300),
    "year": ({"expires_in": 31_536_000}, 86400),
    "absurdly-long": ({"expires_in": 1e12}, 86400),
    "errcode-0": ({"errcode": 0, "errmsg": "ok"}, 7200),
    "more-keys": ({"scope": "x", "refresh_token": ["y"]}, 7200),
}
CASES = {case.name: case for case in [*ERRCODES, *GARBAGE, *WIRE, *STATUSES, *REDIRECTS]}


@dataclass
class Seen:
    """What the front door said of one case."""

    before: dict[str, Any]
    ordered: tuple[int, Any]
    after: dict[str, Any]
    cold: tuple[int, Any]
    states: dict[str, Any]


@dataclass
class Trial:
    """A daemon with all cases, and what was seen."""

    house: ForkedDaemon
    trap: socket.socket
    daemon: Child = field(init=False)
    seen: dict[str, Seen] = field(default_factory=dict)

    def configure(self) -> None:
        secret = self.house.home / "main.secret"
        self.house.configure(
            policy=POLICY,
            more="\n".join(
                f'[apps.{name}]\nappid = "wx{name}"\nsecret_file = "{secret}"'
                for case in CASES
                for name in (f"old-{case}", f"new-{case}")
            )
            + "".join(
                f'\n[apps.{name}]\nappid = "wx{name}"\nsecret_file = "{secret}"'
                for name in ACCEPTED
            ),
        )

    def answer(self, name: str) -> dict[str, Any]:
        asked_at = time.time()
        code, token = self.house.get(f"/v1/tokens/{name}")
        assert code == 200, (name, token)
        return {**token, "asked_at": asked_at, "received_at": time.time()}

    def state(self) -> dict[str, Any]:
        return {app["app"]: app for app in self.house.get("/v1/status")[1]["apps"]}

    def order(self, case: Case, name: str) -> None:
        """From now on, that app's calls end so."""
        fault = {**case.fault, "appid": f"wx{name}", "times": None}
        if case.fault.get("headers", {}).get("Retry-After") == IN_200_S:
            fault["headers"] = {
                "Retry-After": format_datetime(
                    datetime.now(UTC) + timedelta(seconds=200), usegmt=True
                )
            }
        if case in REDIRECTS:
            fault["headers"] = {
                "Location": f"http://127.0.0.1:{self.trap.getsockname()[1]}/cgi-bin/token"
            }
        self.house.control("/faults", fault)

    def suffer(self, case: Case) -> None:
        """Begin the fault, order a refresh, and ask for the token of both apps."""
        old, new = f"old-{case.name}", f"new-{case.name}"
        before = self.answer(old)
        self.order(case, old)
        ordered = self.house.post(f"/v1/tokens/{old}/refresh")
        # The status may be that of a moment ago.
        states = until(lambda: (it := self.state())[old]["last_error"] and it, f"{old} has failed")
        self.seen[case.name] = Seen(
            before, ordered, self.answer(old), self.house.get(f"/v1/tokens/{new}"), states
        )


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory, forks: ForkServer) -> Iterator[Trial]:
    house = ForkedDaemon(tmp_path_factory.mktemp("trial"), fork_server=forks)
    with house.simulating(), socket.create_server(("127.0.0.1", 0)) as trap:
        trial = Trial(house, trap)
        trial.configure()
        for case in CASES.values():
            trial.order(case, f"new-{case.name}")
        for answer in ACCEPTED:
            house.control(
                "/faults", {"kind": "answer", "answer": ACCEPTED[answer][0], "appid": f"wx{answer}"}
            )
        with house.living(environ={"TOKEN_BROKER_WECHAT__TIMEOUT": "0.5"}) as trial.daemon:
            until(
                lambda: all(app["version"] or app["last_error"] for app in trial.state().values()),
                "every app was tried",
            )
            wait_out = time.monotonic() + 1
            until(lambda: time.monotonic() > wait_out, "min_gap is over")
            with ThreadPoolExecutor(8) as askers:
                list(askers.map(trial.suffer, CASES.values()))
            yield trial


def rows_of(trial: Trial, name: str) -> list[dict[str, Any]]:
    return [row for row in trial.house.ledger() if row["appid"] == f"wx{name}"]


def calls_of(trial: Trial, name: str) -> list[dict[str, Any]]:
    return [call for call in trial.house.calls() if call["appid"] == f"wx{name}"]


@pytest.mark.parametrize("name", CASES)
def test_with_a_token_it_goes_on_and_the_trouble_is_told(trial: Trial, name: str) -> None:
    case, seen = CASES[name], trial.seen[name]
    number, problem = seen.ordered
    assert (number, problem["code"]) == (503, case.code)
    assert seen.after["version"] == seen.before["version"]
    assert seen.after["access_token"] == seen.before["access_token"]
    assert seen.after["state"] == ("suspect" if case.lost else "fresh")
    assert seen.after["expires_in"] <= (300 if case.lost else 7200)
    assert rows_of(trial, f"old-{name}")[1]["outcome"] == case.outcome


@pytest.mark.parametrize("name", CASES)
def test_without_a_token_the_503_says_why_and_when_and_nothing_is_stored(
    trial: Trial, name: str
) -> None:
    case = CASES[name]
    number, problem = trial.seen[name].cold
    assert (number, problem["code"]) == (503, case.code)
    assert str(case.fault.get("errcode", "WeChat gave no token")) in problem["detail"]
    assert 1 <= problem["retry_after"] <= max(300, case.due_in + 60)
    with closing(sqlite3.connect(trial.house.store)) as db:
        assert db.execute(
            "select token from accounts where appid = ?", [f"wxnew-{name}"]
        ).fetchone() == (None,)


@pytest.mark.parametrize("name", CASES)
def test_one_call_is_spent_for_each_attempt_and_the_next_comes_after_the_pause_of_its_class(
    trial: Trial, name: str
) -> None:
    case, state = CASES[name], trial.seen[name].states[f"new-{name}"]
    assert state["last_error"]["class"] == case.kind
    assert state["last_error"]["errcode"] == case.fault.get("errcode")
    rows = rows_of(trial, f"new-{name}")
    assert {row["outcome"] for row in rows} <= {case.outcome, None}
    assert 0 <= len(rows) - len(calls_of(trial, f"new-{name}")) <= 1  # reserved, not yet called
    if case.due_in > 1:
        assert len(rows) == 1
        assert (
            case.due_in - 60 <= state["next_refresh_in"] <= case.due_in + 60
        )  # as it was when it was asked
    for attempt, (sooner, later) in enumerate(pairwise(rows)):
        assert later["boot_at"] - sooner["boot_at"] >= 2**attempt


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_expiry_that_can_be_read_is_taken_and_never_for_more_than_a_day(
    trial: Trial, name: str
) -> None:
    seconds = ACCEPTED[name][1]
    assert seconds - 30 <= trial.answer(name)["token_expires_in"] <= seconds


def test_endless_answers_and_bombs_leave_its_memory_small(trial: Trial) -> None:
    status = Path(f"/proc/{trial.daemon.pid}/status").read_text()
    assert int(status.split("VmHWM:")[1].split()[0]) < 100_000  # kB; the bomb alone holds 50 MB


def test_every_errcode_of_the_table_is_among_the_cases() -> None:
    assert {case.fault["errcode"] for case in ERRCODES} == {*RULES, 99999}


def test_no_redirect_was_followed(trial: Trial) -> None:
    assert set(trial.seen) == set(CASES)
    trial.trap.setblocking(False)  # noqa: FBT003 -- the standard library's
    with pytest.raises(BlockingIOError):
        trial.trap.accept()


def test_the_ip_of_admission_is_in_status_and_detail(trial: Trial) -> None:
    assert trial.seen["e40164"].states["old-e40164"]["last_error"]["ip"] == "203.0.113.7"
    assert "203.0.113.7" in trial.seen["e40164"].cold[1]["detail"]


def test_a_quota_that_wechat_calls_spent_is_believed_and_our_own_count_shown_beside_it(
    trial: Trial,
) -> None:
    state = trial.state()["old-e45009"]
    assert state["last_error"]["errcode"] == 45009
    assert state["quota"]["used_24h"] == 2
    assert state["quota"]["remaining"] == 1998
    assert "1998 calls that this broker did not make" in state["last_error"]["advice"]
    assert (
        state["next_refresh_in"] >= until_midnight() - 2
    )  # or later, where the token it has is not due by then
    without_a_token = trial.state()["new-e45009"]["next_refresh_in"]
    assert (without_a_token - until_midnight() + 43200) % 86400 - 43200 == pytest.approx(0, abs=2)


def test_all_of_it_leaves_the_invariants_whole(trial: Trial) -> None:
    for seen in trial.seen.values():
        invariants.i4_and_i5_answers_are_whole_ordered_and_alive(
            [seen.before, seen.after], minted(trial), 7200
        )
    invariants.check(trial.house)
    assert trial.house.said("crashed") == []


def minted(trial: Trial) -> dict[str, float]:
    return {
        call["token_sha256"]: call["at"]
        for call in trial.house.control("/calls")
        if call["token_sha256"]
    }


def test_pauses_survive_a_crash(trial: Trial) -> None:
    long = [(case, f"new-{name}") for name, case in CASES.items() if case.due_in > 61]
    trial.daemon.kill()
    with trial.house.living():
        states = trial.state()
        for case, name in long:
            assert case.due_in - 60 <= states[name]["next_refresh_in"] <= case.due_in + 5
        assert {len(calls_of(trial, name)) for _, name in long} == {1}
