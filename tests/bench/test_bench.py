"""The benchmark runs, and what it says of correctness holds; its figures are not for a test to judge."""

import pytest

from tests.bench.__main__ import GROUPS, measure
from tests.bench.footprint import imports
from tests.bench.table import markdown

LONG = {"rivals", "nodes-faults", "crowds-slow-clients", "crowds-watchers", "crowds-killed"}


@pytest.mark.parametrize(
    "group",
    [pytest.param(name, marks=[pytest.mark.soak] if name in LONG else []) for name in GROUPS],
)
def test_each_group_measures_and_is_right(group: str) -> None:
    rows = list(measure(brief=True, only=group))
    assert rows
    assert all(row.good for row in rows), markdown(rows)


def test_the_import_table_names_what_serve_needs() -> None:
    assert "| `broker." in imports(most=400)
