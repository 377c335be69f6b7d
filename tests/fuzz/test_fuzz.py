"""Fuzz: the API, WeChat's answers, and broken HTTP at a running daemon.

How much was tried is printed: `pytest tests/fuzz/test_fuzz.py -s`.
"""

import asyncio
import contextlib
import gzip
import hashlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.core.credential import Account
from broker.core.errcodes import Failure, Kind
from broker.core.ports import Minted, Verdict
from broker.core.secret import Secret
from broker.wechat import WeChat
from tests.harness import invariants
from tests.harness.crashpoints import ForkedDaemon, ForkServer
from tests.harness.doubles import ACCOUNT, CANARY, stable
from tests.harness.fuzzing import BOUNDED, connected, mostly, statuses, tell
from tests.harness.places import ROOT
from tests.harness.processes import ask, until

T = TypeVar("T")

# --- the API, by its own description --------------------------------------------------------------

SEED = os.environ.get("FUZZ_SEED", "1")
QUOTA = 15  # what a day needs at least, where a token is kept for nine tenths of its life
KEY = f"{CANARY}-client-key"
CLIENT = (
    f'[clients.fuzz]\nkey_sha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"\nscopes = ["read",'
    ' "report", "admin"]\n'
)
WAYS_IN = {
    "header": ("", {"X-Token-Broker": "1"}),
    "bearer": (CLIENT, {"Authorization": f"Bearer {KEY}"}),
}
POLICY = "min_gap = 0.05\nverify_gap = 0.05\nreport_quota = 3\nrefresh_fraction = 0.9\n"
CHECKS = """
[checks]
# The contract has no token at times, and says so with 503 and Retry-After: not a server error.
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503]
"""


@pytest.mark.soak
@pytest.mark.parametrize("way_in", WAYS_IN)
def test_the_api_is_as_it_describes_itself_whatever_is_asked(
    tmp_path: Path, forks: ForkServer, way_in: str
) -> None:
    house, (clients, proof) = ForkedDaemon(tmp_path, fork_server=forks), WAYS_IN[way_in]
    # So little quota that `refresh` meets its end, and WeChat's own is no larger: one call too many
    # would show as 45009.
    with house.simulating("--daily-quota", str(QUOTA)):
        house.configure(policy=POLICY, app=f"daily_quota = {QUOTA}", more=clients)
        with house.living():
            until(lambda: house.get("/readyz")[0] == 200, "ready")
            found = schemathesis(house, way_in, proof)
            assert house.get("/livez")[0] == 200
            assert house.get("/v1/tokens/main", **proof)[0] == 200
            invariants.check(house, daily_quota=QUOTA)
            assert house.get("/v1/status")[1]["apps"][0]["last_error"] is None
    assert "crashed" not in (tmp_path / "daemon.log").read_text()
    tell(
        f"schemathesis, {way_in}",
        found["operations"],
        found["test_cases"],
        f"token calls: {len(house.ledger())}",
    )


def schemathesis(house: ForkedDaemon, way_in: str, proof: dict[str, str]) -> dict[str, Any]:
    """Run it with all of its checks; its report."""
    (house.home / "openapi.json").write_text(json.dumps(described(house, way_in)))
    # The proof goes into a file: on a command line others could read the key, and I6 says so.
    headers = "".join(f'"{name}" = "{value}"\n' for name, value in proof.items())
    (house.home / "schemathesis.toml").write_text(f"[headers]\n{headers}{CHECKS}")
    report = house.home / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli",
         "--config-file", house.home / "schemathesis.toml",
         "run", house.home / "openapi.json", "--url", house.daemon, "--checks", "all",
         "--max-examples", "60", "--seed", SEED, "--continue-on-failure", "--request-timeout", "20",
         "--generation-database", "none", "--no-color",
         "--report", "json", "--report-json-path", report],
        cwd=house.home,
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": "tests.harness.fuzz_hooks",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(report.read_text())
    assert (
        found["operations"]["tested"]
        == found["operations"]["total"]
        == len(described(house, way_in)["paths"])
    )
    return found


def described(house: ForkedDaemon, way_in: str) -> dict[str, Any]:
    """The daemon's description of itself, narrowed to this one's app and way in."""
    document: dict[str, Any] = ask("GET", f"{house.daemon}/openapi.json")[1]
    for operation in (
        operation for path in document["paths"].values() for operation in path.values()
    ):
        if "security" in operation:
            operation["security"] = [{way_in: []}]
        for parameter in operation.get("parameters", []):
            if parameter["name"] == "app":
                parameter["schema"] = {"anyOf": [{"const": "main"}, {"type": "string"}]}
    return document


