"""Tokens at rest, encrypted: AES-256-GCM, each bound to its account and version, so that no row can be put in another's place."""

import base64
import hashlib
import os
from collections.abc import Callable
from typing import Final, Protocol

MARK: Final = "gcm1:"
NONCE_BYTES: Final = 12


class Seal(Protocol):
    """How a token is written down."""

    def seal(self, token: str, bound_to: str) -> str:
        """Return what goes to the disk."""

    def open(self, kept: str, bound_to: str) -> str | None:
        """Return the token, or None where this key does not open it."""


class Plain:
    """Tokens as they are.

    What was sealed once reads as no token: one refresh, and it is plain again.
    """

    def seal(self, token: str, bound_to: str) -> str:  # noqa: ARG002 -- the protocol's
        """Return what goes to the disk."""
        return token

    def open(self, kept: str, bound_to: str) -> str | None:  # noqa: ARG002 -- the protocol's
        """Return the token, or None where it was sealed with a key."""
        return None if kept.startswith(MARK) else kept


class Sealed:
    """Tokens encrypted with a key: any text of at least 16 characters, hashed to 256 bits.

    Needs the package cryptography.
    """

    def __init__(self, key: str, random: Callable[[int], bytes] = os.urandom) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import (  # noqa: PLC0415
            AESGCM,
        )

        self._cipher = AESGCM(hashlib.sha256(key.encode()).digest())
        self._random = random

    def seal(self, token: str, bound_to: str) -> str:
        """Return what goes to the disk."""
        nonce = self._random(NONCE_BYTES)
        return (
            MARK
            + base64.b64encode(
                nonce + self._cipher.encrypt(nonce, token.encode(), bound_to.encode())
            ).decode()
        )

    def open(self, kept: str, bound_to: str) -> str | None:
        """Return the token, or None where this key does not open it, or it was plain: a plain one may be anybody's."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 -- the same

        if not kept.startswith(MARK):
            return None
        try:
            sealed = base64.b64decode(kept.removeprefix(MARK), validate=True)
            return self._cipher.decrypt(
                sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound_to.encode()
            ).decode()
        except (ValueError, InvalidTag):
            return None
