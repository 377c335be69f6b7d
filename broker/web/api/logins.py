"""Logins: `POST /v1/logins/{app}`, and for SDKs WeChat's own two paths.

On WeChat's paths the client's key stands where the AppSecret would.

What WeChat answers is passed on byte for byte, whatever it says. Our own refusals are problems on
`/v1`, and errcodes with HTTP 200 on WeChat's paths, as SDKs expect them (WECHAT.md W89).
"""

from collections.abc import Iterable
from typing import Any, Final

from aiohttp import web

from broker.core.credential import Account, Endpoint
from broker.core.errcodes import Failure
from broker.core.login import CODE, LoginKind
from broker.core.secret import Secret
from broker.http.problems import ProblemError, problem
from broker.logins.limits import LoginsBusyError
from broker.logins.logins import Logins
from broker.web.dialect import ErrcodeError
from broker.web.gate import CLIENT, JUDGE, Client, Gate, answers_in_errcodes, authenticates
from broker.web.params import NO_STORE, fields_of, sdk_params
from broker.web.words import english

SCOPE: Final = "login"
KINDS: Final = {kind.value: kind for kind in LoginKind}
PATHS: Final = {  # by kind: the path, and what the code is called
    LoginKind.MINIPROGRAM: ("/{slashes:/*}sns/jscode2session", "js_code"),
    LoginKind.WEB: ("/{slashes:/*}sns/oauth2/access_token", "code"),
}
GRANT: Final = "authorization_code"
USED: Final = "The code counts as used: let the user log in again."
WECOM_LOGS_IN: Final = (
    "Apps of WeCom log in with the app's token and no secret: call /cgi-bin/auth/getuserinfo"
    " through the proxy."
)
LACKS_SCOPE: Final = f"This client lacks the scope `{SCOPE}`."


