"""Each group of the benchmark runs, and its answers are right.

A test does not judge its figures.
"""

import tempfile
from pathlib import Path

import pytest

from tests.bench import rivals
from tests.bench.__main__ import GROUPS
from tests.bench.footprint import imports
from tests.bench.table import markdown

NEEDED = {"rivals": rivals.TOOLS, "proxy": ("wrk", "taskset")}


def marks_of(group: str) -> list[pytest.MarkDecorator]:
    needed = ("initdb",) if group.startswith("nodes-") else NEEDED.get(group, ())
    return [pytest.mark.soak, pytest.mark.needs(*needed)]


@pytest.mark.parametrize(
    "group",
    [pytest.param(name, marks=marks_of(name)) for name in GROUPS],
)
def test_each_group_measures_and_is_right(group: str) -> None:
    with tempfile.TemporaryDirectory(prefix=f"bench-{group}-") as home:
        rows = GROUPS[group](Path(home), True)  # noqa: FBT003 -- brief
    assert rows
    assert all(row.good for row in rows), markdown(rows)


def test_the_import_table_names_what_serve_needs() -> None:
    assert "| `broker." in imports(most=400)