# --- WeChat's answers, on the socket --------------------------------------------------------------

GOOD = b'{"access_token":"ACCESS_TOKEN","expires_in":7200}'
TIMEOUT_S = 0.15
UPSTREAM_ACCOUNTS = [ACCOUNT, stable()]


@dataclass
class Wire:
    """A peer that answers each connection with the same bytes.

    Then it closes, or says no more until the other side leaves.
    """

    says: bytes = b""
    closes: bool = True
    connections: int = 0
    heard: bytearray = field(default_factory=bytearray)
    busy: set[asyncio.Task[Any] | None] = field(default_factory=set)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.busy.add(asyncio.current_task())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.heard += head
            length = re.search(rb"Content-Length: (\d+)", head)
            self.heard += await reader.readexactly(int(length[1]) if length else 0)
            writer.write(self.says)
            if self.closes:
                writer.write_eof()
            self.heard += await reader.read()
        writer.close()
        self.busy.discard(asyncio.current_task())

    async def left(self) -> None:
        """Until nobody is connected."""
        while self.busy:
            await asyncio.sleep(0)


@dataclass
class Line:
    """The adapter at one end, a wire at the other, in an event loop of theirs.

    Counts what came through.
    """

    runner: asyncio.Runner
    wire: Wire
    wechat: WeChat
    calls: int = 0
    size: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    def fetch(self, says: bytes, account: Account, *, closes: bool = True) -> Minted | Failure:
        answer = self._ask(self.wechat.fetch(account, force=False), says, closes=closes)
        lost = " lost" if isinstance(answer, Failure) and answer.lost else ""
        self.outcomes[f"{type(answer).__name__}{lost}"] += 1
        return answer

    def check(self, says: bytes) -> Verdict:
        verdict = self._ask(
            self.wechat.check(ACCOUNT, Secret(f"{CANARY}-token")), says, closes=True
        )
        self.outcomes[verdict.value] += 1
        return verdict

    def was_asked_once(self) -> bool:
        return (self.wire.connections, self.wire.heard.count(b" HTTP/1.1\r\n")) == (1, 1)

    def _ask(self, question: Awaitable[T], says: bytes, *, closes: bool) -> T:
        self.calls, self.size = self.calls + 1, self.size + len(says)
        self.wire.says, self.wire.closes, self.wire.connections = says, closes, 0
        self.wire.heard.clear()
        answer = self.runner.run(within_reason(question))
        self.runner.run(within_reason(self.wire.left()))
        return answer


async def within_reason(what: Awaitable[T]) -> T:
    """Bound what must be bounded by itself."""
    async with asyncio.timeout(20):
        return await what


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    """One server and one client for all examples."""
    with asyncio.Runner() as runner:
        wire, stack = Wire(), contextlib.AsyncExitStack()
        server = runner.run(asyncio.start_server(wire.answer, "127.0.0.1", 0))
        base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        line = Line(
            runner, wire, runner.run(stack.enter_async_context(WeChat.connect(base, TIMEOUT_S)))
        )
        yield line
        runner.run(stack.aclose())
        server.close()
        tell("upstream answers", f"{line.calls} answers, {line.size:,} bytes;", dict(line.outcomes))


