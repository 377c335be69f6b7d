"""The only module that speaks to WeChat with an AppSecret: for tokens, tickets and logins.

Errors of others end here, without their text: it holds the URL, the URL the secret.
"""

import asyncio
import contextlib
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
from yarl import URL

from broker.core.answer import MOST_BYTES, token_answer, verdict
from broker.core.credential import CORP_TICKETS, Account, Endpoint
from broker.core.errcodes import Failure, FailureCode, Kind
from broker.core.login import LoginKind
from broker.core.ports import Minted, Verdict
from broker.core.secret import Secret
from broker.http.no_retry import session_without_retries
from broker.http.way_out import (
    DIRECT,
    WayOut,
    failure_of_call,
    is_of_proxy,
    under,
)

TOKEN_PATH: Final = "/cgi-bin/token"  # noqa: S105 -- a path
STABLE_PATH: Final = "/cgi-bin/stable_token"
WECOM_PATH: Final = "/cgi-bin/gettoken"
# Where each ticket is, and what is asked beside the token (WECHAT.md W54, W68, W69)
TICKET_CALLS: Final = {
    Endpoint.JSAPI: ("/cgi-bin/ticket/getticket", {"type": "jsapi"}),
    Endpoint.WX_CARD: ("/cgi-bin/ticket/getticket", {"type": "wx_card"}),
    Endpoint.CORP_JSAPI: ("/cgi-bin/get_jsapi_ticket", {}),
    Endpoint.AGENT_CONFIG: ("/cgi-bin/ticket/get", {"type": "agent_config"}),
}
# How each kind of login is asked for, and what it calls its code (WECHAT.md W75, W76)
LOGIN_CALLS: Final = {
    LoginKind.MINIPROGRAM: ("/sns/jscode2session", "js_code"),
    LoginKind.WEB: ("/sns/oauth2/access_token", "code"),
}
# The cheap call that tells whether a token lives (WECHAT.md W34, W67), and its sister, which is
# asked where the first gives no verdict (W36, W37). WeCom has both.
CHECK_PATHS: Final = ("/cgi-bin/get_api_domain_ip", "/cgi-bin/getcallbackip")


