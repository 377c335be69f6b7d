"""Which losses of a database a process recognises: each line of the table of LostCommits.found."""

import pytest

from broker.store.postgres.lost_commits import Loss, LostCommits

MET = {"a": 7, "b": 12}  # epochs that were met, in this order, and the newest call of each


@pytest.mark.parametrize(
    ("met", "epoch", "calls", "prior", "found"),
    [
        ({}, "b", 3, None, None),
        (MET, "b", 12, "a", None),
        (MET, "b", 15, "a", None),
        (MET, "b", 9, "a", Loss(3, "b", 12, begins_epoch=True)),
        (MET, "a", 5, None, Loss(7, "b", 12, begins_epoch=True)),
        (MET, "a", 12, None, Loss(1, "b", 12, begins_epoch=True)),
        (MET, "c", 0, None, Loss(12, "b", 12, begins_epoch=True)),
        (MET, "c", 20, ("b", 12), None),
        (MET, "c", 20, ("x", 3), None),
        (MET, "c", 20, ("b", 10), Loss(2, "b", 12, begins_epoch=False)),
    ],
)
def test_each_line_of_the_table(
    met: dict[str, int],
    epoch: str,
    calls: int,
    prior: str | tuple[str, int] | None,
    found: Loss | None,
) -> None:
    known = LostCommits()
    key = {"appid": "wx1", "endpoint": "token"}
    for name, newest in met.items():
        known.remember({**key, "epoch": name, "calls": newest})
    prior_epoch, prior_calls = prior if isinstance(prior, tuple) else (prior, 0)
    row = {**key, "epoch": epoch, "calls": calls}
    assert known.found({**row, "prior_epoch": prior_epoch, "prior_calls": prior_calls}) == found
