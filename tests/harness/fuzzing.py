"""What both fuzzers share: how much is tried, how bytes are sent, and what is printed."""

import re
import socket

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

BOUNDED = settings(
    max_examples=500, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def tell(what: str, *figures: object) -> None:
    print(f"\n{what}:", *figures)


def mostly(good: bytes, bad: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Seven in eight are good, so that most answers have one or two faults, not ten."""
    return st.integers(0, 7).flatmap(lambda n: bad if n == 1 else st.just(good))


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def statuses(answer: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/[01]\.\d (\d{3}) ", answer)]
