"""The platform behind the endpoints: accounts, secrets, tokens, quotas (WECHAT.md W1).

No I/O; the clock is told.
"""

import hashlib
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .answers import WeChatRefusal
from .options import SandboxOptions
from .tokens import IssuedToken, Lineage, QuotaWindow

CLASSIC, STABLE, WECOM = "token", "stable_token", "gettoken"
AGENT_CONFIG = "agent_config"
_TICKET_S = 7200
_MOST_ACCOUNTS = 10_000
_ROTATION_S = 300
_FORCE_GAP_S = 30


@dataclass(frozen=True)
class IssueResult:
    """A token call that succeeded."""

    token: IssuedToken
    expires_in: int
    minted: bool


@dataclass
class SimulatedAccount:
    """An account of the platform, with everything that is counted per account."""

    appid: str
    followers: int
    withhold: bool
    calls: QuotaWindow
    """Classic token calls."""
    stable_calls: QuotaWindow = field(default_factory=lambda: QuotaWindow(500_000))
    stable_minute: QuotaWindow = field(default_factory=lambda: QuotaWindow(10_000, seconds=60))
    forced: QuotaWindow = field(default_factory=lambda: QuotaWindow(20))
    forced_at: float = -math.inf
    user_get: QuotaWindow = field(default_factory=lambda: QuotaWindow(500))
    classic: Lineage = field(default_factory=Lineage)
    stable: Lineage = field(default_factory=Lineage)
    tickets: dict[str, IssuedToken] = field(default_factory=dict)
    _secret: bytes = field(default=b"", repr=False)

    def tokens(self) -> list[IssuedToken]:
        """Return every token the platform still remembers."""
        return self.classic.alive() + self.stable.alive()

    def spend(self, endpoint: str, now: float) -> None:
        """Count one token call; 45011 or 45009 when a limit is reached."""
        if endpoint == STABLE and not self.stable_minute.take(now):
            raise WeChatRefusal(45011)
        if not (self.stable_calls if endpoint == STABLE else self.calls).take(now):
            raise WeChatRefusal(45009)

    def reset_secret(self, secret: str) -> None:
        """Take another secret from now on, as after a reset in the console."""
        self._secret = _digest(secret)

    def check_secret(self, secret: str) -> None:
        """Bind the first secret ever shown; any other is refused from then on."""
        digest = _digest(secret)
        self._secret = self._secret or digest
        if digest != self._secret:
            raise WeChatRefusal(40125)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="replace")).digest()


