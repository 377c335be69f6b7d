"""The platform behind the endpoints: accounts, secrets, tokens, quotas (wechat.md §1). No I/O; the clock is told."""

import hashlib
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .answers import Refusal
from .options import Options
from .tokens import Lineage, Token, Window

CLASSIC, STABLE, WECOM = "token", "stable_token", "gettoken"
_MOST_ACCOUNTS = 10_000
_ROTATION_S = 300
_FORCE_GAP_S = 30


@dataclass(frozen=True)
class Grant:
    """A token call that succeeded."""

    token: Token
    expires_in: int
    minted: bool


@dataclass
class Account:
    """An account of the platform, with everything that is counted per account."""

    appid: str
    followers: int
    withhold: bool
    calls: Window
    """Classic token calls."""
    stable_calls: Window = field(default_factory=lambda: Window(500_000))
    stable_minute: Window = field(default_factory=lambda: Window(10_000, seconds=60))
    forced: Window = field(default_factory=lambda: Window(20))
    forced_at: float = -math.inf
    user_get: Window = field(default_factory=lambda: Window(500))
    classic: Lineage = field(default_factory=Lineage)
    stable: Lineage = field(default_factory=Lineage)
    tickets: dict[str, Token] = field(default_factory=dict)
    _secret: bytes = field(default=b"", repr=False)

    def tokens(self) -> list[Token]:
        """Return every token the platform still remembers."""
        return self.classic.alive() + self.stable.alive()

    def spend(self, endpoint: str, now: float) -> None:
        """Count one token call; 45011 or 45009 when a limit is reached."""
        if endpoint == STABLE and not self.stable_minute.take(now):
            raise Refusal(45011)
        if not (self.stable_calls if endpoint == STABLE else self.calls).take(now):
            raise Refusal(45009)

    def check_secret(self, secret: str) -> None:
        """Bind the first secret ever shown; any other is refused from then on."""
        digest = hashlib.sha256(secret.encode(errors="replace")).digest()
        self._secret = self._secret or digest
        if digest != self._secret:
            raise Refusal(40125)


class World:
    """All accounts. Methods raise `Refusal` for what WeChat refuses."""

    def __init__(self, options: Options, now: Callable[[], float]) -> None:
        self.options = options
        self.accounts: dict[str, Account] = {}
        self._clock = now
        self._ahead_s = 0.0
        self._owners: dict[str, tuple[Account, Token]] = {}
        self._corps: OrderedDict[tuple[str, str], Token] = OrderedDict()

    def now(self) -> float:
        """Unix seconds: the told clock, and what `advance` added."""
        return self._clock() + self._ahead_s

    def advance(self, seconds: float) -> None:
        """Let that much time pass."""
        self._ahead_s += seconds

    def account(self, appid: str) -> Account:
        """Return the account, created at first sight; 40013 for what is no appid."""
        if not re.fullmatch(r"wx[0-9A-Za-z_-]{1,62}", appid):
            raise Refusal(40013)
        if appid not in self.accounts:
            if len(self.accounts) >= _MOST_ACCOUNTS:
                raise Refusal(-1)
            options = self.options
            quota = Window(options.daily_quota)
            self.accounts[appid] = Account(appid, options.followers, options.withhold_avatars, quota)
        return self.accounts[appid]

    def admit(self, endpoint: str, params: Mapping[str, str]) -> Account:
        """Judge a token call's parameters. A call that names an account counts, whatever comes of it (wechat.md §1)."""
        if not params.get("appid"):
            raise Refusal(41002)
        account = self.account(params["appid"])
        account.spend(endpoint, self.now())
        if params.get("grant_type") != "client_credential":
            raise Refusal(40002)
        if not params.get("secret"):
            raise Refusal(41004)
        account.check_secret(params["secret"])
        return account

    def classic(self, account: Account) -> Grant:
        """Mint, and give the previous token its overlap."""
        if account.classic.current:
            account.classic.current.refuse(self.now() + self.options.overlap)
        return self._mint(account, account.classic)

    def stable(self, account: Account, *, force: bool) -> Grant:
        """Return the same token, unless it is in its last seconds, or is forcibly replaced (wechat.md §1)."""
        now, lineage = self.now(), account.stable
        current = lineage.current
        if force and now - account.forced_at >= _FORCE_GAP_S:
            return self._force(account)
        if current and current.left(now) >= min(_ROTATION_S, self.options.expires_in / 2):
            return Grant(current, current.left(now), minted=False)
        if current and current.errcode(now) == 0:
            current.expires_at = current.refused_from = now + self.options.overlap  # "then both work 5 minutes"
        return self._mint(account, lineage)

    def repeat(self, lineage: Lineage) -> Grant | None:
        """Give the current token once more, due or not, refused or not; None if it has no second left."""
        token, now = lineage.current, self.now()
        return Grant(token, token.left(now), minted=False) if token and token.left(now) > 0 else None

    def gettoken(self, corpid: str, secret: str) -> Grant:
        """WeCom: one token per (corpid, secret), repeated with its remaining seconds (wechat.md §5)."""
        now, key = self.now(), (corpid, secret)
        token = self._corps.get(key)
        if token and token.left(now) > 0:
            return Grant(token, token.left(now), minted=False)
        self._corps[key] = token = Token(now + self.options.expires_in)
        if len(self._corps) > _MOST_ACCOUNTS:
            self._corps.popitem(last=False)
        return Grant(token, self.options.expires_in, minted=True)

    def owner(self, value: str) -> Account | None:
        """Whose token that is or was, as far as the platform remembers."""
        return self._owners[value][0] if value in self._owners else None

    def authorize(self, value: str) -> Account:
        """Judge the access_token of a data call (wechat.md §2)."""
        if not value:
            raise Refusal(41001)
        if not re.fullmatch(r"[!-~]{16,}", value):
            raise Refusal(40014)
        if value not in self._owners:
            raise Refusal(40001)
        account, token = self._owners[value]
        if errcode := token.errcode(self.now()):
            raise Refusal(errcode)
        return account

    def kill(self, account: Account) -> None:
        """Refuse every token there is from now on."""
        for token in account.tokens():
            token.refuse(self.now())

    def _force(self, account: Account) -> Grant:
        now = self.now()
        if not account.forced.take(now):
            raise Refusal(45009)
        account.forced_at = now
        for token in account.stable.alive():
            token.refuse(now)
        return self._mint(account, account.stable)

    def _mint(self, account: Account, lineage: Lineage) -> Grant:
        token = Token(self.now() + self.options.expires_in)
        forgotten = lineage.succeed(token)
        if forgotten:
            del self._owners[forgotten.value]
        self._owners[token.value] = (account, token)
        return Grant(token, self.options.expires_in, minted=True)
