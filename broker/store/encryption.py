"""Tokens at rest, encrypted with AES-256-GCM.

Each is bound to its account and version, so that no row can be put in another's place.
"""

import base64
import hashlib
import os
from collections.abc import Callable
from typing import Final, Protocol

MARK: Final = "gcm1:"
NONCE_BYTES: Final = 12


class Seal(Protocol):
    """How a token is written down. `bound_to` names the row that it is written into."""

    def seal(self, token: str, bound_to: str) -> str:
        """Return what goes to the disk."""

    def unseal(self, stored: str, bound_to: str) -> str | None:
        """Return the token, or None where it cannot be read."""


class Plain:
    """Tokens as they are.

    A token that was sealed once reads as none. After the refresh that follows, it is plain.
    """

    def seal(self, token: str, bound_to: str) -> str:  # noqa: ARG002 -- the protocol's
        """Return what goes to the disk."""
        return token

    def unseal(self, stored: str, bound_to: str) -> str | None:  # noqa: ARG002 -- the protocol's
        """Return the token, or None where it was sealed with a key."""
        return None if stored.startswith(MARK) else stored


class Sealed:
    """Tokens encrypted with a key: any text of at least 16 characters, hashed to 256 bits.

    `previous` is the key before a rotation: it reads, and nothing is written with it. Needs the
    package cryptography.
    """

    def __init__(
        self, key: str, previous: str | None = None, random: Callable[[int], bytes] = os.urandom
    ) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import (  # noqa: PLC0415
            AESGCM,
        )

        keys = [key] if previous is None else [key, previous]
        self._ciphers = [AESGCM(hashlib.sha256(it.encode()).digest()) for it in keys]
        self._random = random

    def seal(self, token: str, bound_to: str) -> str:
        """Return what goes to the disk, encrypted with the new key."""
        nonce = self._random(NONCE_BYTES)
        sealed = self._ciphers[0].encrypt(nonce, token.encode(), bound_to.encode())
        return MARK + base64.b64encode(nonce + sealed).decode()

    def unseal(self, stored: str, bound_to: str) -> str | None:
        """Return the token, or None where neither key opens it.

        A plain token is not read either: anybody may have written it.
        """
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 -- the same

        if not stored.startswith(MARK):
            return None
        try:
            sealed = base64.b64decode(stored.removeprefix(MARK), validate=True)
        except ValueError:
            return None
        nonce, rest = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(nonce, rest, bound_to.encode()).decode()
            except (ValueError, InvalidTag):
                continue
        return None
