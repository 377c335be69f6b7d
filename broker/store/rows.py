"""How a credential and a call are written into columns, whatever the database.

Instants are seconds on the clock that the store goes by. A file of one host goes by that host's
steady clock (sqlite/anchor.py), a shared database by its own. `shift` is what to add to an instant
to have it on the other side's clock: the store's when writing, the caller's when reading.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from broker.core.credential import (
    NEVER,
    Account,
    Credential,
    Doubt,
    Endpoint,
    HeldToken,
    SecondIssuer,
    Suspicion,
)
from broker.core.errcodes import Failure
from broker.core.ports import Claim, StoreRefused
from broker.core.quota import Entry, Lane
from broker.core.secret import Secret
from broker.store.encryption import Seal

Row = Mapping[str, Any]

ACCOUNT_COLUMNS: Final[dict[str, type]] = {
    "appid": str,
    "endpoint": str,
    "token": str,
    "token_call": int,
    "requested_at": float,
    "expires_at": float,
    "replace_at": float,
    "doubt": str,
    "doubt_since": float,
    "safe_until": float,
    "called_at": float,
    "reserved_call": int,
    "not_before": float,
    "failures": int,
    "failure": str,
    "checked_at": float,
    "checks": int,
    "checks_since": float,
    "alive": int,
    "rivals": int,
    "rivals_since": float,
    "rivals_last": float,
    "fingerprint": str,
}
CALL_COLUMNS: Final[dict[str, type]] = {
    "id": int,
    "appid": str,
    "endpoint": str,
    "lane": str,
    "forced": int,
    "cost": int,
    "outcome": str,
    "emergency": int,
    "lease_lost": int,
}
MOVED_COLUMNS: Final = ("lane", "forced", "cost", "outcome", "emergency", "lease_lost")
KEPT_DAYS: Final = 8  # the status page plots two days, people look back a week
LEAST_LEFT: Final = 30  # calls left of a day when the ledger is lost: what the schedule needs
EVERY_CALL: Final = 10_000_000  # a quota that leaves out no call
ASSUMED: Final = "assumed"  # the outcome of calls that a lost ledger may have held
FARTHEST: Final = 1e15  # seconds: no instant is farther from 0 than thirty million years
_NEVER_NULL: Final = {
    "appid",
    "endpoint",
    "failures",
    "checks",
    "alive",
    "rivals",
    "fingerprint",
    "boot_id",
    "boot_at",
    "wall_at",
    "epoch",
    "calls",
    "prior_calls",
    "changes",
}
_INSTANTS: Final = (
    "requested_at",
    "expires_at",
    "replace_at",
    "doubt_since",
    "safe_until",
    "called_at",
    "not_before",
    "checked_at",
    "checks_since",
)


def key_of(account: Account) -> dict[str, str]:
    """Return what names an account's rows."""
    return {"appid": account.id, "endpoint": account.endpoint.value}


def account_of(row: Row) -> Account:
    """Return the account of a row, as far as a row tells: without its secret and its quota.

    Raises StoreRefused where the row is not one that :func:`account_row` makes.
    """
    if why := oddity(row, {name: ACCOUNT_COLUMNS[name] for name in ("appid", "endpoint")}):
        raise StoreRefused(why)
    appid, _, name = row["appid"].partition("/")  # as Account.id puts it together
    return Account(name or appid, appid, Secret(""), Endpoint(row["endpoint"]), EVERY_CALL)


def account_row(credential: Credential, key: Row, seal: Seal, shift: float = 0.0) -> dict[str, Any]:
    """Return all columns of an account's row; `key` holds appid and endpoint."""
    token, suspicion = credential.token, credential.suspicion
    second_issuer = credential.second_issuer
    row = {
        **key,
        "token": token and seal.seal(token.value.reveal(), _associated_data(key, token.call)),
        "token_call": token and token.call,
        "requested_at": token and token.requested_at,
        "expires_at": token and token.expires_at,
        "replace_at": token and token.replace_at,
        "doubt": suspicion and suspicion.doubt.value,
        "doubt_since": suspicion and suspicion.since,
        "safe_until": suspicion and suspicion.safe_until,
        "called_at": credential.called_at,
        "reserved_call": credential.reserved_call,
        "not_before": credential.not_before,
        "failures": credential.failures,
        "failure": credential.failure and json.dumps(asdict(credential.failure)),
        "checked_at": credential.checked_at,
        "checks": credential.checks,
        "checks_since": credential.checks_since,
        "alive": credential.alive_in_a_row,
        "rivals": second_issuer.count,
        "rivals_since": second_issuer.since,
        "rivals_last": second_issuer.last,
        "fingerprint": credential.fingerprint,
    }
    instants = {
        name: None if row[name] in (None, NEVER) else row[name] + shift for name in _INSTANTS
    }
    return {**row, **instants}