class World:
    """All accounts. Methods raise `Refusal` for what WeChat refuses."""

    def __init__(self, options: SandboxOptions, now: Callable[[], float]) -> None:
        self.options = options
        self.accounts: dict[str, SimulatedAccount] = {}
        self._clock = now
        self._ahead_s = 0.0
        self._owners: dict[str, tuple[SimulatedAccount, IssuedToken]] = {}
        self._corps: OrderedDict[tuple[str, str], IssuedToken] = OrderedDict()
        self._corp_tickets: dict[tuple[str, str, str], IssuedToken] = {}
        self._corp_hours: dict[tuple[str, str, str], QuotaWindow] = {}

    def now(self) -> float:
        """Unix seconds: the told clock, and what `advance` added."""
        return self._clock() + self._ahead_s

    def advance(self, seconds: float) -> None:
        """Let that much time pass."""
        self._ahead_s += seconds

    def account(self, appid: str) -> SimulatedAccount:
        """Return the account, created at first sight; 40013 for what is no appid."""
        if not re.fullmatch(r"wx[0-9A-Za-z_-]{1,62}", appid):
            raise WeChatRefusal(40013)
        if appid not in self.accounts:
            if len(self.accounts) >= _MOST_ACCOUNTS:
                raise WeChatRefusal(-1)
            options = self.options
            quota = QuotaWindow(options.daily_quota)
            self.accounts[appid] = SimulatedAccount(
                appid, options.followers, options.withhold_avatars, quota
            )
        return self.accounts[appid]

    def admit(self, endpoint: str, params: Mapping[str, str]) -> SimulatedAccount:
        """Check a token call's parameters.

        A call that names an account counts, whatever comes of it (WECHAT.md W18).
        """
        if not params.get("appid"):
            raise WeChatRefusal(41002)
        account = self.account(params["appid"])
        account.spend(endpoint, self.now())
        if params.get("grant_type") != "client_credential":
            raise WeChatRefusal(40002)
        if not params.get("secret"):
            raise WeChatRefusal(41004)
        account.check_secret(params["secret"])
        return account

    def classic(self, account: SimulatedAccount) -> IssueResult:
        """Mint, and give the previous token its overlap."""
        if account.classic.current:
            account.classic.current.refuse(self.now() + self.options.overlap)
        return self._mint(account, account.classic)

    def stable(self, account: SimulatedAccount, *, force: bool) -> IssueResult:
        """Return the same token, unless it is in its last seconds or is forcibly replaced.

        WECHAT.md W8, W9, W13.
        """
        now, lineage = self.now(), account.stable
        current = lineage.current
        if force and now - account.forced_at >= _FORCE_GAP_S:
            return self._force(account)
        if current and current.left(now) >= min(_ROTATION_S, self.options.expires_in / 2):
            return IssueResult(current, current.left(now), minted=False)
        if current and current.errcode(now) == 0:
            current.expires_at = current.refused_from = (
                now + self.options.overlap
            )  # "then both work 5 minutes"
        return self._mint(account, lineage)

    def repeat(self, lineage: Lineage) -> IssueResult | None:
        """Return the current token once more, even if it is due or refused.

        None if it has no second left.
        """
        token, now = lineage.current, self.now()
        return (
            IssueResult(token, token.left(now), minted=False)
            if token and token.left(now) > 0
            else None
        )

    def gettoken(self, corpid: str, secret: str) -> IssueResult:
        """Return WeCom's one token for a corpid and a secret, with its seconds (WECHAT.md W62)."""
        now, key = self.now(), (corpid, secret)
        token = self._corps.get(key)
        if token and token.left(now) > 0:
            return IssueResult(token, token.left(now), minted=False)
        self._corps[key] = token = IssuedToken(now + self.options.expires_in)
        if len(self._corps) > _MOST_ACCOUNTS:
            self._corps.popitem(last=False)
        return IssueResult(token, self.options.expires_in, minted=True)

    def corp(self, value: str) -> tuple[str, str] | None:
        """Return the company and the app's secret that a token of WeCom's belongs to.

        None for an unknown token; raises 42001 for one that is too old.
        """
        found = next((key for key, token in self._corps.items() if token.value == value), None)
        if found is not None and self.now() >= self._corps[found].expires_at:
            raise WeChatRefusal(42001)
        return found

    def corp_ticket(self, kind: str, corpid: str, secret: str) -> tuple[IssuedToken, int]:
        """Return WeCom's ticket and its seconds (WECHAT.md W68 to W70).

        There is one for each company, or one for each app.
        """
        now = self.now()
        for key, limit in (((kind, corpid, ""), 400), ((kind, corpid, secret), 100)):
            window = self._corp_hours.setdefault(key, QuotaWindow(limit, seconds=3600))
            if not window.take(now):
                raise WeChatRefusal(45009)
        key = (kind, corpid, secret if kind == AGENT_CONFIG else "")
        ticket = self._corp_tickets.get(key)
        if ticket is None or ticket.left(now) <= 0:
            ticket = self._corp_tickets[key] = IssuedToken(now + _TICKET_S)
        return ticket, ticket.left(now)

    def owner(self, value: str) -> SimulatedAccount | None:
        """Whose token that is or was, as far as the platform remembers."""
        return self._owners[value][0] if value in self._owners else None

    def authorize(self, value: str) -> SimulatedAccount:
        """Check the access_token of a data call (WECHAT.md W31)."""
        if not value:
            raise WeChatRefusal(41001)
        if not re.fullmatch(r"[!-~]{16,}", value):
            raise WeChatRefusal(40014)
        if value not in self._owners:
            raise WeChatRefusal(40001)
        account, token = self._owners[value]
        if errcode := token.errcode(self.now()):
            raise WeChatRefusal(errcode)
        return account

    def kill(self, account: SimulatedAccount) -> None:
        """Refuse every token there is from now on."""
        for token in account.tokens():
            token.refuse(self.now())

    def _force(self, account: SimulatedAccount) -> IssueResult:
        now = self.now()
        if not account.forced.take(now):
            raise WeChatRefusal(45009)
        account.forced_at = now
        for token in account.stable.alive():
            token.refuse(now)
        return self._mint(account, account.stable)

    def _mint(self, account: SimulatedAccount, lineage: Lineage) -> IssueResult:
        token = IssuedToken(self.now() + self.options.expires_in)
        forgotten = lineage.succeed(token)
        if forgotten:
            del self._owners[forgotten.value]
        self._owners[token.value] = (account, token)
        return IssueResult(token, self.options.expires_in, minted=True)
