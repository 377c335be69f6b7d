"""How a credential and a call are written into columns, whatever the database.

Instants are written as seconds on a clock that the database goes by: `shift` is what to add to the
caller's steady clock to have it. A file of one host goes by that host's clock itself (anchor.py), a
shared database by its own.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
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
from broker.core.ports import Claim
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
    """What names an account's rows."""
    return {"appid": account.id, "endpoint": account.endpoint.value}


def account_of(row: Row) -> Account:
    """Whose row it is, as far as a row tells: neither its secret, nor what it may spend."""
    appid, _, name = row["appid"].partition("/")  # as Account.id puts it together
    return Account(name or appid, appid, Secret(""), Endpoint(row["endpoint"]), EVERY_CALL)


def account_row(credential: Credential, key: Row, seal: Seal, shift: float = 0.0) -> dict[str, Any]:
    """All columns of an account's row; `key` holds appid and endpoint."""
    token, suspicion, second_issuer = (
        credential.token,
        credential.suspicion,
        credential.second_issuer,
    )
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
    never = (None, NEVER)
    return {
        **row,
        **{name: None if row[name] in never else row[name] + shift for name in _INSTANTS},
    }


def credential_of(row: Row, epoch: str, seal: Seal, shift: float = 0.0) -> Credential:
    """Read an account's row; `shift` is what to add to its instants to have them on the caller's clock."""
    at = {name: NEVER if row[name] is None else row[name] + shift for name in _INSTANTS}
    value = (
        None
        if row["token"] is None
        else seal.open(row["token"], _associated_data(row, row["token_call"]))
    )
    return Credential(
        epoch=epoch,
        token=(
            None
            if value is None
            else HeldToken(
                Secret(value),
                row["token_call"],
                at["requested_at"],
                at["expires_at"],
                at["replace_at"],
            )
        ),
        suspicion=(
            Suspicion(Doubt(row["doubt"]), at["doubt_since"], at["safe_until"])
            if value and row["doubt"]
            else None
        ),
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


def _associated_data(key: Row, call: int) -> str:
    """What a sealed token is bound to."""
    return f"{key['appid']}/{key['endpoint']}/{call}"


def _failure_of(stored: str | None) -> Failure | None:
    return None if stored is None else Failure.from_stored(json.loads(stored))


def entries_of(rows: Iterable[Row]) -> Sequence[Entry]:
    """Read calls, all of them on the caller's clock, as ledger entries."""
    return tuple(
        Entry(
            row["boot_at"],
            row["wall_at"],
            Lane(row["lane"]),
            forced=bool(row["forced"]),
            cost=row["cost"],
        )
        for row in rows
    )


def with_call(
    entries: Sequence[Entry], claim: Claim, at: float, wall: float, account: Account
) -> Sequence[Entry]:
    """Return the entries that were read, with the call that has just been reserved as the newest.

    No more than `daily_quota` are returned, as when they are read.
    """
    newest = Entry(at, wall, claim.lane, forced=claim.force)
    return (newest, *entries)[: account.daily_quota]


def assumed_cost(missing: int, daily_quota: int) -> int:
    """How many calls to assume where `missing` are not in the ledger: what is left is what the schedule needs, or a quarter."""
    return max(0, min(missing, daily_quota - max(daily_quota // 4, min(daily_quota, LEAST_LEFT))))
