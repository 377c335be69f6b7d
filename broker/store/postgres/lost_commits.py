"""What this process knows of each account's calls, to recognise a database that lost some of them.

A standby that was promoted without the last commits holds less than was handed out. So does a
database that was restored from a backup.
"""

from typing import NamedTuple

from broker.store.rows import Row


class Loss(NamedTuple):
    """Calls that the ledger does not hold.

    `calls` is how many are missing. `until` is the newest of them that is known of, and `epoch` the
    epoch it was made in. `begins_epoch` says that numbers could recur unless a new epoch begins.
    """

    calls: int
    epoch: str
    until: int
    begins_epoch: bool


class LostCommits:
    """By account: each epoch that this process met, with the newest call that it met there.

    The epochs stand in the order in which they were met last: the latest is the last one.
    """

    def __init__(self) -> None:
        self._met: dict[tuple[str, str], dict[str, int]] = {}

    def remember(self, row: Row, calls: int | None = None) -> None:
        """Note a row's newest call, or `calls`, which was just granted in its epoch."""
        met = self._met.setdefault((row["appid"], row["endpoint"]), {})
        newest = max(row["calls"] if calls is None else calls, met.pop(row["epoch"], 0))
        met[row["epoch"]] = newest

    def found(self, row: Row) -> Loss | None:
        """Return what the database has lost as far as this process knows, None where nothing.

        E is the row's epoch, L the latest epoch that this process met. P is the epoch before E, as
        the row names it. Read from top to bottom; the first line that fits counts. "New" means that
        an epoch begins:

        what was met   calls                        it means                     the loss
        -------------  ---------------------------  ---------------------------  --------------
        nothing        any                          this process has started     none
        E, which is L  as many as we know, or more  all is there                 none
        E, which is L  fewer than we know           the last commits are gone    those, new
        E, and then L  any                          an old state was restored    all since, new
        not E          the row names no P           emptied, or older than that  all, new
        not E          P's are all accounted for    another broker saw the loss  none
        not E          we know more of P's          it knew of fewer than we do  the difference
        """
        met = self._met.get((row["appid"], row["endpoint"]))
        if not met:
            return None
        latest = next(reversed(met))
        newest, calls = met[latest], row["calls"]
        if row["epoch"] == latest:
            lost = newest - calls
            return Loss(lost, latest, newest, begins_epoch=True) if lost > 0 else None
        if row["epoch"] in met:
            lost = max(1, max(met.values()) - calls)
            return Loss(lost, latest, newest, begins_epoch=True)
        if row["prior_epoch"] is None:
            return Loss(newest, latest, newest, begins_epoch=True)
        newest_of_prior = met.get(row["prior_epoch"], 0)
        lost = newest_of_prior - row["prior_calls"]
        if lost > 0:
            return Loss(lost, row["prior_epoch"], newest_of_prior, begins_epoch=False)
        return None
