"""A code in, WeChat's answer out: one call for each login, and nothing of it kept.

A code is good once, so a call is never repeated (WECHAT.md W78); what comes back is the user's
(WECHAT.md W80).

Logins share no slot with token calls. They spend no quota of the ledger's, since WeChat counts them
by user, and so nothing is stored of them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, Protocol

from broker.core.credential import Account
from broker.core.errcodes import RULES, Failure
from broker.core.login import (
    CODE_REFUSED,
    SECRET_REFUSED,
    LoginKind,
    is_about_the_app,
    login_failure,
    proves_the_secret,
)
from broker.core.ports import Clock, EventSink
from broker.core.secret import Secret
from broker.logins.limits import LoginLimits, LoginsBusyError
from broker.logins.record import LoginRecord

REREAD_GAP_S: Final = 10.0  # between two readings of one app's secret that logins cause
GOOD: Final = "good"
_NAMED: Final = CODE_REFUSED | RULES.keys()  # errcodes that get a series of their own

CountLogin = Callable[[str, str, str], None]  # an app, a kind and an outcome


class CodeExchanger(Protocol):
    """Who makes the call."""

    async def exchange_code(
        self, account: Account, kind: LoginKind, code: Secret
    ) -> bytes | Failure:
        """Send one request and return its body, or what went wrong.

        Ends within the call timeout and does not raise.
        """


class Logins:
    """Every app's logins.

    `count` is told of each login that was tried. `on_secret_refused` is called with an app's name
    when WeChat refuses the secret, at most once in 10 s for each app: there may be another one in
    its file by now, which :meth:`admit` takes.
    """

    def __init__(
        self,
        exchanger: CodeExchanger,
        limits: LoginLimits,
        clock: Clock,
        emit: EventSink,
        count: CountLogin,
        on_secret_refused: Callable[[str], None],
    ) -> None:
        self._exchanger, self._limits, self._clock = exchanger, limits, clock
        self._emit, self._count, self._on_secret_refused = emit, count, on_secret_refused
        self._accounts: dict[str, Account] = {}
        self._by_appid: dict[str, Account] = {}
        self._records: dict[str, LoginRecord] = {}
        self._reread_at: dict[str, float] = {}
        self.stopping = False

    # --- apps -------------------------------------------------------------------------------------

    def admit(self, accounts: Iterable[Account]) -> None:
        """Go by these accounts from now on. News of a secret that has changed is news no more."""
        before = self._accounts
        self._accounts = {account.name: account for account in accounts}
        self._by_appid = {account.appid: account for account in self._accounts.values()}
        self._records = {
            name: record for name, record in self._records.items() if name in self._accounts
        }
        for name, record in self._records.items():
            if name in before and before[name].secret != self._accounts[name].secret:
                record.news = None

    def use(self, account: Account) -> None:
        """Go by another secret of an app that is known, where this is another one."""
        known = self._accounts.get(account.name)
        if known is not None and known.secret != account.secret:
            self.admit((self._accounts | {account.name: account}).values())
            self._emit("secret-changed", account.name)

    def find(self, app: str) -> Account | None:
        """Return the account of an app, named by name or AppID.

        Apps of WeCom's are found too, though they log in otherwise.
        """
        return self._accounts.get(app) or self._by_appid.get(app)

    def record(self, app: str) -> LoginRecord | None:
        """Return how an app's logins go; None where nobody has logged in."""
        return self._records.get(app)

    def news(self) -> dict[str, Failure]:
        """Return, by app, what a person must see to."""
        return {app: it.news for app, it in self._records.items() if it.news is not None}

    def stop(self) -> None:
        """Begin no more calls."""
        self.stopping = True

    # --- the exchange -----------------------------------------------------------------------------

    async def exchange(
        self, client: str, account: Account, kind: LoginKind, code: Secret
    ) -> bytes | Failure:
        """Exchange a code for `client`.

        Returns WeChat's answer as it came, errcodes included, or why there is none. Whatever is
        returned, the code counts as used. Raises LoginsBusyError where no call is made.
        """
        with self._counted(account, kind) as ended:
            try:
                with self._limits.passing(client, account.name):
                    answer = await self._exchanger.exchange_code(account, kind, code)
            except LoginsBusyError as why:
                ended(why.outcome)
                raise
            failure = answer if isinstance(answer, Failure) else login_failure(answer)
            ended(_outcome(failure))
            self._note(account, kind, failure)
        return failure if failure is not None and failure.errcode is None else answer

    @contextmanager
    def _counted(self, account: Account, kind: LoginKind) -> Iterator[Callable[[str], None]]:
        """Count one login by how it ended; "abandoned" where its client has hung up meanwhile."""
        outcome = "abandoned"

        def ended(how: str) -> None:
            nonlocal outcome
            outcome = how

        try:
            yield ended
        finally:
            record = self._records.setdefault(account.name, LoginRecord())
            record.counts[kind, outcome] += 1
            record.last_at = self._clock.wall()
            self._count(account.name, kind.value, outcome)

    def _note(self, account: Account, kind: LoginKind, failure: Failure | None) -> None:
        """Note what an answer says about the app itself, and tell it once, not for each login."""
        record = self._records.setdefault(account.name, LoginRecord())
        if failure is not None:
            failure = replace(failure, wall=self._clock.wall())
            record.failure, record.failed_kind = failure, kind
        if proves_the_secret(failure) and record.news is not None:
            record.news = None
            self._emit("logins-accepted", account.name)
        if failure is None or not is_about_the_app(failure):
            return
        if record.news is None or record.news.errcode != failure.errcode:
            facts = {"errcode": failure.errcode, "ip": failure.ip, "rid": failure.rid}
            self._emit("logins-refused", account.name, kind=kind.value, **facts)
        record.news = failure
        if failure.errcode in SECRET_REFUSED:
            self._reread(account.name)

    def _reread(self, app: str) -> None:
        now = self._clock.now()
        if now >= self._reread_at.get(app, now):
            self._reread_at[app] = now + REREAD_GAP_S
            self._on_secret_refused(app)


def _outcome(failure: Failure | None) -> str:
    """Name an outcome for metrics and status: a bounded set, whatever WeChat answers."""
    if failure is None:
        return GOOD
    if failure.errcode is not None:
        return f"errcode {failure.errcode}" if failure.errcode in _NAMED else "errcode other"
    return "lost" if failure.lost else "unreachable"
