"""The client for asyncio: one session, and one task that follows the broker."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import aiohttp

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


class AsyncTokenClient:
    """The current token of one app, from memory, for one event loop.

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
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        """`broker` is `http://HOST:PORT` or `unix:/PATH`; raises ValueError for anything else.

        A given session stays yours.
        """
        self._address = BrokerAddress.parse(broker)
        self._app = app
        self._key = ClientKey(key, key_file)
        self._memory = Memory()
        self._tickets: dict[str, Memory] = {}
        self._asking_tickets = asyncio.Lock()
        self._session = session
        self._owns_session = session is None
        self._asking: asyncio.Task[Token] | None = None
        self._follower: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop following, end watches, and close the session if it is ours."""
        self._closed = True
        self._changed.set()
        for task in (self._follower, self._asking):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, BrokerError):
                    await task
        if self._owns_session and self._session is not None:
            await self._session.close()

    async def get(self, min_ttl: float = 0) -> str:
        """Return the token's value, good for at least `min_ttl` seconds.

        From memory that costs no I/O. What counts is the broker's promise (:class:`Token`); while
        the broker cannot be reached it is WeChat's own end.
        """
        until, value = self._memory.held
        if until > now() + min_ttl:
            return value
        return (await self.token(min_ttl)).value

    async def token(self, min_ttl: float = 0) -> Token:
        """The token with its version and age."""
        if (token := self._memory.good(min_ttl, protocol.NEAR_EXPIRY_S)) is not None:
            return token
        if self._asking is None or self._asking.done():  # of many callers at a cold start, one asks
            self._asking = asyncio.create_task(self._fetch(min_ttl))
        try:
            await asyncio.shield(self._asking)
            # What another caller asked for may not live as long as we need.
            return self._memory.good(min_ttl) or await self._fetch(min_ttl)
        except BrokerUnavailable:
            if (token := self._memory.good(min_ttl)) is not None:
                self._start_following()
                return token  # The broker is away, or has nothing new: the copy is good.
            raise

    async def _fetch(self, min_ttl: float) -> Token:
        await self._ask("GET", protocol.token_path(self._app, min_ttl))
        self._start_following()
        return self._memory.taken()

    async def ticket(self, kind: str = "jsapi") -> Token:
        """Return a ticket, from memory while it lives: no ticket is replaced before its end.

        `kind` is `jsapi` or `wx_card`; at WeCom `jsapi` or `agent_config`.
        """
        async with self._asking_tickets:  # of many callers at a cold start, one asks
            memory = self._tickets.setdefault(kind, Memory())
            if (ticket := memory.good(0, protocol.NEAR_EXPIRY_S)) is not None:
                return ticket
            try:
                await self._ask("GET", protocol.ticket_path(self._app, kind), into=memory)
            except BrokerUnavailable:
                if (ticket := memory.good(0)) is not None:
                    return ticket  # the broker is away, the copy is good
                raise
            return memory.taken()

    async def report(self, token: str, errcode: int | None = None) -> str:
        """Tell the broker that WeChat refused this token, and keep the token it answers with.

        Returns the outcome: `superseded`, `refreshed` or `verified`.
        """
        fields = await self._ask(
            "POST", protocol.report_path(self._app), protocol.report_body(token, errcode)
        )
        return str(fields.get("outcome", ""))

    async def login(self, code: str, kind: str = "miniprogram") -> dict[str, Any]:
        """Exchange a login code, of a Mini Program or (`kind="web"`) of a page, site or mobile app.

        Returns WeChat's answer as it is: `openid`, `session_key` or a user's token; or an
        `errcode`. A code is good once. Raises BrokerError: the code counts as used then, unless the
        error is `login-throttled` or `stopping`.
        """
        body = protocol.login_body(kind, code)
        return protocol.read_login(await self._answer("POST", protocol.login_path(self._app), body))

    async def using(self, call: Callable[[str], Awaitable[T]]) -> T:
        """Call with the token. If WeChat's answer refuses the token, report it and call once more.

        An answer that is no mapping is taken for a good one.
        """
        token = await self.get()
        answer = await call(token)
        if (errcode := protocol.refusal(answer)) is None or not await self.refused(token, errcode):
            return answer
        return await call(await self.get())

    async def refused(self, token: str, errcode: int) -> bool:
        """Report a refused token. Return True if calling once more may help."""
        try:
            await self.report(token, errcode)
        except BrokerUnavailable:
            return False
        except BrokerError as error:
            # WeChat accepted the token a moment ago, or another one is on its way.
            return error.code == "report-throttled"
        return True

    async def watch(self) -> AsyncIterator[Token]:
        """Each token in turn, the current one first, until :meth:`close`."""
        token = await self.token()
        while not self._closed:
            yield token
            while not self._closed and self._memory.version == token.version:
                await self._changed.wait()
            token = self._memory.token or token

    # --- following --------------------------------------------------------------------------------

    def _start_following(self) -> None:
        if self._follower is None or self._follower.done():
            self._follower = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        failures = 0
        while not self._closed:
            try:
                await self._follow_once()
                failures = 0
            except BrokerError as error:
                failures += 1
                await asyncio.sleep(protocol.pause(failures, error))

    async def _follow_once(self) -> None:
        version = self._memory.version
        match = {"If-None-Match": f'"{version}"'} if version else {}
        await self._ask(
            "GET", protocol.token_path(self._app, watch=version is not None), headers=match
        )

    # --- asking -----------------------------------------------------------------------------------

    async def _ask(
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
            answer = await self._answer(method, path, body, headers)
            token, fields = protocol.read(answer, waited="wait=" in path)
        except BrokerError as error:
            memory.came_through(error)
            raise
        if token is None:
            memory.came_through(None)
            return fields
        memory.keep(token, answer.asked_at)
        self._changed.set()
        self._changed = asyncio.Event()
        return fields

    async def _answer(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Ask; once more with another key where this one is refused and its file holds another."""
        try:
            answer = await self._send(method, path, body, headers or {})
            if answer.status == UNAUTHORIZED and self._key.reread():
                answer = await self._send(method, path, body, headers or {})
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise protocol.unreachable(error) from None
        return answer

    async def _send(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> Answer:
        if self._session is None:
            connector = aiohttp.UnixConnector(self._address.path) if self._address.path else None
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar()
            )
        kind = {"Content-Type": "application/json"} if body is not None else {}
        asked_at = now()
        async with self._session.request(
            method,
            self._address.base + path,
            data=body,
            headers={**self._key.headers(), **kind, **headers},
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=protocol.timeout(path)),
        ) as response:
            return Answer(response.status, await response.read(), asked_at, now())
