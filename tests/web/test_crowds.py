"""F.

Crowds, at a real daemon: ten thousand at once cost one call, and nobody is left without an answer.

Figures are printed (`-s`), never judged; `python -m tests.bench --only crowds` measures them
properly.
"""

import asyncio
import contextlib
import itertools
import json
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest

from tests.harness import invariants
from tests.harness.crowd import Answer, crowd, everyone, open_files, request, resident_kb
from tests.harness.doubles import APPID
from tests.harness.places import ROOT
from tests.harness.processes import House, Process, run, until
from tests.harness.watching import watching

pytestmark = pytest.mark.soak

MANY = 10_000
WATCHERS = 5_000
MOST_KB = 6  # for each of them, where aiohttp takes 14
BAD = 1_000
CONNECTIONS = 500
REPORTS = 3
CHECK = "/cgi-bin/get_api_domain_ip"
GET = request("/v1/tokens/main")


@pytest.fixture(autouse=True)
def files() -> Iterator[int]:
    """As many open files as crowds need, here and for the daemon."""
    with open_files() as allowed:
        yield allowed


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    with house.sandboxed():
        configure(house, timeout_s=30, min_gap=0.1)
        yield house


def configure(house: House, *, timeout_s: float, min_gap: float) -> None:
    """Set how long a token call may take, and how far apart two are.

    A token is verified once in a test.
    """
    house.configure(policy=f"min_gap = {min_gap}\nverify_gap = 60\n")
    house.config.write_text(
        house.config.read_text().replace("timeout = 5", f"timeout = {timeout_s}")
    )


def ready(house: House) -> dict[str, Any]:
    """Until there is a token; it."""
    until(lambda: house.get("/readyz")[0] == 200, "ready")
    token: dict[str, Any] = house.get("/v1/tokens/main")[1]
    return token


def rotate(house: House) -> None:
    """Another token, as soon as `min_gap` allows."""
    until(lambda: house.post("/v1/tokens/main/refresh")[0] == 200, "refreshed")


def said(answers: list[Answer]) -> Counter[str]:
    """What was answered, by status and outcome or code."""
    bodies = ((answer.status, json.loads(answer.body or b"{}")) for answer in answers)
    return Counter(
        f"{status} {body.get('outcome') or body.get('code') or body.get('version')}"
        for status, body in bodies
    )


# --- 39: a cold start -----------------------------------------------------------------------------


async def _all_wait_then(base: str, count: int, then: Callable[[], object]) -> list[Answer]:
    async with crowd(base, count) as peers:
        answers = asyncio.ensure_future(everyone(peers, itertools.repeat(GET, MANY)))
        await asyncio.to_thread(then)
        return await answers


def test_ten_thousand_at_a_cold_start_cost_one_call_and_all_are_answered(
    house: House, files: int
) -> None:
    house.control("/hold", {"appid": APPID})
    with house.serving():
        until(house.calls, "the first call is under way")
        answers = asyncio.run(
            _all_wait_then(house.daemon, min(MANY, files - 1000), lambda: let_go(house))
        )
        assert len(answers) == MANY
        assert said(answers) == {f"200 {house.get('/v1/tokens/main')[1]['version']}": MANY}
        assert len(house.calls()) == len(house.ledger()) == 1
        invariants.check(house)


def let_go(house: House) -> None:
    """Once the daemon has been asked for a while, which another question shows it has."""
    assert house.get("/readyz")[0] == 503
    house.control("/release", {"appid": APPID})


