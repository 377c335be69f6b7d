"""Handles: what a client of the proxy gets in the place of a token.

An SDK sends its token with each call, so a handle tells the proxy which client calls, for which
app, without any header. A handle holds both names and a MAC over them. Nothing is remembered, so
handles outlive a restart. A handle ends when the client's key, its right to the app, or the app's
secret changes. The MAC's key is made of the secret and of the key's digest: the digest alone may
stand in a configuration that others can read.
"""

import base64
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from broker.core.credential import NEVER
from broker.tokens.keeper import Keeper
from broker.tokens.registry import Registry
from broker.web.gate import Client, Gate

SCOPE: Final = "proxy"
PREFIX: Final = "tb_"
# What SDKs reserve for a token (WECHAT.md W5). Names have at most 64 characters, so a handle fits.
LONGEST: Final = 512
# So many questions for a handle within so many seconds of a refusal are a loop (WECHAT.md W93).
LOOPS_AFTER: Final = 30
LOOP_WINDOW_S: Final = 60.0
MOST_KNOWN: Final = 4096  # pairs of a client and an app; of more, the latest
MAC_BYTES: Final = hashlib.sha256().digest_size


@dataclass(slots=True)
class Refusals:
    """What the proxy saw of a client's calls: WeChat refused this version, the last time then.

    `questions` counts how often the client has asked for its handle since the first refusal.
    """

    version: str | None
    last_at: float = NEVER
    questions: int = 0


class Handles:
    """Makes and reads the handles of a gate's clients. `now` gives steady seconds."""

    def __init__(self, gate: Gate, registry: Registry, now: Callable[[], float]) -> None:
        self._gate = gate
        self._registry = registry
        self._now = now
        self._refusals: OrderedDict[tuple[str, str], Refusals] = OrderedDict()
        self._keys: Mapping[str, Client] | None = None
        self._clients: dict[str, tuple[str, Client]] = {}

    def of(self, client: Client, keeper: Keeper) -> str | None:
        """Return the client's handle for the app, or None if the client gets the token itself."""
        known = self._by_name().get(client.name)
        if known is None or SCOPE not in client.scopes:
            return None
        names = f"{client.name}\n{keeper.account.name}".encode()
        packed = base64.urlsafe_b64encode(_mac(known[0], keeper, names) + names)
        return PREFIX + packed.decode().rstrip("=")

    def open(self, handle: str) -> tuple[Client, Keeper] | None:
        """Return the client and the app of a handle; None if it is not, or no longer, valid."""
        if not handle.startswith(PREFIX) or len(handle) > LONGEST:
            return None
        packed = handle.removeprefix(PREFIX)
        try:
            raw = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
            name, _, app = raw[MAC_BYTES:].decode().partition("\n")
        except ValueError:
            return None
        known, keeper = self._by_name().get(name), self._registry.find(app)
        if known is None or keeper is None or keeper.account.name != app:
            return None
        digest, client = known
        if not hmac.compare_digest(raw[:MAC_BYTES], _mac(digest, keeper, raw[MAC_BYTES:])):
            return None
        return (client, keeper) if SCOPE in client.scopes and client.may_use(app) else None

    def note_refused(self, client: Client, keeper: Keeper, version: str | None) -> None:
        """Note that WeChat refused the token of a client's call, and that the client was told."""
        key = client.name, keeper.account.name
        refusals = self._refusals_of(key, version) or Refusals(version)
        refusals.last_at = self._now()
        self._refusals[key] = refusals
        self._refusals.move_to_end(key)
        if len(self._refusals) > MOST_KNOWN:
            self._refusals.popitem(last=False)

    def is_loop(self, client: Client, keeper: Keeper) -> bool:
        """Return True if a client asks for its handle ever again since its calls are refused.

        The handle it would get is the one that it has, so another question changes nothing. Each
        call counts as a question.
        """
        key = client.name, keeper.account.name
        found = self._refusals_of(key, keeper.credential.version)
        if found is None:
            return False
        found.questions += 1
        return found.questions > LOOPS_AFTER

    def _refusals_of(self, key: tuple[str, str], version: str | None) -> Refusals | None:
        """Return what holds still of a pair's refusals: of this version, within the window."""
        found = self._refusals.get(key)
        if found is None or found.version != version:
            return None
        return found if self._now() <= found.last_at + LOOP_WINDOW_S else None

    def _by_name(self) -> Mapping[str, tuple[str, Client]]:
        """Return each client, and its key's digest, by the client's name."""
        if self._keys is not self._gate.keys:  # the configuration was read again
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