class WeChat:
    """A :class:`broker.core.ports.Upstream` over HTTP."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        api_base: str,
        timeout: float,
        wecom_base: str,
        way_out: WayOut = DIRECT,
    ) -> None:
        self._session = session
        self._base, self._wecom_base = URL(api_base), URL(wecom_base)
        self._timeout = timeout
        self._way_out = way_out

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, api_base: str, timeout_s: float, wecom_base: str = "", way_out: WayOut = DIRECT
    ) -> AsyncIterator["WeChat"]:
        """Open a client whose every request goes over the wire at most once.

        `timeout_s` is for a whole call. The bases are URLs that may have a path.
        """
        # A connection per call: calls are rare, and an idle connection that WeChat has closed would
        # lose an answer.
        session = session_without_retries(
            aiohttp.TCPConnector(force_close=True, limit=0, ssl=way_out.tls()),
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "User-Agent": "token-broker",
            },
            trace_configs=[_note_when_sent()],
        )
        async with session:
            yield cls(session, api_base, timeout_s, wecom_base or api_base, way_out)

    @property
    def wechat_base(self) -> URL:
        """Where calls go that are of no account."""
        return self._base

    def base(self, account: Account) -> URL:
        """Return the URL that the paths of an account's calls are appended to, without a slash."""
        return self._wecom_base if account.endpoint is Endpoint.WECOM else self._base

    async def fetch(self, account: Account, *, force: bool) -> Minted | Failure:
        """See :class:`broker.core.ports.Upstream`."""
        is_wecom, url = account.endpoint is Endpoint.WECOM, self.base(account)
        fields = {
            "grant_type": "client_credential",
            "appid": account.appid,
            "secret": account.secret.reveal(),
        }
        if account.endpoint is Endpoint.STABLE:
            answer = await self._call(
                "POST", under(url, STABLE_PATH), json={**fields, "force_refresh": force}
            )
        elif is_wecom:
            corp = {"corpid": account.appid, "corpsecret": account.secret.reveal()}
            answer = await self._call("GET", under(url, WECOM_PATH), params=corp)
        else:
            answer = await self._call("GET", under(url, TOKEN_PATH), params=fields)
        return answer if isinstance(answer, Failure) else token_answer(answer, wecom=is_wecom)

    async def check(self, account: Account, token: Secret) -> Verdict:
        """See :class:`broker.core.ports.Upstream`."""
        found = Verdict.UNKNOWN
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout):
                for path in CHECK_PATHS:
                    url = under(self.base(account), path)
                    answer = await self._call("GET", url, params={"access_token": token.reveal()})
                    if isinstance(answer, Failure):
                        break
                    found = verdict(answer)
                    if found is not Verdict.UNDECIDED:
                        break
        return found

    async def ticket(self, kind: Endpoint, token: Secret) -> Minted | Failure:
        """Fetch a ticket, which `token` pays for (WECHAT.md W54)."""
        is_wecom, (path, params) = kind in CORP_TICKETS, TICKET_CALLS[kind]
        base = self._wecom_base if is_wecom else self._base
        answer = await self._call(
            "GET", under(base, path), params={"access_token": token.reveal(), **params}
        )
        if isinstance(answer, Failure):
            return answer
        return token_answer(answer, "ticket", wecom=is_wecom)

    async def exchange_code(
        self, account: Account, kind: LoginKind, code: Secret
    ) -> bytes | Failure:
        """See :class:`broker.logins.logins.CodeExchanger`."""
        path, parameter = LOGIN_CALLS[kind]
        fields = {
            "appid": account.appid,
            "secret": account.secret.reveal(),
            parameter: code.reveal(),
            "grant_type": "authorization_code",
        }
        return await self._call("GET", under(self._base, path), params=fields)

    async def _call(self, method: str, url: URL, **request: Any) -> bytes | Failure:
        """Make one request; the body of a 200, or what went wrong."""
        sent = SimpleNamespace(headers=False)
        status = None
        proxy = self._way_out.proxy_for(url)
        try:
            # The session's own deadline starts late (after name resolution queues); this one covers
            # everything.
            async with (
                asyncio.timeout(self._timeout),
                self._session.request(
                    method,
                    url,
                    allow_redirects=False,
                    trace_request_ctx=sent,
                    proxy=proxy,
                    **request,
                ) as response,
            ):
                status = response.status
                if proxy and status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
                    return Failure(Kind.PROXY, FailureCode.PROXY_PASSWORD)
                if status != HTTPStatus.OK:
                    return Failure(
                        Kind.TRANSIENT,
                        FailureCode.HTTP_STATUS,
                        retry_after=_retry_after(response.headers.get("Retry-After")),
                        facts={"status": str(status)},
                    )
                body = await _read(response)
                return (
                    body
                    if body is not None
                    else Failure(Kind.TRANSIENT, FailureCode.UNREADABLE, lost=True)
                )
        # Whatever it is, it must not travel on with its text
        except Exception as error:  # noqa: BLE001
            in_tunnel = proxy is not None and not sent.headers
            kind = Kind.PROXY if is_of_proxy(error, in_tunnel=in_tunnel) else Kind.TRANSIENT
            code, facts = failure_of_call(error, self._timeout, in_tunnel=in_tunnel)
            lost = sent.headers and status in {None, HTTPStatus.OK}
            return Failure(kind, code, lost=lost, facts=facts)


def _note_when_sent() -> aiohttp.TraceConfig:
    """Tell a call that never left from one whose answer is lost.

    The first minted nothing; the second may have minted a token.
    """

    async def note(
        _session: aiohttp.ClientSession, context: SimpleNamespace, _params: object
    ) -> None:
        context.trace_request_ctx.headers = True

    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(note)
    return trace


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    """Return the decoded body, None where it is over the bound or cannot be decoded.

    The session decodes nothing: aiohttp would inflate 48 KB to 50 MB.
    """
    raw = bytearray()
    async for chunk in response.content.iter_any():
        raw += chunk
        if len(raw) > MOST_BYTES:
            return None
    if response.headers.get("Content-Encoding", "identity").lower() == "identity":
        return bytes(raw)
    try:  # we asked for none; a gateway may compress all the same
        body = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32).decompress(bytes(raw), MOST_BYTES + 1)
    except zlib.error:
        return None
    return body if len(body) <= MOST_BYTES else None


def _retry_after(value: str | None) -> float | None:
    """Seconds, from seconds or a date; None where it is neither, or past."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value[:15])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
