"""What this process knows of each account's calls, so that a database which lost some of them is recognised.

A standby that was promoted without the last commits, or a backup that was restored, holds less than
was handed out.
"""

from typing import NamedTuple

from broker.store.rows import Row


class Loss(NamedTuple):
    """Calls that the ledger does not hold.

    `until`: the newest that is known of, in `epoch`; `begins_epoch`: an epoch must begin.
    """

    calls: int
    epoch: str
    until: int
    begins_epoch: bool


class LostCommits:
    """By account: each epoch this process met, and the newest call's number it met there; the latest epoch last."""

    def __init__(self) -> None:
        self._met: dict[tuple[str, str], dict[str, int]] = {}

    def remember(self, row: Row, calls: int | None = None) -> None:
        """Note what a row says, or what was just granted in its epoch."""
        met = self._met.setdefault((row["appid"], row["endpoint"]), {})
        newest = max(row["calls"] if calls is None else calls, met.pop(row["epoch"], 0))
        met[row["epoch"]] = newest

    def found(self, row: Row) -> Loss | None:
        """What the database has lost, as far as we know; None where nothing."""
        met = self._met.get((row["appid"], row["endpoint"]))
        if not met:
            return None
        latest, epoch, calls = next(reversed(met)), row["epoch"], row["calls"]
        newest = met[latest]
        if epoch == latest:
            return (
                Loss(newest - calls, latest, newest, begins_epoch=True) if calls < newest else None
            )
        if epoch in met:  # it has gone back to an epoch that was over
            return Loss(max(1, max(met.values()) - calls), latest, newest, begins_epoch=True)
        if (
            row["prior_epoch"] is None
        ):  # emptied, or gone back further: it does not even know that there was another
            return Loss(newest, latest, newest, begins_epoch=True)
        before = met.get(row["prior_epoch"], 0)  # somebody saw it first, and knew perhaps less
        return (
            Loss(before - row["prior_calls"], row["prior_epoch"], before, begins_epoch=False)
            if before > row["prior_calls"]
            else None
        )
