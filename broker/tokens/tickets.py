"""Tickets (WECHAT.md W54, W55, W68, W69), for the apps and types that somebody asks for.

They are kept like tokens, by keepers of their own.

Nobody is fetched a ticket he never asked for: not every account may have them, and most do not need
them.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Protocol

from broker.core.credential import Account, Endpoint, Policy, ticket_kinds
from broker.core.errcodes import TOKEN_REFUSED, Failure, FailureCode, Kind
from broker.core.ports import Minted, Verdict
from broker.core.quota import DAY
from broker.core.secret import Secret
from broker.core.serving import Served
from broker.tokens.dependencies import URGENT, Dependencies
from broker.tokens.keeper import Keeper
from broker.tokens.registry import Registry
from broker.tokens.upkeep import identity

REFUSED: Final = Failure(Kind.TRANSIENT, FailureCode.TICKET_TOKEN_REFUSED)
AT_ONCE: Final = 16
STEPS: Final = (
    4  # of a fetch, each as long as a call may take: a token, a ticket, a report, a ticket
)


class Issuer(Protocol):
    """Who gives tickets for tokens."""

    async def ticket(self, kind: Endpoint, token: Secret) -> Minted | Failure:
        """Fetch a ticket; ends within the call timeout and does not raise."""


class ByToken:
    """A :class:`broker.core.ports.Upstream` for tickets.

    Each ticket costs one call with the app's token, and two where that token is refused.
    """

    def __init__(self, tokens: Registry, issuer: Issuer, timeout_s: float) -> None:
        self._tokens = tokens
        self._issuer = issuer
        self._timeout_s = timeout_s

    # Nothing forces a ticket
    async def fetch(self, account: Account, *, force: bool) -> Minted | Failure:  # noqa: ARG002
        """See :class:`broker.core.ports.Upstream`."""
        keeper = self._token_keeper(account)
        served = await keeper.get(patience_s=self._timeout_s) if keeper else None
        if keeper is None or not isinstance(served, Served):
            return Failure(Kind.TRANSIENT, FailureCode.NO_TOKEN_FOR_TICKET)
        answer = await self._with(served, account.endpoint)
        if not _is_refused(answer):
            return answer
        reported = await keeper.report(self._timeout_s, version=served.credential.version)
        if (
            isinstance(reported, tuple)
            and reported[1].credential.version != served.credential.version
        ):
            answer = await self._with(reported[1], account.endpoint)
        return REFUSED if _is_refused(answer) else answer

    def _token_keeper(self, account: Account) -> Keeper | None:
        """Return whose token a ticket is asked for with.

        For a company's that is any of its apps that has a token (WECHAT.md W68).
        """
        if account.endpoint is not Endpoint.CORP_JSAPI:
            return self._tokens.find(account.name.rpartition("/")[0])
        apps = [keeper for keeper in self._tokens if keeper.account.appid == account.appid]
        return next((keeper for keeper in apps if keeper.serve()), apps[0] if apps else None)

    async def check(self, account: Account, token: Secret) -> Verdict:  # noqa: ARG002
        """No cheap call tells if a ticket lives."""
        return Verdict.UNKNOWN

    async def _with(self, served: Served, kind: Endpoint) -> Minted | Failure:
        return await self._issuer.ticket(kind, served.token.value)


def _is_refused(answer: Minted | Failure) -> bool:
    return isinstance(answer, Failure) and answer.errcode in TOKEN_REFUSED


class Tickets:
    """The keepers of those tickets that were asked for within a day."""

    def __init__(self, tokens: Registry, dependencies: Dependencies, issuer: Issuer) -> None:
        timeout_s = dependencies.call_timeout_s
        # Slots of their own: a ticket's fetch waits for a token's, and must not take the place it
        # needs.
        self._dependencies = replace(
            dependencies,
            upstream=ByToken(tokens, issuer, timeout_s),
            slots=asyncio.Semaphore(AT_ONCE),
            urgent_slots=asyncio.Semaphore(URGENT),
            call_timeout_s=STEPS * timeout_s,
        )
        self._tokens = tokens
        self._registry = Registry([], self._dependencies)
        self._asked_at: dict[str, float] = {}
        self._opening = asyncio.Lock()

    async def keeper(self, app: Account, kind: str) -> Keeper | None:
        """Return the keeper of an app's ticket, taken up if nobody has asked before.

        None where the app has no such ticket. Raises StoreError.
        """
        if (wanted := _account(app, kind)) is None:
            return None
        self._asked_at[wanted.name] = self._dependencies.clock.now()
        async with self._opening:
            return self._registry.find(wanted.name) or await self._registry.add(wanted)

    def of(self, app: str) -> dict[str, Keeper]:
        """Return those an app has now, by kind."""
        owner = self._tokens.find(app)
        if owner is None:
            return {}
        found = {}
        for kind in ticket_kinds(owner.account.endpoint):
            wanted = _account(owner.account, kind)
            if wanted is not None and (keeper := self._registry.find(wanted.name)) is not None:
                found[kind] = keeper
        return found

    def tick(self) -> None:
        """Look at every ticket that may need it; let go of those nobody asks for any more."""
        now = self._dependencies.clock.now()
        for name in [name for name, at in self._asked_at.items() if now > at + DAY]:
            del self._asked_at[name]
            self._registry.drop(name)
        self._registry.tick()

    def on_store_changed(self, account: str | None) -> None:
        """Another process that shares the store may have changed an account."""
        self._registry.on_store_changed(account)

    async def apply_accounts(self, accounts: Sequence[Account]) -> None:
        """Let go of the tickets of apps that are not among these any more; rename the others."""
        all_of_them = (
            _account(account, kind)
            for account in accounts
            for kind in ticket_kinds(account.endpoint)
        )
        possible = {identity(one): one for one in all_of_them if one is not None}
        kept, asked_at = [], {}
        for keeper in self._registry:
            if (account := possible.get(identity(keeper.account))) is not None:
                kept.append(account)
                asked_at[account.name] = self._asked_at[keeper.account.name]
        self._asked_at = asked_at
        await self._registry.apply_accounts(kept)  # which begins none, and so awaits nothing

    def apply_policy(self, policy: Policy) -> None:
        """Go by another policy from now on."""
        self._registry.apply_policy(policy)

    def stop(self) -> None:
        """Begin no more calls and wake everyone who waits."""
        self._registry.stop()

    async def drain(self) -> None:
        """See the calls under way to their end."""
        await self._registry.drain()


def _account(app: Account, kind: str) -> Account | None:
    """Return as whose a ticket is kept; None where the app has no such ticket.

    A company has one of a kind, whatever app of its asks (WECHAT.md W68).
    """
    endpoint = ticket_kinds(app.endpoint).get(kind)
    if endpoint is None:
        return None
    owner = app.appid if endpoint is Endpoint.CORP_JSAPI else app.name
    return replace(app, name=f"{owner}/{kind}", endpoint=endpoint)
