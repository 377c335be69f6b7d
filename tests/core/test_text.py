"""One filter for all texts from outside."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.text import address_in, visible

FAMILY = "👨‍👩‍👧"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("小林", "小林"),
        (FAMILY, FAMILY),
        ("می‌خواهم", "می‌خواهم"),
        ("half \ud83d", "half �"),
        ("\x1b[31mred\x1b[0m", "�[31mred�[0m"),
        ("\x9b2Jgone", "�2Jgone"),
        ("one\r\ntwo", "one�two"),
        ("evil\u202egpj.exe", "evil�gpj.exe"),
        ("a\u2028b", "a�b"),
    ],
)
def test_what_steers_or_cannot_be_written_is_replaced(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(st.characters(), max_size=50))
def test_whatever_comes_can_be_written_and_moves_no_cursor(text: str) -> None:
    shown = visible(text)
    shown.encode()
    assert not any(ord(one) < 32 or 127 <= ord(one) < 160 for one in shown)
    assert visible(shown) == shown


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist", "203.0.113.7"),
        ("not in whitelist: 2001:DB8::7", "2001:db8::7"),
        ("ip fe80::1%\x1b[31m", None),
        ("ip fe80::1%eth0, 203.0.113.7", "203.0.113.7"),
        ("nothing here", None),
    ],
)
def test_an_address_with_a_scope_is_none(text: str, address: str | None) -> None:
    assert address_in(text) == address
