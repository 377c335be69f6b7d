"""Anchors: how instants of a steady clock outlive the boot in which they were taken.

A steady clock counts seconds since its boot and says nothing about any other boot. So each row
carries an anchor: the id of the boot in which it was written, and what both clocks showed then.
Within one boot, instants are taken as they are. What another boot wrote is put on this boot's clock
once, when the store is opened, by the wall clock: nothing else relates the two.

The other boot may be an earlier one of this host, or one of another host: volumes move, directories
are copied. A row says "written at 12:00", and the call in it was made 100 s before that:

1. The host was rebooted at 12:10; it is 12:11, 60 s after the boot. The wall puts the writing
   600 s before the boot, and the call at -700 s. The age of the token is known.
2. The volume was moved to a host that has been up for 20 days; it is 12:01. The wall puts the
   writing 60 s ago, long after this host's boot, and the call 160 s ago: it still counts. The token
   is in doubt, since two hosts' walls were compared and one of them may be wrong.
3. The battery is empty: the wall shows 1970, 60 s after the boot. The row is from the future, so
   the wall is no help. The writing is taken for having happened now, and the call 100 s ago: a
   wrong wall neither frees spent quota, nor locks us out for longer than a call that was made now
   would. The token is in doubt.
4. The row was written in 1970, and the wall is right by now. Again it is no help: as in 3.

Within one boot there is one more case. A wall that is set back shows that what it placed before
this boot was placed too early: those calls are placed again, later. Setting it forward changes
nothing.
"""

from dataclasses import dataclass
from typing import Any, Final, Protocol

from broker.core.credential import Credential
from broker.core.ports import STEP_S, Clock
from broker.core.transitions import of_unknown_age
from broker.store.encryption import Seal
from broker.store.rows import Row, credential_of

BEFORE_US: Final = 1_735_689_600.0  # 2025-01-01: a wall that shows less has lost its battery
ANCHOR_COLUMNS: Final[dict[str, type]] = {"boot_id": str, "boot_at": float, "wall_at": float}


class BootClock(Clock, Protocol):
    """A clock that knows to which boot its steady seconds belong."""

    boot_id: str


@dataclass(frozen=True, slots=True)
class Anchor:
    """Both clocks at one moment: steady seconds since the boot `boot_id`, and unix time."""

    boot_id: str
    steady: float
    wall: float

    @classmethod
    def now(cls, clock: BootClock) -> "Anchor":
        """Read both clocks."""
        return cls(clock.boot_id, clock.now(), clock.wall())

    @classmethod
    def of(cls, row: Row) -> "Anchor":
        """Return the anchor that a row carries."""
        return cls(row["boot_id"], row["boot_at"], row["wall_at"])

    @property
    def columns(self) -> dict[str, Any]:
        """The anchor as a row carries it."""
        return {"boot_id": self.boot_id, "boot_at": self.steady, "wall_at": self.wall}

    @property
    def offset(self) -> float:
        """Unix time at which this boot began, by the wall.

        Another value later: the wall was set.
        """
        return self.wall - self.steady

    def of_wall(self, wall: float) -> float:
        """Return the steady time at which the wall showed `wall`, the present if it cannot tell."""
        return wall - self.offset if BEFORE_US <= wall <= self.wall else self.steady


def revived(row: Row, epoch: str, here: Anchor, seal: Seal) -> Credential:
    """Read an account's row, with every instant put on the present boot's clock."""
    written = Anchor.of(row)
    credential = credential_of(row, epoch, seal, shift_to(here, written))
    if _age_is_known(credential, written, here):
        return credential
    return of_unknown_age(credential, here.steady)


def shift_to(here: Anchor, written: Anchor) -> float:
    """Return what to add to an instant of the boot that wrote to have it on this boot's clock."""
    if written.boot_id == here.boot_id:
        return 0.0
    return here.of_wall(written.wall) - written.steady


def was_set_back(here: Anchor, written: Anchor) -> bool:
    """Return True if the wall was set back since a row of this boot was written."""
    return written.boot_id == here.boot_id and written.offset - here.offset > STEP_S


def _age_is_known(credential: Credential, written: Anchor, here: Anchor) -> bool:
    """Return True if a clock vouches for the token's age.

    That is this boot's own steady clock, or a wall that nothing speaks against: it showed a sane
    time at both ends, and says that the row was written before this boot.
    """
    if written.boot_id != here.boot_id:
        return BEFORE_US <= written.wall <= here.offset
    is_by_the_wall = credential.token is not None and credential.token.requested_at < 0
    return not (is_by_the_wall and abs(here.offset - written.offset) > STEP_S)
