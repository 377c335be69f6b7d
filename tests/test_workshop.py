"""What contributors and CI are told is true: constraints, workflow, templates, the inner loop."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from broker import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRIBUTING = (ROOT / ".github/CONTRIBUTING.md").read_text()
REQUIREMENTS = [
    Requirement(line)
    for lines in (
        PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"].values(),
    )
    for line in lines
]


def pinned() -> dict[str, str]:
    """The versions in the constraints file, by normalised name."""
    lines = (ROOT / ".ci/constraints.txt").read_text().splitlines()
    pins = [line.partition("==") for line in lines if not line.startswith("#")]
    assert all(version for _, _, version in pins), "each line pins a version; none is a path"
    return {canonicalize_name(name): version for name, _, version in pins}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_dependency_is_pinned_to_a_version_that_it_allows(requirement: Requirement) -> None:
    version = pinned().get(canonicalize_name(requirement.name))
    assert version, "make the constraints anew (.github/CONTRIBUTING.md)"
    assert requirement.specifier.contains(version)


def test_ci_installs_by_the_constraints() -> None:
    assert "PIP_CONSTRAINT" in (ROOT / ".ci/run").read_text()


def test_the_workflow_runs_ci_on_every_supported_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    pythons = job["strategy"]["matrix"]["python"]
    assert pythons == ["3.11", "3.12", "3.13", "3.14"]
    assert PROJECT["project"]["requires-python"] == f">={pythons[0]}"


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=str)
def test_every_issue_template_is_one_that_github_takes(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        assert all({"name", "url", "about"} == link.keys() for link in form["contact_links"])
        return
    assert {"name", "description", "body"} <= form.keys()
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(ids) == len(set(ids)) > 0


def test_the_inner_loop_leaves_out_every_marker_and_each_is_explained() -> None:
    lines = PROJECT["tool"]["pytest"]["ini_options"]["markers"]
    markers = {line.partition(":")[0] for line in lines} - {"needs"}
    command = re.search(r"<!-- inner-loop -->\n```sh\n(.*)\n```", CONTRIBUTING)
    assert command
    assert set(re.findall(r"not (\w+)", command[1])) == markers
    assert set(re.findall(r"^\| `(\w+)` \|", CONTRIBUTING, re.MULTILINE)) == markers


def test_the_version_is_the_same_in_both_places() -> None:
    assert PROJECT["project"]["version"] == __version__


def test_every_file_that_contributors_are_pointed_to_is_there() -> None:
    named = set(re.findall(r"`((?:\.?\w+/)+[\w.]+\.(?:md|py|yml|txt))`", CONTRIBUTING))
    assert len(named) > 5
    assert {path for path in named if not (ROOT / path).exists()} <= {"broker/ARCHITECTURE.md"}
