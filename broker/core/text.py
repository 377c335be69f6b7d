"""The filter at the border: what of a text from outside may be shown, stored or passed on."""

import ipaddress
import re
from typing import Final

# Control characters move a terminal's cursor or end a line; halves of a character (surrogates)
# cannot be written as UTF-8; characters that turn the direction of writing make a text look like
# another one. Joiners stay: emoji and Persian need them.
_UNFIT: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+"
)
_BETWEEN_WORDS: Final = re.compile(r"[\s,;]+")
REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


def visible(text: str) -> str:
    """Return the text with each run of characters that must not be shown as one U+FFFD."""
    return _UNFIT.sub(REPLACEMENT, text)


def address_in(text: str) -> str | None:
    """Return the first IP address that is a word of the text.

    An address with a scope (`fe80::1%eth0`) is none: anything may stand after the percent sign.
    """
    for word in _BETWEEN_WORDS.split(text):
        try:
            address = ipaddress.ip_address(word)
        except ValueError:
            continue
        if getattr(address, "scope_id", None) is None:
            return str(address)
    return None
