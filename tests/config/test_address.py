"""Addresses: what is accepted, what is loopback, and how the rest is explained."""

import re

import pytest

from broker.system.address import Address, parse_address, parse_broker


@pytest.mark.parametrize(
    ("text", "address", "loopback"),
    [
        ("127.0.0.1:8765", Address("tcp", "127.0.0.1", 8765), True),
        ("127.9.9.9:0", Address("tcp", "127.9.9.9", 0), True),
        ("[::1]:80", Address("tcp", "::1", 80), True),
        ("[0:0::1]:80", Address("tcp", "::1", 80), True),
        ("LocalHost:80", Address("tcp", "localhost", 80), True),
        ("unix:/run/b.sock", Address("unix", path="/run/b.sock"), True),
        ("unix:///run/b.sock", Address("unix", path="/run/b.sock"), True),
        ("0.0.0.0:80", Address("tcp", "0.0.0.0", 80), False),  # noqa: S104 -- only parsed
        ("[::]:80", Address("tcp", "::", 80), False),
        ("broker.internal:80", Address("tcp", "broker.internal", 80), False),
    ],
)
def test_an_address_is_read_and_knows_whether_it_is_loopback(
    text: str,
    address: Address,
    loopback: bool,  # noqa: FBT001
) -> None:
    assert parse_address(text) == address
    assert address.is_loopback is loopback
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (8765, "must be a string"),
        ("", '"host:port"'),
        ("127.0.0.1", '"host:port"'),
        (":8765", "which interface"),
        ("*:8765", "which interface"),
        ("::1:8765", "goes in brackets"),
        ("[127.0.0.1]:1", '"host:port"'),
        ("[::x]:1", "no host name"),
        ("999.1.1.1:1", "no host name"),
        ("-a:1", "no host name"),
        ("a b:1", "no host name"),
        ("127.0.0.1:65536", "at most 65535"),
        ("127.0.0.1:-1", '"host:port"'),
        ("http://127.0.0.1:1", '"host:port"'),
        ("unix:run/b.sock", "absolute path"),
        ("unix:/run/", "absolute path"),
        ("unix:/a\x00b", "absolute path"),
        (f"unix:/{'a' * 107}", "at most 107 bytes"),
    ],
)
def test_a_bad_address_is_explained(text: object, error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        parse_address(text)


def test_the_companion_finds_the_daemon_at_a_url_or_a_socket() -> None:
    assert parse_broker("http://broker.internal:8765/") == "http://broker.internal:8765"
    assert parse_broker("unix:/run/b.sock") == "unix:/run/b.sock"
