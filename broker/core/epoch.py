"""Epochs: the first half of a token's version.

They tell one history of calls from the next, so that no version recurs.
"""

import secrets
from typing import Final

# Letters and digits that cannot be mistaken for each other.
ALPHABET: Final = "23456789abcdefghjkmnpqrstuvwxyz"
_LENGTH: Final = 4
_EMERGENCY: Final = "0"  # of no alphabet of ours, so that no drawn epoch is taken for one of these


def drawn() -> str:
    """A new epoch."""
    return "".join(secrets.choice(ALPHABET) for _ in range(_LENGTH))


def in_emergency(epoch: str) -> str:
    """The epoch of calls that the store of `epoch` does not know of."""
    return epoch.removesuffix(_EMERGENCY) + _EMERGENCY
