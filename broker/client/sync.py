"""The client for threads: the standard library's HTTP, and a thread that follows the broker."""

import errno
import http.client
import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from broker.client import protocol
from broker.client.protocol import (
    Answer,
    BrokerAddress,
    BrokerError,
    BrokerUnavailable,
    ClientKey,
    Memory,
    Token,
    now,
)

T = TypeVar("T")

UNAUTHORIZED: Final = 401


class TokenClient:
    """The current token of one app, from memory.

    For any number of threads; after a fork it follows anew by itself.

    Methods raise BrokerUnavailable where there is no token, BrokerError where the broker refuses
    this client.
    """

    def __init__(
        self,
        broker: str = "http://127.0.0.1:8765",
        app: str = "main",
        *,
        key: str | None = None,
        key_file: str | Path | None = None,
    ) -> None:
        """`broker` is `http://HOST:PORT` or `unix:/PATH`; raises ValueError for anything else."""
        self._address = BrokerAddress.parse(broker)
        self._app = app
        self._key = ClientKey(key, key_file)
        self._memory = Memory()
        self._tickets: dict[str, Memory] = {}
        self._reset()
        _CLIENTS.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._stopped = threading.Event()
        self._follower: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop following; a watch ends."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()

    def get(self, min_ttl: float = 0) -> str:
        """Return the token's value, good for at least `min_ttl` seconds.

        From memory that costs no I/O. What counts is the broker's promise (:class:`Token`); while
        the broker cannot be reached it is WeChat's own end.
        """
        until, value = self._memory.held
        if until > now() + min_ttl:
            return value
        return self.token(min_ttl).value

    def token(self, min_ttl: float = 0) -> Token:
        """The token with its version and age."""
        with self._asking:  # of many threads at a cold start, one asks
            token = self._held(self._memory, protocol.token_path(self._app, min_ttl), min_ttl)
            self._follow()
            return token

    def ticket(self, kind: str = "jsapi") -> Token:
        """Return a ticket, from memory while it lives: no ticket is replaced before its end.

        `kind` is `jsapi` or `wx_card`; at WeCom `jsapi` or `agent_config`.
        """
        with self._asking:
            memory = self._tickets.setdefault(kind, Memory())
            return self._held(memory, protocol.ticket_path(self._app, kind))

    def _held(self, memory: Memory, path: str, min_ttl: float = 0) -> Token:
        """What memory holds, asked for where it is missing or near its end."""
        if (token := memory.good(min_ttl, protocol.NEAR_EXPIRY_S)) is not None:
            return token
        try:
            self._ask("GET", path, into=memory)
        except BrokerUnavailable:
            if (token := memory.good(min_ttl)) is not None:
                return token  # The broker is away, or has nothing new: the copy is good.
            raise
        return memory.taken()

    def report(self, token: str, errcode: int | None = None) -> str:
        """Tell the broker that WeChat refused this token, and keep the token it answers with.

        Returns the outcome: `superseded`, `refreshed` or `verified`.
        """
        fields = self._ask(
            "POST", protocol.report_path(self._app), protocol.report_body(token, errcode)
        )
        return str(fields.get("outcome", ""))

    def login(self, code: str, kind: str = "miniprogram") -> dict[str, Any]:
        """Exchange a login code, of a Mini Program or (`kind="web"`) of a page, site or mobile app.

        Returns WeChat's answer as it is: `openid`, `session_key` or a user's token; or an
        `errcode`. A code is good once. Raises BrokerError: the code counts as used then, unless the
        error is `login-throttled` or `stopping`.
        """
        body = protocol.login_body(kind, code)
        return protocol.read_login(self._answer("POST", protocol.login_path(self._app), body))

    def using(self, call: Callable[[str], T]) -> T:
        """Call with the token. If WeChat's answer refuses the token, report it and call once more.

        An answer that is no mapping is taken for a good one.
        """
        token = self.get()
        answer = call(token)
        if (errcode := protocol.refusal(answer)) is None or not self.refused(token, errcode):
            return answer
        return call(self.get())

    def refused(self, token: str, errcode: int) -> bool:
        """Report a refused token. Return True if calling once more may help."""
        try:
            self.report(token, errcode)
        except BrokerUnavailable:
            return False
        except BrokerError as error:
            # WeChat accepted the token a moment ago, or another one is on its way.
            return error.code == "report-throttled"
        return True

    def watch(self) -> Iterator[Token]:
        """Each token in turn, the current one first, until :meth:`close`."""
        token = self.token()
        while not self._stopped.is_set():
            yield token
            with self._changed:
                while not self._stopped.is_set() and self._memory.version == token.version:
                    self._changed.wait()
                token = self._memory.token or token

    # --- following --------------------------------------------------------------------------------

    def _follow(self) -> None:
        if self._follower is None or not self._follower.is_alive():
            self._follower = threading.Thread(
                target=_following, args=[weakref.ref(self), self._stopped], daemon=True
            )
            self._follower.start()

    def follow_once(self) -> None:
        """Wait, at most a minute, for another token. For the follower's thread."""
        version = self._memory.version
        match = {"If-None-Match": f'"{version}"'} if version else {}
        self._ask("GET", protocol.token_path(self._app, watch=version is not None), headers=match)

    # --- asking -----------------------------------------------------------------------------------

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        headers: dict[str, str] | None = None,
        into: Memory | None = None,
    ) -> dict[str, Any]:
        memory = into or self._memory
        try:
            answer = self._answer(method, path, body, headers)
            token, fields = protocol.read(answer, waited="wait=" in path)
        except BrokerError as error:
            with self._changed:
                memory.came_through(error)
            raise
        with self._changed:
            if token is None:
                memory.came_through(None)
            else:
                memory.keep(token, answer.asked_at)
                self._changed.notify_all()
        return fields

    def _answer(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Ask; once more with another key where this one is refused and its file holds another."""
        try:
            answer = self._send(method, path, body, headers or {})
            if answer.status == UNAUTHORIZED and self._key.reread():
                answer = self._send(method, path, body, headers or {})
        except (OSError, http.client.HTTPException) as error:
            raise protocol.unreachable(error) from None
        return answer

    def _send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        kind = {"Content-Type": "application/json"} if body is not None else {}
        connection = BrokerConnection(self._address, protocol.timeout(path))
        asked_at = now()
        try:
            connection.request(method, path, body, {**self._key.headers(), **kind, **headers})
            response = connection.getresponse()
            return Answer(response.status, response.read(), asked_at, now())
        finally:
            connection.close()


class BrokerConnection(http.client.HTTPConnection):
    """An HTTP connection to the broker over TCP or over its Unix socket.

    It connects with the first request. `timeout_s` bounds each read and write.
    """

    def __init__(self, address: BrokerAddress, timeout_s: float) -> None:
        super().__init__(address.host, address.port, timeout=timeout_s)
        self._path = address.path

    def connect(self) -> None:
        """Open the socket. Raises OSError."""
        if self._path is None:
            super().connect()
            return
        if not hasattr(socket, "AF_UNIX"):
            raise OSError(errno.EAFNOSUPPORT, "no Unix sockets on this system")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _following(reference: "weakref.ref[TokenClient]", stopped: threading.Event) -> None:
    """Follow the broker until the client is closed, or forgotten by everyone."""
    failures = 0
    while not stopped.is_set() and (client := reference()) is not None:
        try:
            client.follow_once()
            failures = 0
        except BrokerError as error:
            failures += 1
            wait = protocol.pause(failures, error)
            del client  # so that it can be collected while we wait
            stopped.wait(wait)


def _after_fork() -> None:
    for client in list(_CLIENTS):
        client._reset()  # noqa: SLF001 -- threads and locks stayed in the parent


_CLIENTS: "weakref.WeakSet[TokenClient]" = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
