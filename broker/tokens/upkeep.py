"""What keeps one account's token: what is served of it, what is stored, and the refresher."""

import math

from broker.core.credential import Account, Endpoint
from broker.tokens.dependencies import Dependencies
from broker.tokens.live import LiveCredential
from broker.tokens.refresher import Refresher
from broker.tokens.store_sync import StoreSync

Identity = tuple[str, Endpoint]


def identity(account: Account) -> Identity:
    """Return what the store knows an account by. Its name, secret and quota may change."""
    return account.id, account.endpoint


class Upkeep:
    """The upkeep of one account.

    A keeper has one. A reload of the configuration may hand it to another keeper, when the account
    gets another name, and may give it another secret or quota.

    `on_plan_changed` is called when the next look may be due at another time than before.
    """

    def __init__(self, account: Account, dependencies: Dependencies) -> None:
        self.on_plan_changed = _nobody
        self.live = LiveCredential(
            account, dependencies.clock, dependencies.policy, dependencies.on_change
        )
        self.sync = StoreSync(self.live, dependencies)
        self.refresher = Refresher(self.live, self.sync, dependencies, self._plan_changed)

    def _plan_changed(self) -> None:
        self.on_plan_changed()

    @property
    def account(self) -> Account:
        """The account, with the name, secret and quota in force."""
        return self.live.account

    async def start(self) -> None:
        """Take up what the store holds. Calls nobody. Raises StoreError."""
        await self.refresher.start()

    def look(self) -> float:
        """Act if something is due. Return the steady time of the next look.

        While a flight is under way that is never: the plan changes with its end.
        """
        return self.refresher.due_at() if self.refresher.look() is None else math.inf

    def take(self, account: Account) -> None:
        """Go by another name, secret or quota of the same account from the next call on.

        A pause that was about the secret before ends with the next look.
        """
        before, self.live.account = self.live.account, account
        if account.daily_quota != before.daily_quota:
            self.refresher.forget_denials()
        if account.secret != before.secret:
            self.sync.reload_pending = True
        self.on_plan_changed()

    def stop(self) -> None:
        """Begin no more calls, and wake everyone who waits for a change."""
        self.refresher.stop()
        self.live.wake()

    async def drain(self) -> None:
        """See the call under way to its end; it is bounded by the call timeout."""
        await self.refresher.drain()


def _nobody() -> None:
    """Tell nobody that the plan has changed: no keeper has the upkeep yet."""
