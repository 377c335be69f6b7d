"""Handles: what a client of the proxy is given in the place of a token, so that its SDK needs no header to say who it is.

A handle names client and app, with a MAC. Nothing is remembered: it overlap_after_replacement
restarts, and it dies with the client's key, with its right to the app, and with the app's secret.
The MAC's key is made of both, since the digest of a client's key alone may stand in a configuration
that others read.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import Final

from broker.tokens.keeper import Keeper
from broker.tokens.registry import Registry
from broker.web.gate import Client, Gate

SCOPE: Final = "proxy"
PREFIX: Final = "tb_"
LONGEST: Final = (
    512  # what SDKs reserve for a token (WECHAT.md W5); names have at most 64 characters
)
SIZE: Final = hashlib.sha256().digest_size


class Handles:
    """Makes and reads the handles of a gate's clients."""

    def __init__(self, gate: Gate, registry: Registry) -> None:
        self._gate = gate
        self._registry = registry
        self._keys: Mapping[str, Client] | None = None
        self._clients: dict[str, tuple[str, Client]] = {}

    def of(self, client: Client, keeper: Keeper) -> str | None:
        """The client's handle for the app; None where it gets the token itself."""
        known = self._known().get(client.name)
        if known is None or SCOPE not in client.scopes:
            return None
        names = f"{client.name}\n{keeper.account.name}".encode()
        return PREFIX + base64.urlsafe_b64encode(
            _mac(known[0], keeper, names) + names
        ).decode().rstrip("=")

    def open(self, handle: str) -> tuple[Client, Keeper] | None:
        """Whose handle this is, and for which app; None where it is nobody's, or not any more."""
        if not handle.startswith(PREFIX) or len(handle) > LONGEST:
            return None
        packed = handle.removeprefix(PREFIX)
        try:
            raw = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
            who, _, app = raw[SIZE:].decode().partition("\n")
        except ValueError:
            return None
        known, keeper = self._known().get(who), self._registry.find(app)
        if known is None or keeper is None or keeper.account.name != app:
            return None
        digest, client = known
        is_true = hmac.compare_digest(raw[:SIZE], _mac(digest, keeper, raw[SIZE:]))
        return (
            (client, keeper) if is_true and SCOPE in client.scopes and client.may_use(app) else None
        )

    def _known(self) -> Mapping[str, tuple[str, Client]]:
        if self._keys is not self._gate.keys:  # they were read again
            self._keys = self._gate.keys
            self._clients = {client.name: (digest, client) for digest, client in self._keys.items()}
        return self._clients


def _mac(digest: str, keeper: Keeper, names: bytes) -> bytes:
    key = hmac.digest(
        keeper.account.secret.reveal().encode(),
        b"token-broker handle\0" + digest.encode(),
        "sha256",
    )
    return hmac.digest(key, names, "sha256")
