"""Moving to another store: tokens, ledger and all.

Nobody runs on either store meanwhile: their locks prove it. Versions stay as they are where the
other store can keep them (a database does, a file begins an epoch of its own). What is spent stays
spent. All of it goes in one transaction, and the store that is left is not changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from broker.core.credential import Account, Credential
from broker.core.ports import Held, StoreRefused
from broker.store.rows import MOVED_COLUMNS

CallRow = dict[str, Any]

# An instant that was moved was put on another clock, and may differ by what that took.
SAME_MOMENT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class AccountExport:
    """What a store holds of an account.

    Instants are on the mover's steady clock, calls are as `history` returns them.
    """

    account: Account
    credential: Credential
    calls: Sequence[CallRow]

    def is_like(self, other: "AccountExport") -> bool:
        """Return True if the other one is this one, moved."""
        same_token = _value(self.credential) == _value(other.credential)
        # By their time: a wall that was set back leaves numbers and times in different orders, and
        # each store has its own.
        pairs = zip(*(sorted(it.calls, key=_when) for it in (self, other)), strict=False)
        return (
            same_token
            and len(self.calls) == len(other.calls)
            and all(_is_same(one, another) for one, another in pairs)
        )


class Movable(Protocol):
    """A store that can be left, and moved into."""

    async def accounts(self) -> list[tuple[Account, bool]]:
        """Return each account that the store holds, and whether it holds a token of that account.

        Raises StoreError.
        """

    async def load(self, account: Account) -> Held:
        """See :class:`broker.core.ports.Store`."""

    async def history(self, since: float, account: Account) -> list[CallRow]:
        """See :class:`broker.core.ports.Store`."""

    async def import_accounts(self, exports: Sequence[AccountExport]) -> None:
        """Write all of that into an empty store, or nothing of it. Raises StoreError."""


async def move(source: Movable, target: Movable) -> tuple[int, int]:
    """Move everything, and return how many accounts and how many calls that were.

    Nothing is done where the target holds just that already.

    Raises StoreRefused where the target holds anything else, or a token cannot be read; StoreError.
    """
    exports, there = await _exports(source), await _exports(target)
    if there:
        theirs = {_key(export): export for export in there}
        if theirs.keys() != {_key(one) for one in exports} or not all(
            one.is_like(theirs[_key(one)]) for one in exports
        ):
            raise StoreRefused(
                f"--to holds {len(there)} account(s) already, other than those of --from: move into"
                " an empty store, or start the broker with it as it is"
            )
    else:
        await target.import_accounts(exports)
    return len(exports), sum(len(export.calls) for export in exports)


def renumbered(credential: Credential, numbers: Mapping[int, int]) -> Credential:
    """Return a credential whose calls have other numbers in another store.

    A token whose call is no longer in the ledger is given the number 0.
    """
    token = credential.token and replace(
        credential.token, call=numbers.get(credential.token.call, 0)
    )
    reserved = None if credential.reserved_call is None else numbers.get(credential.reserved_call)
    return replace(credential, token=token, reserved_call=reserved)


async def _exports(store: Movable) -> list[AccountExport]:
    exports = []
    for account, has_token in await store.accounts():
        credential = (await store.load(account)).credential
        if has_token and credential.token is None:
            raise StoreRefused(
                "the tokens are sealed with another encryption key, or with none: name the"
                " configuration they were written under (--config)"
            )
        exports.append(AccountExport(account, credential, await store.history(0, account)))
    return exports


def _key(export: AccountExport) -> tuple[str, str]:
    return export.account.id, export.account.endpoint.value


def _value(credential: Credential) -> str | None:
    return None if credential.token is None else credential.token.value.reveal()


def _when(call: CallRow) -> tuple[float, int]:
    return call["wall_at"], call["id"]


def _is_same(one: CallRow, other: CallRow) -> bool:
    return (
        all(one[name] == other[name] for name in MOVED_COLUMNS)
        and abs(one["wall_at"] - other["wall_at"]) < SAME_MOMENT_S
    )
