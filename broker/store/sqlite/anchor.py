"""Anchors: how instants of a steady clock are kept over a reboot.

Steady clocks mean nothing after a reboot, so each row carries its own anchor: the boot it was
written in, and both clocks at that moment. Within one boot, instants are taken as they are; what
another boot wrote is put on this one's clock once, by the wall, and in doubt suspected. A wall that
is set while we run makes an anchor worthless: then it is dropped anew (tokens/store_sync.py sees to
it).
"""

from dataclasses import dataclass
from typing import Final, Protocol

from broker.core.credential import Credential
from broker.core.ports import STEP_S, Clock
from broker.core.transitions import of_unknown_age
from broker.store.encryption import Seal
from broker.store.rows import Row, credential_of

BEFORE_US: Final = (
    1_735_689_600.0  # 2025-01-01: a wall clock that says earlier has lost its battery
)
ANCHOR_COLUMNS: Final[dict[str, type]] = {"boot_id": str, "boot_at": float, "wall_at": float}


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
        """What the wall would have shown when this boot began.

        Another offset later means that the wall was set.
        """
        return self.wall_at - self.boot_at


def revived(row: Row, epoch: str, here: Anchor, seal: Seal) -> Credential:
    """Read an account's row, with every instant put on the present boot's clock."""
    written = Anchor.of(row)
    credential = credential_of(row, epoch, seal, carried_by(written, here))
    return (
        credential
        if _age_is_known(credential, written, here)
        else of_unknown_age(credential, here.boot_at)
    )


def carried_by(written: Anchor, here: Anchor) -> float:
    """What to add to an instant of the boot in which `written` was dropped, to have it on this boot's clock.

    Within a boot the steady clock is right; only how two boots lie to each other is the wall's to
    say, as it was when the account's row was last written. Where it says that this boot began
    before that moment, that moment is taken for just before: a wrong wall neither reopens a spent
    day nor locks for ever.
    """
    return (
        0.0
        if written.boot_id == here.boot_id
        else min(0.0, written.wall_at - here.offset) - written.boot_at
    )


def _age_is_known(credential: Credential, written: Anchor, here: Anchor) -> bool:
    """Whether a clock can vouch for the token's age: this boot's own, or a wall that nothing speaks against."""
    if written.boot_id == here.boot_id:
        began_before = (
            credential.token is not None and credential.token.requested_at < 0
        )  # its age came from the wall
        return not (began_before and abs(here.offset - written.offset) > STEP_S)
    return BEFORE_US <= written.wall_at <= here.offset