def test_a_thousand_who_wait_hear_of_it_when_wechat_never_answers(house: House) -> None:
    house.control("/hold", {"appid": APPID})
    configure(house, timeout_s=2, min_gap=60)
    with house.serving():
        until(house.calls, "the first call is under way")
        answers = asyncio.run(_all_wait_then(house.daemon, MANY // 10, lambda: None))
        assert said(answers) == {"503 upstream-unavailable": MANY}
        assert all(b"retry-after: " in answer.head.lower() for answer in answers)
        assert len(house.calls()) == 1
        house.control("/release", {"appid": APPID})
        invariants.check(house)


# --- 40 and 41: reports ---------------------------------------------------------------------------


async def _ask(base: str, count: int, *requests: bytes) -> list[Answer]:
    async with crowd(base, CONNECTIONS) as peers:
        return await everyone(peers, itertools.islice(itertools.cycle(requests), count))


def report(**named: str) -> bytes:
    return request("/v1/tokens/main/report", "POST", json.dumps(named).encode())


@contextmanager
def checks_counted(house: House) -> Iterator[Callable[[], int]]:
    """How many times the sandbox was asked if a token lives.

    It is told to answer late a number of times, and says how many of these are left.
    """
    house.control("/faults", {"kind": "slow", "path": CHECK, "seconds": 0.2, "times": MANY})
    yield lambda: MANY - int(house.control("")["faults"][0]["left"])


def test_ten_thousand_reports_of_an_old_token_cost_nothing(house: House) -> None:
    with house.serving(), checks_counted(house) as checks:
        old = ready(house)
        rotate(house)
        named = (
            report(version=old["version"]),
            report(access_token=old["access_token"]),
            report(version="k3f9-42"),
        )
        assert said(asyncio.run(_ask(house.daemon, MANY, *named))) == {"200 superseded": MANY}
        assert (len(house.calls()), checks()) == (2, 0)
        invariants.check(house)


def test_ten_thousand_reports_of_a_token_that_lives_ask_wechat_once(house: House) -> None:
    with house.serving(), checks_counted(house) as checks:
        held = ready(house)
        named = report(version=held["version"]), report(access_token=held["access_token"])
        answers = said(asyncio.run(_ask(house.daemon, MANY, *named)))
        assert answers["200 verified"] >= 1
        assert answers.total() == answers["200 verified"] + answers["429 report-throttled"] == MANY
        assert (len(house.calls()), checks()) == (1, 1)
        invariants.check(house)


def test_ten_thousand_reports_of_a_token_that_is_dead_cost_one_call(house: House) -> None:
    with house.serving(), checks_counted(house) as checks:
        held = ready(house)
        house.control("/kill", {"appid": APPID})
        named = report(version=held["version"]), report(access_token=held["access_token"])
        answers = said(asyncio.run(_ask(house.daemon, MANY, *named)))
        assert answers["200 refreshed"] >= 1
        assert answers.total() == answers["200 refreshed"] + answers["200 superseded"] == MANY
        assert (len(house.calls()), checks()) == (2, 1)
        invariants.check(house)


def test_whoever_reports_every_new_version_at_once_spends_what_reports_may_and_no_more(
    tmp_path: Path,
) -> None:
    house, answers = House(tmp_path), Counter[str]()
    with house.sandboxed("--expires-in", "4", "--overlap", "1"):
        house.configure(
            policy=f"min_gap = 0.1\nverify_gap = 0.1\nmin_serve = 0\nreport_quota = {REPORTS}\n"
        )

        def scheduled_after_the_last_report() -> bool:
            """The reporter's turn; then whether the schedule has gone on without reports."""
            house.control("/kill", {"appid": APPID})
            status, answer = house.post(
                "/v1/tokens/main/report",
                {"version": house.get("/v1/status")[1]["apps"][0]["version"]},
            )
            answers[f"{status} {answer.get('outcome') or answer.get('code')}"] += 1
            lanes = [row["lane"] for row in house.ledger()]
            return lanes.count("report") == REPORTS and len(lanes) - 1 - _last(lanes, "report") >= 3

        with house.serving():
            ready(house)
            until(scheduled_after_the_last_report, "the schedule goes on")
            assert [row["lane"] for row in house.ledger()].count("report") == REPORTS
            assert answers["429 report-throttled"] + answers["503 quota-exhausted"] > 0
            until(
                lambda: house.get("/v1/tokens/main")[0] == 200,
                "nobody kills it any more, and the next is good",
            )
            invariants.check(house)
    print("\nreports of every version at once:", dict(answers))


def _last(lanes: list[str], lane: str) -> int:
    return len(lanes) - 1 - lanes[::-1].index(lane)


# --- 42: watchers ---------------------------------------------------------------------------------


def test_five_thousand_watchers_hear_of_a_rotation_once_each_and_leave_nothing_behind(
    house: House, files: int
) -> None:
    count, figures = min(WATCHERS, files - 1000), []
    with house.serving() as daemon:
        held = ready(house)["version"]
        before = resident_kb(daemon)
        for _ in range(2):
            with watching(house.daemon, count, f'"{held}"') as crowd:
                during = resident_kb(daemon)
                rotate(house)
                heard = crowd.heard()
            held = house.get("/v1/tokens/main")[1]["version"]
            assert heard.said == {f'HTTP/1.1 200 OK "{held}"': count}
            assert heard.surplus == 0, "the next answer is that of the next question"
            figures.append((during, resident_kb(daemon)))
        print(
            f"\n{count} watchers, KB resident: {before} before; during and after each rotation"
            f" {figures}"
        )
        assert figures[0][0] - before < count * MOST_KB, (
            "who waits in a group costs aiohttp nothing"
        )
        assert all(after < figures[0][0] * 1.1 for _, after in figures), (
            "what the first crowd took is enough for the next"
        )
        assert len(house.calls()) == 3
        invariants.check(house)


def test_five_thousand_watchers_of_a_daemon_that_stops_are_answered(
    house: House, files: int
) -> None:
    count = min(WATCHERS, files - 1000)
    with house.serving() as daemon:
        held = ready(house)["version"]
        with watching(house.daemon, count, f'"{held}"') as crowd:
            assert daemon.end() == 0
            assert crowd.heard().said == {f'HTTP/1.1 304 Not Modified "{held}"': count}
    invariants.check(house)


# --- 43: bad connections, and no descriptors left -------------------------------------------------


@dataclass
class Honest:
    """Somebody who asks again and again, over a connection that stays."""

    base: str
    asked: int = 0

    async def until(self, over: "asyncio.Future[Any]") -> None:
        async with crowd(self.base, 1) as (peer,):
            while not over.done():
                (answer,) = await everyone([peer], [GET])
                assert answer.status == 200
                self.asked += 1


async def _bad(base: str, count: int, honest: Honest) -> None:
    """Wait until the daemon has hung up on all of them.

    Every other one sends a byte now and then.
    """
    async with asyncio.timeout(40), crowd(base, count) as peers:
        closed = asyncio.gather(*(peer.closed for peer in peers))
        others = asyncio.create_task(honest.until(closed))
        for peer in peers[::2]:
            peer.say(b"GET /v1/tokens/main HTTP/1.1\r\nX: ")
        while not closed.done():
            for peer in peers[::2]:
                peer.say(b"x")
            await asyncio.wait({closed}, timeout=1)
        await others


def test_a_thousand_silent_or_dripping_peers_are_hung_up_on_and_others_are_served(
    house: House,
) -> None:
    with house.serving():
        ready(house)
        honest = Honest(house.daemon)
        asyncio.run(_bad(house.daemon, BAD, honest))
        print(f"\n{honest.asked} answers to one client while {BAD} bad connections lasted")
        assert honest.asked > 0
        invariants.check(house)


@contextmanager
def started(house: House, soft: int, hard: int) -> Iterator[Process]:
    """A daemon that is started with these limits on open files."""
    limits = f"import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
    (house.home / "sitecustomize.py").write_text(limits)
    with house.serving(PYTHONPATH=str(house.home)) as daemon:
        ready(house)
        yield daemon


@contextmanager
def storm(base: str, count: int) -> Iterator[None]:
    """So many bad ones in a process of their own; whoever is hung up on comes again at once."""
    command = [sys.executable, "-m", "tests.harness.crowd", base, str(count)]
    with Popen(command, stdout=PIPE, text=True, cwd=ROOT) as crowded:
        try:
            assert crowded.stdout is not None
            assert crowded.stdout.readline() == "all here\n"
            yield
        finally:
            crowded.kill()


async def _refreshed_in_a_storm(house: House, times: int) -> Counter[int]:
    """What one hears who was there before the storm and asks for refreshes in it."""
    heard: Counter[int] = Counter()
    async with crowd(house.daemon, 1) as (early,), asyncio.timeout(30):
        await everyone([early], [GET])
        with storm(house.daemon, 400):
            while heard[200] < times:
                (answer,) = await everyone([early], [request("/v1/tokens/main/refresh", "POST")])
                heard[answer.status] += 1
    return heard


def test_a_storm_of_connections_leaves_a_refresh_the_descriptors_it_needs(house: House) -> None:
    with started(house, 100, 100):
        heard = asyncio.run(_refreshed_in_a_storm(house, 5))
        assert heard.keys() <= {200, 429}, "429: sooner than min_gap"
        until(lambda: served(house), "strangers are served again")
        assert (house.home / "daemon.log").stat().st_size < 1_000_000, "a line a second will do"
        invariants.check(house)


async def _exhausted(house: House, daemon: Process) -> list[int]:
    """A daemon with no file left to open: what somebody hears whose connection it has."""
    async with crowd(house.daemon, 1) as (early,):
        await everyone([early], [GET])
        taken = len(list(Path(f"/proc/{daemon.popen.pid}/fd").iterdir()))
        _, hard = resource.prlimit(daemon.popen.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.popen.pid, resource.RLIMIT_NOFILE, (taken, hard))
        async with crowd(house.daemon, 50) as strangers:
            for stranger in strangers:
                stranger.say(GET)
            answers = await everyone([early], [GET] * 10)
        resource.prlimit(daemon.popen.pid, resource.RLIMIT_NOFILE, (taken + 8, hard))
    return [answer.status for answer in answers]


def test_a_daemon_without_descriptors_serves_whom_it_knows_and_recovers(house: House) -> None:
    with house.serving() as daemon:
        ready(house)
        assert asyncio.run(_exhausted(house, daemon)) == [200] * 10
        until(lambda: served(house), "strangers are served again")
        rotate(house)
        invariants.check(house)


def test_the_soft_limit_on_open_files_is_raised_to_the_hard_one(house: House) -> None:
    with started(house, 200, 1000) as daemon:
        assert resource.prlimit(daemon.popen.pid, resource.RLIMIT_NOFILE) == (1000, 1000)
        # More than 200 files would allow, each with a request that waits.
        etag = f'"{ready(house)["version"]}"'
        with watching(house.daemon, 300, etag) as crowd:
            rotate(house)
            assert sum(crowd.heard().said.values()) == 300


async def _got_while_one_client_waits(house: House, daemon: Process, count: int) -> list[str]:
    """What `get` prints while one client waits on more connections than there is room for."""
    etag = f'"{ready(house)["version"]}"'
    wait = request("/v1/tokens/main?wait=60", If_None_Match=etag)
    waiting = [asyncio.create_task(_wait_for_ever(house.daemon, wait)) for _ in range(count)]
    files = Path(f"/proc/{daemon.popen.pid}/fd")
    async with asyncio.timeout(20):
        while len(list(files.iterdir())) < 60:
            await asyncio.sleep(0.02)
    printed = []
    for _ in range(3):
        done = await asyncio.to_thread(run, "get", "main", "--config", str(house.config))
        printed.append(done.stdout or done.stderr)
        assert (await asyncio.to_thread(house.get, "/livez"))[0] == 200
    for one in waiting:
        one.cancel()
    await asyncio.wait(waiting)
    return printed


async def _wait_for_ever(base: str, wait: bytes) -> None:
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            async with crowd(base, 1) as (peer,):
                while True:
                    await peer.ask(wait)


def test_one_client_that_holds_all_waits_shuts_out_neither_get_nor_the_watchdog(
    house: House,
) -> None:
    with started(house, 384, 384) as daemon:
        token = ready(house)["access_token"]
        printed = asyncio.run(_got_while_one_client_waits(house, daemon, 400))
        assert printed == [f"{token}\n"] * 3
        invariants.check(house)


def served(house: House) -> bool:
    try:
        return house.get("/v1/tokens/main")[0] == 200
    except OSError:
        return False
