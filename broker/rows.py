"""How a credential and a call are written into columns, whatever the database.

Steady clocks mean nothing after a reboot, so each row carries its own anchor: the boot it was written in, and both
clocks at that moment. Within one boot, instants are taken as they are; what another boot wrote is put on this one's
clock once, by the wall, and in doubt suspected. A wall that is set while we run makes an anchor worthless: then it is
dropped anew (flight.py sees to it).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

from broker.core.credential import NEVER, Credential, Doubt, Rivalry, Secret, Suspicion, Token, of_unknown_age
from broker.core.errcodes import Failure, Kind
from broker.core.ports import STEP_S, Clock
from broker.core.quota import Entry, Lane
from broker.sealing import Seal

Row = Mapping[str, Any]

BEFORE_US: Final = 1_735_689_600.0  # 2025-01-01: a wall clock that says earlier has lost its battery

ACCOUNT_COLUMNS: Final[dict[str, type]] = {
    "appid": str,
    "endpoint": str,
    "token": str,
    "token_call": int,
    "requested_at": float,
    "expires_at": float,
    "doubt": str,
    "doubt_since": float,
    "safe_until": float,
    "called_at": float,
    "reserved_call": int,
    "not_before": float,
    "failures": int,
    "failure": str,
    "checked_at": float,
    "rivals": int,
    "rivals_since": float,
    "rivals_last": float,
    "fingerprint": str,
    "boot_id": str,
    "boot_at": float,
    "wall_at": float,
}
CALL_COLUMNS: Final[dict[str, type]] = {
    "id": int,
    "appid": str,
    "endpoint": str,
    "lane": str,
    "forced": int,
    "cost": int,
    "outcome": str,
    "boot_id": str,
    "boot_at": float,
    "wall_at": float,
}
_INSTANTS: Final = ("requested_at", "expires_at", "doubt_since", "safe_until", "called_at", "not_before", "checked_at")


class BootClock(Clock, Protocol):
    """A clock that knows which boot its steady seconds belong to."""

    boot_id: str


@dataclass(frozen=True, slots=True)
class Anchor:
    """Both clocks at one moment."""

    boot_id: str
    boot_at: float
    wall_at: float

    @classmethod
    def drop(cls, clock: BootClock) -> "Anchor":
        """Take the present moment."""
        return cls(clock.boot_id, clock.now(), clock.wall())

    @classmethod
    def of(cls, row: Row) -> "Anchor":
        """The one that a row carries."""
        return cls(row["boot_id"], row["boot_at"], row["wall_at"])

    @property
    def offset(self) -> float:
        """What the wall would have shown when this boot began. Another offset later means that the wall was set."""
        return self.wall_at - self.boot_at


def account_row(credential: Credential, key: Row, anchor: Anchor, seal: Seal) -> dict[str, Any]:
    """All columns of an account's row; `key` holds appid and endpoint."""
    token, suspicion, rivalry = credential.token, credential.suspicion, credential.rivalry
    row = {
        **key,
        **asdict(anchor),
        "token": token and seal.close(token.value.reveal(), _bond(key, token.call)),
        "token_call": token and token.call,
        "requested_at": token and token.requested_at,
        "expires_at": token and token.expires_at,
        "doubt": suspicion and suspicion.doubt.value,
        "doubt_since": suspicion and suspicion.since,
        "safe_until": suspicion and suspicion.safe_until,
        "called_at": credential.called_at,
        "reserved_call": credential.reserved_call,
        "not_before": credential.not_before,
        "failures": credential.failures,
        "failure": credential.failure and json.dumps(asdict(credential.failure)),
        "checked_at": credential.checked_at,
        "rivals": rivalry.count,
        "rivals_since": rivalry.since,
        "rivals_last": rivalry.last,
        "fingerprint": credential.fingerprint,
    }
    return {**row, **{name: None for name in _INSTANTS if row[name] == NEVER}}


def credential_of(row: Row, epoch: str, here: Anchor, seal: Seal) -> Credential:
    """Read an account's row, with every instant put on the present boot's clock."""
    written = Anchor.of(row)
    shift = carried_by(written, here)
    at = {name: NEVER if row[name] is None else row[name] + shift for name in _INSTANTS}
    value = None if row["token"] is None else seal.open(row["token"], _bond(row, row["token_call"]))
    credential = Credential(
        epoch=epoch,
        token=None if value is None else Token(Secret(value), row["token_call"], at["requested_at"], at["expires_at"]),
        suspicion=Suspicion(Doubt(row["doubt"]), at["doubt_since"], at["safe_until"]) if value and row["doubt"] else None,
        called_at=at["called_at"],
        reserved_call=row["reserved_call"],
        not_before=at["not_before"],
        failures=row["failures"],
        failure=_failure_of(row["failure"]),
        checked_at=at["checked_at"],
        rivalry=Rivalry(row["rivals"], row["rivals_since"], row["rivals_last"]),
        fingerprint=row["fingerprint"],
    )
    return credential if _age_is_known(credential, written, here) else of_unknown_age(credential, here.boot_at)


def carried_by(written: Anchor, here: Anchor) -> float:
    """What to add to an instant of the boot in which `written` was dropped, to have it on this boot's clock.

    Within a boot the steady clock is right; only how two boots lie to each other is the wall's to say, as it was when the
    account's row was last written. Where it says that this boot began before that moment, that moment is taken for just
    before: a wrong wall neither reopens a spent day nor locks for ever.
    """
    return 0.0 if written.boot_id == here.boot_id else min(0.0, written.wall_at - here.offset) - written.boot_at


def _age_is_known(credential: Credential, written: Anchor, here: Anchor) -> bool:
    """Whether a clock can vouch for the token's age: this boot's own, or a wall that nothing speaks against."""
    if written.boot_id == here.boot_id:
        began_before = credential.token is not None and credential.token.requested_at < 0  # its age came from the wall
        return not (began_before and abs(here.offset - written.offset) > STEP_S)
    return BEFORE_US <= written.wall_at <= here.offset


def _bond(key: Row, call: int) -> str:
    """What a sealed token is bound to."""
    return f"{key['appid']}/{key['endpoint']}/{call}"


def _failure_of(stored: str | None) -> Failure | None:
    if stored is None:
        return None
    fields = json.loads(stored)
    return Failure(**{**fields, "kind": Kind(fields["kind"])})


def entries_of(rows: Iterable[Row]) -> Sequence[Entry]:
    """Read calls, all of them on this boot's clock (see :func:`carried_by`), as ledger entries."""
    return tuple(
        Entry(row["boot_at"], row["wall_at"], Lane(row["lane"]), forced=bool(row["forced"]), cost=row["cost"]) for row in rows
    )
