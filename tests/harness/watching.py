"""Thousands of watchers in a process of their own.

They are as cheap as can be, since the daemon is measured and not they.

`python -m tests.harness.watching HOST:PORT COUNT ETAG CPU` connects so often, sends the same long
poll on every connection, and says that all of them are being waited for. When each is answered it
asks `/livez` on each, to see that nothing else comes, says as JSON what was heard and when, and
leaves once its stdin is closed.
"""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tests.harness.crowd import ETAG, LENGTH, open_files, request
from tests.harness.places import ROOT
from tests.harness.processes import PATIENCE_S

LIVEZ: Final = request("/livez")
CRLF: Final = b"\r\n"
MOST_EVENTS: Final = 512


@dataclass(frozen=True)
class Heard:
    """What watchers heard.

    It holds when each had its answer (unix time), and how many had which status line and version.
    """

    stamps: list[float]
    said: dict[str, int]
    surplus: int


@dataclass
class Watching:
    """A crowd of watchers who wait."""

    popen: "subprocess.Popen[str]"

    def heard(self) -> Heard:
        """What they heard, once all have."""
        return Heard(**json.loads(_line(self.popen)))


@contextmanager
def watching(base: str, count: int, etag: str, cpu: int | None = None) -> Iterator[Watching]:
    """So many who wait for another version than `etag`; gone at the end."""
    where = [base.removeprefix("http://"), str(count), etag, "" if cpu is None else str(cpu)]
    command = [sys.executable, "-m", "tests.harness.watching", *where]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as popen:
        try:
            assert _line(popen) == "all wait\n"
            yield Watching(popen)
        finally:
            assert popen.stdin is not None
            popen.stdin.close()
            try:
                popen.wait(PATIENCE_S)
            finally:
                popen.kill()


def _line(popen: "subprocess.Popen[str]") -> str:
    assert popen.stdout is not None
    ready, _, _ = select.select([popen.stdout], [], [], PATIENCE_S * 2)
    assert ready, "the watchers have not heard"
    return popen.stdout.readline()


# --- in the process of their own ------------------------------------------------------------------


def watch(base: str, count: int, etag: str) -> None:
    """Connect, ask, wait, tell."""
    host, _, port = base.rpartition(":")
    chunk = request("/v1/tokens/main?wait=60", If_None_Match=etag)
    socks = [socket.create_connection((host, int(port)), PATIENCE_S) for _ in range(count)]
    for sock in socks:
        sock.sendall(chunk)
    knock(host, int(port))
    print("all wait", flush=True)
    answers = _answers(socks)
    knock(
        host, int(port)
    )  # so that the lane knows what all ask now, and aiohttp is not asked by a thousand at once
    for sock in socks:
        with contextlib.suppress(ConnectionError):  # a daemon that stops has hung up
            sock.sendall(LIVEZ)
    after = _answers(socks)
    said = Counter(
        f"{data.partition(CRLF)[0].decode()} {version_of(data)}" for data, _ in answers.values()
    )
    surplus = sum(
        bool(data) and not is_one_answer(data) for data, _ in [*answers.values(), *after.values()]
    )
    print(
        json.dumps(
            {"stamps": [at for _, at in answers.values()], "said": said, "surplus": surplus}
        ),
        flush=True,
    )
    sys.stdin.read()


def knock(host: str, port: int) -> None:
    """Wait until the daemon has read all that was sent before.

    It answers in order of arrival. If the daemon has stopped, nobody answers.
    """
    with (
        contextlib.suppress(ConnectionError),
        socket.create_connection((host, port), PATIENCE_S) as last,
    ):
        last.sendall(LIVEZ)
        last.recv(4096)


def _answers(socks: list[socket.socket]) -> dict[int, tuple[bytes, float]]:
    """What came first on each connection, and when (unix time)."""
    found: dict[int, tuple[bytes, float]] = {}
    by_number = {sock.fileno(): sock for sock in socks}
    poll = select.epoll()
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    while len(found) < len(socks):
        events = poll.poll(PATIENCE_S * 2, MOST_EVENTS)
        assert events, f"{len(socks) - len(found)} have heard nothing"
        for number, _ in events:
            try:
                data = by_number[number].recv(4096)
            except ConnectionError:
                data = b""
            found[number] = data, time.time()
            poll.unregister(number)
    poll.close()
    return found


def version_of(data: bytes) -> str:
    """The version that an answer's ETag names."""
    found = ETAG.search(data)
    return found[1].decode() if found else ""


def is_one_answer(data: bytes) -> bool:
    """Whether that is one whole answer and nothing more."""
    head, found, body = data.partition(b"\r\n\r\n")
    length = LENGTH.search(head + b"\r\n")
    return bool(found) and len(body) == (int(length[1]) if length else 0)


if __name__ == "__main__":
    if sys.argv[4]:
        os.sched_setaffinity(0, {int(sys.argv[4])})
    with open_files():
        watch(sys.argv[1], int(sys.argv[2]), sys.argv[3])