class LoginDesk:
    """The handlers; with `compat`, for WeChat's own paths too."""

    def __init__(self, logins: Logins, gate: Gate, *, compat: bool) -> None:
        self._logins, self._gate, self._compat = logins, gate, compat

    def routes(self) -> list[web.RouteDef]:
        """The route of /v1; GET and POST on WeChat's paths, with any number of leading slashes."""
        handlers = {
            LoginKind.MINIPROGRAM: self.exchange_for_session,
            LoginKind.WEB: self.exchange_for_user_token,
        }
        compat = [
            web.route(method, path, handlers[kind])
            for kind, (path, _) in PATHS.items()
            for method in ("GET", "POST")
        ]
        return [web.post("/v1/logins/{app}", self.log_in), *(compat if self._compat else [])]

    async def log_in(self, request: web.Request) -> web.Response:
        """Take `{"kind", "code"}`, and answer with what WeChat answers."""
        client, account = request[CLIENT], self._account(request)
        request[JUDGE] = self._account
        fields = await fields_of(request, {"kind": str, "code": str})
        kind, code = KINDS.get(fields.get("kind", "")), fields.get("code", "")
        if kind is None:
            raise ProblemError(422, "invalid-body", f"`kind` is {' or '.join(KINDS)}.")
        if not CODE.fullmatch(code):
            raise ProblemError(422, "invalid-body", "`code` is 1 to 512 visible characters.")
        if self._logins.stopping:
            sentence = "The broker is stopping; the code is still good."
            return problem(503, "stopping", sentence, 1)
        try:
            answer = await self._logins.exchange(client.name, account, kind, Secret(code))
        except LoginsBusyError as why:
            return problem(429, "login-throttled", f"The code is still good: {why}.", 1)
        if isinstance(answer, Failure):
            reason = english.FAILURES.reason(answer)
            detail = f"WeChat gave no answer to the login: {reason}. {USED}"
            raise ProblemError(502, "upstream-unavailable", detail)
        return _passed(answer)

    @answers_in_errcodes
    @authenticates
    async def exchange_for_session(self, request: web.Request) -> web.Response:
        """Answer as WeChat's `/sns/jscode2session` does."""
        return _passed(await self._exchange(request, LoginKind.MINIPROGRAM))

    @answers_in_errcodes
    @authenticates
    async def exchange_for_user_token(self, request: web.Request) -> web.Response:
        """Answer as WeChat's `/sns/oauth2/access_token` does."""
        return _passed(await self._exchange(request, LoginKind.WEB))

    def _account(self, request: web.Request) -> Account:
        """Return the app, for a client that may log people in to it. Raises ProblemError.

        A client that may not use an app does not learn whether there is one.
        """
        client, name = request[CLIENT], request.match_info["app"]
        if SCOPE not in client.scopes:
            raise ProblemError(403, "insufficient-scope", LACKS_SCOPE)
        account = self._logins.find(name)
        if not client.may_use(account.name if account else name):
            raise ProblemError(403, "insufficient-scope", "This client may not use that app.")
        if account is None:
            raise ProblemError(
                404, "unknown-app", "No app has this name or AppID; GET /v1/status lists them."
            )
        if account.endpoint is Endpoint.WECOM:
            raise ProblemError(422, "no-code-exchange", WECOM_LOGS_IN)
        return account

    async def _exchange(self, request: web.Request, kind: LoginKind) -> bytes:
        """Exchange as an SDK asks for it. Raises ErrcodeError for our own refusals."""
        name = PATHS[kind][1]
        given = _once(await sdk_params(request), {"appid", "secret", "grant_type", name})
        client, account = self._identify(given)
        request[CLIENT], request[JUDGE] = client, lambda _: self._identify(given)
        code = given.get(name, "")
        if given.get("grant_type", GRANT) != GRANT:
            raise ErrcodeError(40002)
        if not code:
            raise ErrcodeError(41008)
        if not CODE.fullmatch(code):
            raise ErrcodeError(40029, "(token-broker: a code has 1 to 512 visible characters)")
        if self._logins.stopping:
            raise ErrcodeError(-1, "(token-broker: stopping; the code is still good)")
        try:
            answer = await self._logins.exchange(client.name, account, kind, Secret(code))
        except LoginsBusyError as why:
            raise ErrcodeError(45011, f"(token-broker: {why}; the code is still good)") from None
        if isinstance(answer, Failure):
            raise ErrcodeError(-1, f"(token-broker: {english.FAILURES.reason(answer)}. {USED})")
        return answer

    def _identify(self, given: dict[str, str]) -> tuple[Client, Account]:
        """Find out who asks for which app, complaining in WeChat's order."""
        appid, secret = given.get("appid", ""), given.get("secret", "")
        if not appid or not secret:
            raise ErrcodeError(41004 if appid else 41002)
        client = self._gate.client_of(secret)
        if client is None:
            raise ErrcodeError(40125)
        if SCOPE not in client.scopes:
            raise ErrcodeError(48001, f"(token-broker: {LACKS_SCOPE})")
        account = self._logins.find(appid)
        if account is None or not client.may_use(account.name):
            raise ErrcodeError(40013)
        if account.endpoint is Endpoint.WECOM:
            raise ErrcodeError(40013, f"(token-broker: {WECOM_LOGS_IN})")
        return client, account


def _passed(answer: bytes) -> web.Response:
    """Pass WeChat's answer on. It calls its JSON text/plain (WECHAT.md W86)."""
    return web.Response(body=answer, content_type="application/json", headers=NO_STORE)


def _once(pairs: Iterable[tuple[str, Any]], known: set[str]) -> dict[str, str]:
    """Return the known parameters. Raises ErrcodeError for one that is given twice."""
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            continue
        if name in found:
            raise ErrcodeError(47001, f"(token-broker: {name} is given twice)")
        if not isinstance(value, str):
            raise ErrcodeError(47001, f"(token-broker: {name} must be a string)")
        found[name] = value
    return found
