"""A test that needs what is not there is skipped with the cure, or fails where CI=true."""

from pathlib import Path

import pytest
from _pytest.outcomes import Failed, Skipped

from tests.harness import tools
from tests.harness.tools import NPM, Tool, is_there, need, path_of

MADE_UP = {
    "file": Tool("none", where=f"/nowhere/*:{__file__}"),
    "no-program": Tool("some-package"),
    "no-file": Tool(NPM, "node", "/nowhere/*:/no/where"),
}


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "TOOLS", {**tools.TOOLS, **MADE_UP})
    is_there.cache_clear()


def outcome_of(name: str) -> tuple[type[BaseException], str]:
    # Both are named here: one that is not expected would be the outcome of this test itself.
    with pytest.raises((Failed, Skipped)) as told:
        need(name)
    return told.type, str(told.value)


@pytest.mark.parametrize(
    ("name", "cure"), [("no-program", "apt-get install some-package"), ("no-file", NPM)]
)
def test_what_is_missing_is_skipped_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, name: str, cure: str
) -> None:
    monkeypatch.delenv("CI", raising=False)
    assert outcome_of(name) == (Skipped, f"{name} is missing: {cure}")


def test_ci_skips_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    assert outcome_of("no-program")[0] is Failed


def test_what_is_there_is_no_reason_to_skip() -> None:
    need("file")
    assert path_of("file") == Path(__file__)


@pytest.mark.needs("node")
@pytest.mark.parametrize("_", [pytest.param(0, marks=pytest.mark.needs("mount"))])
def test_a_test_has_the_marks_of_what_it_needs(request: pytest.FixtureRequest, _: int) -> None:
    marks = {mark.name for mark in request.node.iter_markers()}
    assert marks & {"postgres", "browser", "node", "root"} == {"node", "root"}
