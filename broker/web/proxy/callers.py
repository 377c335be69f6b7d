"""Who calls through the proxy, and for which app.

A caller is known by its bearer key, by its handle, or as one of this machine's own programs.
"""

from itertools import islice
from typing import Final

from aiohttp import hdrs, web

from broker.tokens.keeper import Keeper
from broker.tokens.registry import Registry
from broker.web.dialect import ErrcodeError
from broker.web.gate import CLIENT, LOCAL, REQUEST_HEADER, SOCKET, Client, Gate, by_unix_socket
from broker.web.handles import SCOPE, Handles

APP_HEADER: Final = "X-Token-Broker-App"

Caller = tuple[Client, Keeper]


class Callers:
    """Finds them; whoever may not learns nothing of which apps there are."""

    def __init__(self, gate: Gate, registry: Registry, handles: Handles) -> None:
        self._gate, self._registry, self._handles = gate, registry, handles

    def of(self, request: web.Request, presented: str) -> Caller | web.Response:
        """Client and app, or the gate's refusal.

        `presented`: the request's access_token, or nothing. Raises Refusal.
        """
        with_key = bool(self._gate.keys) and hdrs.AUTHORIZATION in request.headers
        if not with_key and (held := self._handles.open(presented)) is not None:
            return self._allowed(held[0], self._named(request, held[0]) or held[1], held[1])
        is_local = not self._gate.keys or by_unix_socket(request)
        if with_key or (is_local and REQUEST_HEADER in request.headers):
            if (refusal := self._gate.identify(request)) is not None:
                return refusal
            client = request[CLIENT]
            return self._allowed(
                client, self._named(request, client) or self._implied(client, presented)
            )
        recognized = self._recognized(presented) if is_local else None
        if recognized is None:
            raise ErrcodeError(40001 if presented else 41001)
        client = SOCKET if self._gate.keys else LOCAL
        return self._allowed(client, self._named(request, client) or recognized)

    def note_refused(self, client: Client, keeper: Keeper, version: str | None) -> None:
        """Note that a client was told that WeChat refuses the token of this version."""
        self._handles.note_refused(client, keeper, version)

    def _allowed(self, client: Client, keeper: Keeper | None, only: Keeper | None = None) -> Caller:
        if SCOPE not in client.scopes or (only is not None and keeper is not only):
            raise ErrcodeError(40013)
        if keeper is None:
            raise ErrcodeError(41002, f"(token-broker: say which app in the header {APP_HEADER})")
        return client, keeper

    def _named(self, request: web.Request, client: Client) -> Keeper | None:
        """The app that the header names; None without it.

        Of several apps of a corpid, the one the client may use.
        """
        names = request.headers.getall(APP_HEADER, [])
        if not names:
            return None
        keeper = self._registry.find(names[0]) if len(names) == 1 else None
        if keeper is not None and keeper.account.name == names[0] and client.may_use(names[0]):
            return keeper
        found = [
            one
            for one in self._registry
            if one.account.appid == names[0] and client.may_use(one.account.name)
        ]
        if len(names) != 1 or len(found) != 1:
            raise ErrcodeError(40013)
        return found[0]

    def _implied(self, client: Client, presented: str) -> Keeper | None:
        """The app whose token or handle was sent, else the only one that the client may use."""
        held = self._handles.open(presented) if presented else None
        keeper = held[1] if held is not None and held[0] == client else self._recognized(presented)
        if keeper is not None and client.may_use(keeper.account.name):
            return keeper
        usable = list(
            islice((one for one in self._registry if client.may_use(one.account.name)), 2)
        )
        return usable[0] if len(usable) == 1 else None

    def _recognized(self, presented: str) -> Keeper | None:
        return (
            next((one for one in self._registry if one.recognizes(presented)), None)
            if presented
            else None
        )