def credential_of(row: Row, epoch: str, seal: Seal, shift: float = 0.0) -> Credential:
    """Read an account's row.

    A token that `seal` cannot open is read as none. Raises StoreRefused where the row is not one
    that :func:`account_row` makes.
    """
    if why := oddity(row, ACCOUNT_COLUMNS):
        raise StoreRefused(why)
    at = {name: NEVER if row[name] is None else row[name] + shift for name in _INSTANTS}
    value = token = suspicion = None
    if row["token"] is not None:
        value = seal.unseal(row["token"], _associated_data(row, row["token_call"]))
    if value is not None:
        token = HeldToken(
            Secret(value),
            row["token_call"],
            at["requested_at"],
            at["expires_at"],
            at["replace_at"],
        )
    if value and row["doubt"]:
        suspicion = Suspicion(Doubt(row["doubt"]), at["doubt_since"], at["safe_until"])
    return Credential(
        epoch=epoch,
        token=token,
        suspicion=suspicion,
        called_at=at["called_at"],
        reserved_call=row["reserved_call"],
        not_before=at["not_before"],
        failures=row["failures"],
        failure=_failure_of(row["failure"]),
        checked_at=at["checked_at"],
        checks=row["checks"] or 0,
        checks_since=at["checks_since"],
        alive_in_a_row=row["alive"] or 0,
        second_issuer=SecondIssuer(row["rivals"], row["rivals_since"], row["rivals_last"]),
        fingerprint=row["fingerprint"],
    )


def oddity(row: Row, columns: Mapping[str, type]) -> str | None:
    """Return why an account's row is not one that :func:`account_row` makes, None where it is.

    The sentence names the column, and nothing of what is in it.
    """
    which = f"{str(row['appid'])[:64]!r}, {str(row['endpoint'])[:64]!r}"
    found = (_wrong_value(name, kind, row[name]) for name, kind in columns.items())
    why = next(filter(None, found), None) or _wrong_row(row)
    return why and f"the row {which} of the table accounts: {why}"


def _wrong_value(name: str, kind: type, value: Any) -> str | None:
    if value is None:
        return f"{name} is empty" if name in _NEVER_NULL else None
    number = kind is float and isinstance(value, (int, float))
    if isinstance(value, bool) or not (number or type(value) is kind):
        return f"{name} is of another type"
    if kind is float and not abs(value) < FARTHEST:
        return f"{name} is no instant"
    try:
        _READINGS.get(name, str)(value)
    except (ValueError, TypeError, KeyError):
        return f"{name} is none that token-broker writes"
    return None


def _wrong_row(row: Row) -> str | None:
    for name, others in _WHOLE.items():
        if name in row and row[name] is not None:
            for other in others:
                if row.get(other, "") is None:
                    return f"a {name} without {other}"
    return None


def _associated_data(key: Row, call: int) -> str:
    """Return what a sealed token is bound to."""
    return f"{key['appid']}/{key['endpoint']}/{call}"


def _failure_of(stored: str | None) -> Failure | None:
    return None if stored is None else Failure.from_stored(json.loads(stored))


_READINGS: Final[dict[str, Callable[[str], object]]] = {
    "endpoint": Endpoint,
    "doubt": Doubt,
    "failure": _failure_of,
}
_WHOLE: Final = {  # columns that say nothing without others
    "token": ("token_call", "requested_at", "expires_at"),
    "doubt": ("doubt_since", "safe_until"),
}


def entries_of(rows: Iterable[Row]) -> Sequence[Entry]:
    """Read calls, all of them on the caller's clock, as ledger entries.

    Raises StoreRefused where one is not a call that token-broker writes.
    """
    try:
        return tuple(map(_entry_of, rows))
    except (ValueError, TypeError):
        raise StoreRefused(
            "a row of the table calls holds what token-broker does not write: `token-broker check`"
            " says more"
        ) from None


def _entry_of(row: Row) -> Entry:
    at, wall = float(row["boot_at"]), float(row["wall_at"])
    if not (abs(at) < FARTHEST and abs(wall) < FARTHEST):
        raise ValueError("no instant")
    return Entry(at, wall, Lane(row["lane"]), forced=bool(row["forced"]), cost=int(row["cost"]))


def with_call(
    entries: Sequence[Entry], claim: Claim, at: float, wall: float, account: Account
) -> Sequence[Entry]:
    """Return the entries that were read, with the call that has just been reserved as the newest.

    No more than `daily_quota` are returned, as when they are read.
    """
    newest = Entry(at, wall, claim.lane, forced=claim.force)
    return (newest, *entries)[: account.daily_quota]


def assumed_cost(missing: int, daily_quota: int) -> int:
    """Return how many calls to assume where `missing` are not in the ledger.

    At least a quarter of the quota is left, or what the schedule needs where that is more.
    """
    left = max(daily_quota // 4, min(daily_quota, LEAST_LEFT))
    return max(0, min(missing, daily_quota - left))