# What a gateway, a captive portal or a broken proxy may put around, before, behind or instead of an
# answer.
ODD_BODIES = st.one_of(
    st.sampled_from([b"", b"{}", b"null", b"<html>", b'{"errcode":-1}', b"x" * 70_000]),
    st.just(b'{"errcode":40001,"errmsg":"%b-secret"}' % CANARY.encode()),
    st.sampled_from(
        [gzip.compress(GOOD, mtime=0), zlib.compress(GOOD), gzip.compress(GOOD, mtime=0)[:-7]]
    ),
    st.just(gzip.compress(b" " * 10**6, mtime=0)),
    st.binary(max_size=300),
)
VERSIONS = mostly(
    b"HTTP/1.1",
    st.sampled_from([b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2", b"HTTP/1.11", b"ICY", b"http/1.1", b""]),
)
CODES = st.sampled_from(
    [b"100", b"204", b"301", b"304", b"307", b"404", b"429", b"500", b"503"]
) | st.integers(-1, 1200).map(b"%d".__mod__)
REASONS = st.sampled_from([b"", b" \xff", b" " + b"x" * 9000])
ODD_STATUS_LINES = st.tuples(VERSIONS, CODES, mostly(b" OK", REASONS)).map(
    b"%b %b%b".__mod__
) | st.binary(max_size=40)
STATUS_LINES = st.integers(0, 3).flatmap(
    lambda n: ODD_STATUS_LINES if n == 1 else st.just(b"HTTP/1.1 200 OK")
)
EARLY = [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Hints\r\n\r\n" * 50, b"\r\n", b"\x00"]
VALUES = {
    b"Content-Length": [
        b"0",
        b"5",
        b"49",
        b"-1",
        b"+49",
        b"49, 49",
        b"4 9",
        b"0x31",
        b"99999999999999999999",
        b"abc",
        b"",
    ],
    b"Transfer-Encoding": [
        b"chunked",
        b"Chunked",
        b"gzip, chunked",
        b"chunked, identity",
        b"xchunked",
        b"\x0bchunked",
        b"",
    ],
    b"Content-Encoding": [
        b"gzip",
        b"deflate",
        b"br",
        b"zstd",
        b"identity",
        b"gzip, gzip",
        b"",
        b"\xe9",
        b"x" * 9000,
    ],
    b"Location": [b"/cgi-bin/token", b"//127.0.0.1:9/", b"http://[::1", b"javascript:0", b"\x00"],
    b"Retry-After": [
        b"0",
        b"1e9",
        b"-5",
        b"9" * 400,
        b"Thu, 01 Jan 1970 00:00:00 GMT",
        b"\xb2",
        b"\xd9\xa3",
        b"Mon, 99 Foo",
    ],
    b"Connection": [b"close", b"keep-alive", b"upgrade", b"\xff"],
    b"Set-Cookie": [b"a=b", b"=;;=", b"\x01=2; Domain=.; Max-Age=x"],
    b"Content-Type": [
        b"application/json; encoding=utf-8",
        b"text/html; charset=utf-7",
        b"/;;;=",
        b"\x80",
    ],
    b"Trailer": [b"Content-Length"],
}
FIELDS = [name + b": " + value for name, values in VALUES.items() for value in values]
HEADERS = st.lists(
    mostly(b"Server: nginx", st.sampled_from(FIELDS) | st.binary(max_size=30)), max_size=5
)
SIZES = mostly(
    b"%x",
    st.sampled_from(
        [
            b"%X",
            b"0%x",
            b"%x;ext=1",
            b"0x%x",
            b"-%x",
            b"%x ",
            b"+%x",
            b"f%x",
            b"ffffffffffffffff%x",
            b"",
        ]
    ),
)


LAST_CHUNKS = mostly(
    b"0\r\n\r\n",
    st.sampled_from([b"0\r\nA: b\r\n\r\n", b"0\r\n", b"", b"\r\n", b"0\n\n", b"zz\r\n"]),
)
ENDS = mostly(b"\r\n", mostly(b"\r\n", st.sampled_from([b"\n", b"\r", b"\r\r\n"])))
BEFORE = mostly(b"", st.sampled_from(EARLY))
AFTER = mostly(b"", st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"\x00", GOOD]))
SCRAPS = st.sampled_from(
    [b"\x00", b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"\xff", b"\x0b"]
) | st.binary(max_size=4)


@st.composite
def chunked(draw: st.DrawFn, body: bytes) -> bytes:
    """A body in one chunk or two, more or less."""
    cut = draw(st.integers(0, len(body)))
    chunks = [chunk for chunk in (body[:cut], body[cut:]) if chunk]
    sizes = [draw(SIZES) for _ in chunks]
    lines = [
        size % len(chunk) if b"%" in size else size
        for size, chunk in zip(sizes, chunks, strict=True)
    ]
    return b"".join(b"%b\r\n%b\r\n" % pair for pair in zip(lines, chunks, strict=True)) + draw(
        LAST_CHUNKS
    )


@st.composite
def answers(draw: st.DrawFn, good: bytes = GOOD) -> bytes:
    """Something like an HTTP answer.

    Each part may be wrong; then bytes may be changed, lost or doubled.
    """
    end, body, headers = draw(ENDS), draw(mostly(good, ODD_BODIES)), draw(HEADERS)
    how = draw(st.sampled_from(["until it closes", "chunked", "counted"]))
    if how == "chunked":
        headers, body = [*headers, b"Transfer-Encoding: chunked"], draw(chunked(body))
    if how == "counted":
        headers = [*headers, b"Content-Length: %d" % len(body)]
    raw = draw(BEFORE) + end.join([draw(STATUS_LINES), *headers, b"", b""]) + body + draw(AFTER)
    return draw(mutated(raw))


@st.composite
def mutated(draw: st.DrawFn, raw: bytes) -> bytes:
    """The same bytes, or with a few of them changed, put in, cut off, or said twice."""
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(SCRAPS) + raw[at + draw(st.integers(0, 3)) :]
    if draw(st.integers(0, 5)) == 5:
        raw = raw[: draw(st.integers(0, len(raw)))]
    return raw * draw(st.sampled_from([1, 1, 1, 1, 2]))


@BOUNDED
@given(answers(), st.sampled_from(UPSTREAM_ACCOUNTS))
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 49\r\n\r\n" + GOOD, ACCOUNT)
@example(b"HTTP/1.1 302 Found\r\nLocation: /cgi-bin/token\r\nContent-Length: 0\r\n\r\n", ACCOUNT)
def test_whatever_wechat_answers_is_one_of_our_outcomes_and_asked_for_once(
    line: Line, says: bytes, account: Account
) -> None:
    answer = line.fetch(says, account)
    assert isinstance(answer, Minted | Failure)
    assert isinstance(answer, Minted) or answer.kind in Kind
    assert CANARY not in repr(answer), "WeChat's words, or the secret in the URL"
    assert isinstance(answer, Failure) or re.fullmatch("[!-~]+", answer.token.reveal())
    assert line.was_asked_once()


@settings(BOUNDED, max_examples=30)
@given(answers(), st.sampled_from(UPSTREAM_ACCOUNTS))
@example(b"", ACCOUNT)
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n" + GOOD, ACCOUNT)
@example(b"HTTP/1.1 100 Continue\r\n\r\n", ACCOUNT)
def test_an_answer_that_never_ends_is_a_failure_too(
    line: Line, says: bytes, account: Account
) -> None:
    assert isinstance(line.fetch(says, account, closes=False), Minted | Failure)
    assert line.was_asked_once()


@settings(BOUNDED, max_examples=150)
@given(
    answers(b'{"ip_list":["203.0.113.7"]}')
    | answers(b'{"errcode":40001,"errmsg":"invalid credential"}')
)
def test_whatever_a_data_api_answers_is_a_verdict(line: Line, says: bytes) -> None:
    assert line.check(says) in Verdict
    assert line.was_asked_once()


# --- broken HTTP at a running daemon --------------------------------------------------------------

PROOF = b"X-Token-Broker: 1"
HONEST = (
    b"GET /v1/tokens/main HTTP/1.1\r\nHost: localhost\r\n"
    + PROOF
    + b"\r\nConnection: close\r\n\r\n"
)


@dataclass
class Intruder:
    """Says bytes to a daemon, each on a connection of its own, and counts them.

    A key is among them, to be looked for in logs.
    """

    port: int
    said: int = 0
    tries: int = 0
    statuses: Counter[int] = field(default_factory=Counter)

    def says(self, raw: bytes) -> bytes:
        """What comes back until the daemon closes. Honest people are served all the while."""
        self.tries, self.said, answer = self.tries + 1, self.said + len(raw), b""
        with connected(self.port) as sock, contextlib.suppress(ConnectionError):
            sock.sendall(raw)
            # Who is served after us is served when the daemon has seen to what we said: from then
            # on it waits for more.
            self.honest_people_are_served()
            sock.shutdown(socket.SHUT_WR)
            while more := sock.recv(65536):
                answer += more
        self.statuses.update(statuses(answer) or [0])
        self.honest_people_are_served()
        return answer

    def honest_people_are_served(self) -> None:
        answer = b""
        with connected(self.port) as sock:
            sock.sendall(HONEST)
            while more := sock.recv(65536):
                answer += more
        assert statuses(answer) == [200]
        assert b"access_token" in answer


@contextlib.contextmanager
def intruded(home: Path, forks: ForkServer) -> Iterator[Intruder]:
    """A daemon that all examples share.

    At the end it has spent no call, and its log holds nothing of what was sent to it.
    """
    house = ForkedDaemon(home, fork_server=forks)
    with house.simulating():
        house.configure()
        with house.living():
            until(lambda: house.get("/readyz")[0] == 200, "ready")
            yield Intruder(int(house.daemon.rpartition(":")[2]))
            invariants.check(house, daily_quota=1)
            token = house.get("/v1/tokens/main")[1]["access_token"]
    log = (house.home / "daemon.log").read_text()
    assert not any(
        word in log for word in (token, "crashed", "Traceback", "Task exception", "never retrieved")
    )


@pytest.fixture(scope="module")
def intruder(tmp_path_factory: pytest.TempPathFactory, forks: ForkServer) -> Iterator[Intruder]:
    """One for all examples."""
    with intruded(tmp_path_factory.mktemp("intruded"), forks) as intruder:
        yield intruder
    tell(
        "broken requests",
        f"{intruder.tries} tries, {intruder.said:,} bytes; statuses (0: closed)",
        dict(intruder.statuses),
    )


TARGETS = [
    b"/v1/tokens/main",
    b"/v1/tokens/main/report",
    b"/v1/status",
    b"/livez",
    b"/metrics",
    b"/v1/tokens/main/refresh",
]
ODD_TARGETS = [
    b"*", b"//v1/tokens/main", b"/v1/tokens/%6dain", b"/v1/tokens/main;x",
    b"/v1/../v1/tokens/main", b"/v1/tokens/%00", b"main", b"http://localhost/v1/tokens/main",
    b"localhost:1", b"/\xff", b"/%ff%fe", b"/v1/tokens/" + b"a" * 9000, b"/?" + b"&=" * 3000,
    b"/v1/tokens/main?wait=\xb2", b"/v1/tokens/main?wait=%D9%A3", b"/#", b"/v1/tokens/main%23",
    b"http://[::1", b"//[", b"",
]  # fmt: skip
LENGTHS = [
    b"0",
    b"5",
    b"+5",
    b"-5",
    b"5, 5",
    b"5,6",
    b"0x5",
    b"5 5",
    b"05",
    b"5_0",
    b"\xd9\xa3",
    b"9" * 40,
    b"",
    b"5;a",
]
CODINGS = [
    b"chunked",
    b"Chunked",
    b"chunked, chunked",
    b"gzip, chunked",
    b"chunked, identity",
    b"xchunked",
    b"identity",
    b"\x0bchunked",
]
HOSTS = [
    b"localhost",
    b"evil.example",
    b"localhost:x",
    b"[::1",
    b"127.1",
    b"0",
    b"localhost, evil",
    b"@localhost",
    b"\xff",
    b"",
]
CREDENTIALS = [
    b"X-Token-Broker: 0",
    b"X-Token-Broker: 1 1",
    b"X-Token-Broker:",
    b"X-Token-Broker : 1",
    b" X-Token-Broker: 1",
]
FRAMES = [b"Content-Length: " + value for value in LENGTHS] + [
    b"Transfer-Encoding: " + value for value in CODINGS
]
CLEAR = {b"Content-Length: 0", b"Content-Length: 5", b"Content-Length: 05"} | {
    b"Transfer-Encoding: " + coding for coding in (b"chunked", b"Chunked", b"gzip, chunked")
}
DOUBTFUL = [frame for frame in FRAMES if frame not in CLEAR]
OTHERS = [
    b"Expect: 100-continue", b"Expect: \xff", b"Connection: upgrade", b"Upgrade: websocket",
    b"Upgrade: h2c", b"Range: bytes=0-", b"Content-Encoding: gzip", b"Content-Encoding: br",
    b"Content-Type: application/json", b"Content-Type: \x80;;", b"A:" * 5000,
    b"Cookie: " + b"a=b;" * 3000, b'If-None-Match: "', b'If-None-Match: W/"\xff", *', b": x",
    b"\x00: \x00", b"folded:\r\n x", b"Authorization: Bearer " + KEY.encode(),
    b"Authorization: Basic " + CANARY.encode(), b"HTTP2-Settings: AAM",
    b"X-HTTP-Method-Override: GET",
]  # fmt: skip
METHODS = mostly(
    b"GET",
    st.sampled_from(
        [
            b"POST",
            b"HEAD",
            b"CONNECT",
            b"PRI",
            b"OPTIONS",
            b"get",
            b"G\xcbT",
            b"DELETE",
            b"x" * 9000,
            b"",
        ]
    ),
)
REQUEST_BODIES = st.sampled_from(
    [
        b"",
        b"{}",
        b"0\r\n\r\n",
        b"5\r\n{    \r\n0\r\n\r\n",
        b"zz\r\n",
        b"ffffffffffffffff1\r\n",
        b"\x00" * 99,
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Something like a request, without the proof of intent.

    Whatever the answer is, it is never a token.
    """
    target = draw(st.sampled_from(TARGETS) | st.sampled_from(ODD_TARGETS))
    line = (
        draw(METHODS)
        + b" "
        + target
        + b" "
        + draw(mostly(b"HTTP/1.1", VERSIONS | st.binary(max_size=12)))
    )
    host = b"Host: " + draw(mostly(b"localhost", st.sampled_from(HOSTS)))
    odd = (
        st.sampled_from(CREDENTIALS)
        | st.sampled_from(FRAMES)
        | st.sampled_from(OTHERS)
        | st.binary(max_size=30)
    )
    more = draw(st.lists(mostly(b"Accept: */*", odd), max_size=4))
    raw = draw(ENDS).join([line, *draw(st.permutations([host, *more])), b"", b""]) + draw(
        mostly(b"", REQUEST_BODIES)
    )
    return draw(mutated(raw)) if draw(st.booleans()) else raw


@pytest.mark.soak
@settings(BOUNDED, max_examples=1000)
@given(requests())
@example(b"GET /v1/tokens/main HTTP/1.1\r\nHost: localhost\r\n\r\n")
@example(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
def test_a_broken_request_gets_no_token_and_no_server_error(intruder: Intruder, raw: bytes) -> None:
    answer = intruder.says(raw)
    assert b"access_token" not in answer
    assert all(code < 500 for code in statuses(answer)), answer


@pytest.mark.soak
@settings(BOUNDED, max_examples=200)
@given(st.binary(max_size=200) | mutated(HONEST[:-30]) | st.binary(max_size=50).map(HONEST.__add__))
@example(b"\x80\x2e\x01\x03\x01")
def test_any_bytes_are_4xx_or_the_end_unless_they_are_an_honest_request(
    intruder: Intruder, raw: bytes
) -> None:
    answer = intruder.says(raw)
    assert all(code < 500 for code in statuses(answer)), answer
    assert PROOF.lower() in raw.lower() or b"access_token" not in answer


@pytest.mark.soak
def test_a_request_in_a_request_of_doubtful_length_is_not_answered(intruder: Intruder) -> None:
    """Two readers who disagree on the length would see two requests or one.

    There must be no token for the second.
    """
    for frames in [*((frame,) for frame in DOUBTFUL), *itertools.permutations(FRAMES, 2)]:
        for before in (b"", b"0\r\n\r\n", b"5\r\n"):
            head = b"\r\n".join(
                [b"POST /v1/tokens/main/report HTTP/1.1", b"Host: localhost", *frames, b"", b""]
            )
            answer = intruder.says(head + before + HONEST)
            assert b"access_token" not in answer, (frames, before, answer)
            assert all(400 <= code < 500 for code in statuses(answer)), (frames, before, answer)


@pytest.mark.parametrize(
    "line",
    [
        b"Expect: \xff" + KEY.encode(),
        b"Expect: " + KEY.encode(),
        b"Authorization: Bearer " + KEY.encode() + b"\x00",
    ],
    ids=["an odd Expect", "an unknown Expect", "NUL behind a key"],
)
@pytest.mark.parametrize("path", ["/v1/tokens/main", "/v1/tokens/main/report", "/nowhere"])
def test_what_is_refused_unparsed_is_refused_like_the_rest(
    tmp_path: Path, forks: ForkServer, line: bytes, path: str
) -> None:
    with intruded(tmp_path, forks) as intruder:
        answer = intruder.says(
            f"GET {path} HTTP/1.1\r\nHost: evil.example\r\n".encode() + line + b"\r\n\r\n"
        )
    assert all(400 <= code < 500 for code in statuses(answer)), answer
    assert KEY.encode() not in answer
    assert answer == b"" or (b"application/problem+json" in answer and b"no-store" in answer)
