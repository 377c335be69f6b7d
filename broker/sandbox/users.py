"""Who logs in: codes, sessions and users' tokens (WECHAT.md W75 to W79, W82 to W84, W111).

No I/O; the clock is told.
"""

import base64
import secrets
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from .answers import WeChatRefusal
from .tokens import QuotaWindow

MINIPROGRAM: Final = "miniprogram"
WEB: Final = "web"
USERINFO: Final = "snsapi_userinfo"
_CODE_S: Final = 300
_TOKEN_S: Final = 7200
_REFRESH_S: Final = 30 * 86_400
_MOST: Final = 100_000
_LOGINS_A_MINUTE: Final = 100


@dataclass(frozen=True)
class SimulatedUser:
    """Somebody who uses an app, as the app sees them."""

    appid: str
    openid: str
    unionid: str | None = None
    snapshot: bool = False
    scope: str = "snsapi_base"

    def known(self) -> dict[str, Any]:
        """Return what a login tells of them."""
        return {"openid": self.openid} | ({"unionid": self.unionid} if self.unionid else {})


@dataclass(frozen=True)
class Phone:
    """Who opens the authorise page, and how WeChat treats them (WECHAT.md W111, W114).

    With ``snapshot`` the dialog is withheld and a virtual account answers. With ``silent`` there is
    no dialog either, unless ``forcePopup`` asks for it.
    """

    openid: str
    unionid: str | None = None
    snapshot: bool = False
    silent: bool = False


@dataclass
class IssuedCode:
    """A code: good once, for five minutes, for one kind of login."""

    user: SimulatedUser
    kind: str
    expires_at: float
    blocked: bool = False
    used: bool = False


@dataclass
class UserToken:
    """What a web login gives: a user's token, and what renews it."""

    user: SimulatedUser
    expires_at: float
    refresh_token: str = field(repr=False)


class Users:
    """Codes and users' tokens of all apps; of each the oldest are forgotten.

    Methods raise `WeChatRefusal`.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._codes: OrderedDict[str, IssuedCode] = OrderedDict()
        self._tokens: OrderedDict[str, UserToken] = OrderedDict()
        self._refresh: OrderedDict[str, tuple[SimulatedUser, float]] = OrderedDict()
        self._minutes: defaultdict[tuple[str, str], QuotaWindow] = defaultdict(
            lambda: QuotaWindow(_LOGINS_A_MINUTE, seconds=60)
        )

    def code(self, user: SimulatedUser, kind: str, *, blocked: bool = False) -> str:
        """Give a code, as WeChat gives it to the user's phone."""
        code = secrets.token_urlsafe(24)
        _keep(self._codes, code, IssuedCode(user, kind, self._now() + _CODE_S, blocked))
        return code

    def redeem(self, appid: str, kind: str, code: str) -> SimulatedUser:
        """Take a code back: once, in time, by the app it is for."""
        issued = self._codes.get(code)
        if issued is None or issued.user.appid != appid or issued.kind != kind:
            raise WeChatRefusal(40029)
        if issued.used:
            raise WeChatRefusal(40163)
        if self._now() >= issued.expires_at:
            raise WeChatRefusal(40029)
        issued.used = True
        if issued.blocked:
            raise WeChatRefusal(40226)
        if len(self._minutes) > _MOST:
            self._minutes.clear()
        if not self._minutes[appid, issued.user.openid].take(self._now()):
            raise WeChatRefusal(45011)
        return issued.user

    def session(self, user: SimulatedUser) -> dict[str, Any]:
        """Answer a Mini Program's login."""
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        return {"session_key": key, **user.known()}

    def token(self, user: SimulatedUser, refresh_token: str | None = None) -> dict[str, Any]:
        """Answer a web login, or the renewal of one."""
        if refresh_token is None:
            refresh_token = f"98_{secrets.token_urlsafe(60)}"
            _keep(self._refresh, refresh_token, (user, self._now() + _REFRESH_S))
        value = f"98_{secrets.token_urlsafe(60)}"
        _keep(self._tokens, value, UserToken(user, self._now() + _TOKEN_S, refresh_token))
        return {
            "access_token": value,
            "expires_in": _TOKEN_S,
            "refresh_token": refresh_token,
            "scope": user.scope,
            **user.known(),
            **({"is_snapshotuser": 1} if user.snapshot else {}),
        }

    def renew(self, appid: str, refresh_token: str) -> dict[str, Any]:
        """Give another token for the same user."""
        user, expires_at = self._refresh.get(refresh_token, (None, 0.0))
        if user is None or user.appid != appid:
            raise WeChatRefusal(40030)
        if self._now() >= expires_at:
            raise WeChatRefusal(42002)
        return self.token(user, refresh_token)

    def owner(self, token: str, openid: str) -> SimulatedUser:
        """Return whose token that is."""
        if not token:
            raise WeChatRefusal(41001)
        held = self._tokens.get(token)
        if held is None:
            raise WeChatRefusal(40001)
        if self._now() >= held.expires_at:
            raise WeChatRefusal(42001)
        if held.user.openid != openid:
            raise WeChatRefusal(40003)
        return held.user


def _keep(kept: OrderedDict[str, Any], key: str, value: Any) -> None:
    kept[key] = value
    if len(kept) > _MOST:
        kept.popitem(last=False)
