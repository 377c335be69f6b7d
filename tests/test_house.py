"""The house rules, as tests: layers, style, types, and a README that tells the truth."""

import ast
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Rooms from the bottom up: a module imports only from its own room and from rooms below it.
# The core is pure; the client library and the sandbox stand alone.
LAYERS = [
    {"core", "client", "sandbox"},
    {"system", "http"},
    {"config", "wechat"},
    {"store", "tokens", "logins"},
    {"web", "avatars", "notify", "sinks"},
    {"app"},
    {"cli"},
    {"__main__"},
]
ALONE = {"core", "client", "sandbox"}
PURE = {"asyncio", "socket", "time", "os", "logging", "pathlib", "sqlite3", "random"}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "broker").parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {
                f"{node.module}.{alias.name}"
                for alias in node.names
                if node.module == "broker" or node.module.startswith("tests")
            }
    return found


SOURCES = [
    path
    for path in sorted((ROOT / "broker").rglob("*.py"))
    if path != ROOT / "broker" / "__init__.py"
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    height = {room: number for number, layer in enumerate(LAYERS) for room in layer}
    room = room_of(path)
    assert room in height, f"which layer is {room} in? say so in LAYERS"
    used = {
        name.split(".")[1]
        for name in imports_of(path)
        if name.startswith("broker.") and name != "broker.__version__"
    }
    others = used - {room}
    assert all(height[other] < height[room] for other in others), f"{room} imports {others}"
    if room in ALONE:
        assert not others


@pytest.mark.parametrize(
    "path", sorted((ROOT / "broker/core").glob("*.py")), ids=lambda path: path.name
)
def test_the_core_is_pure(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports_of(path)}
    assert tops <= set(sys.stdlib_module_names) | {"broker"}
    assert not tops & PURE


@pytest.mark.parametrize(
    "command",
    [["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy", "--strict"]],
    ids=["format", "lint", "types"],
)
def test_the_tree_is_clean(command: list[str]) -> None:
    tool = shutil.which(command[0], path=Path(sys.executable).parent)
    assert tool, f"{command[0]} comes with the dev extra"
    done = subprocess.run(
        [tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- names and pointers ---------------------------------------------------------------------------


def types_of(path: Path) -> list[str]:
    """Classes, and aliases that are named like classes, at the top of a module."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            found += [name] if name[0].isupper() and not name.isupper() else []
    return found


def test_each_type_name_is_defined_once() -> None:
    counted = Counter(name for path in SOURCES for name in types_of(path))
    assert [name for name, times in counted.items() if times > 1] == []


def test_at_most_six_things_at_the_top_are_no_rooms() -> None:
    top = [path for path in (ROOT / "broker").iterdir() if path.name != "__pycache__"]
    assert len([path for path in top if not path.is_dir()]) <= 6


NUMBERED = {
    r"\bW\d+\b": ("broker/core/WECHAT.md", r"\*\*(W\d+)\*\*"),
    r"\bscenarios? \d+\b": ("tests/SCENARIOS.md", r"\*\*(\d+)\*\*"),
}


@pytest.mark.parametrize("pattern", NUMBERED)
def test_each_pointer_to_a_fact_or_scenario_resolves(pattern: str) -> None:
    document, ids = NUMBERED[pattern]
    listed = re.findall(ids, (ROOT / document).read_text())
    assert [one for one, times in Counter(listed).items() if times > 1] == []
    known = set(listed)
    files = [*(ROOT / "broker").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    used = {one for path in files for one in re.findall(pattern, path.read_text())}
    assert used
    assert {one.rpartition(" ")[2] for one in used} <= known


def test_nothing_points_outside_of_the_repository() -> None:
    files = [path for top in ("broker", "tests", "deploy") for path in (ROOT / top).rglob("*.py")]
    outside = re.compile(r"\b(?:wechat|contract|design|house|scenarios)\.md\b|§")
    found = {str(path) for path in files if outside.search(path.read_text())}
    assert found <= {str(ROOT / "tests/test_house.py")}


# --- tests ----------------------------------------------------------------------------------------

TESTS = sorted((ROOT / "tests").rglob("*.py"))


def test_no_module_imports_a_test_module() -> None:
    importing = [
        (str(path.relative_to(ROOT)), name)
        for path in TESTS
        for name in imports_of(path)
        if re.match(r"tests\b.*\.(test_|conftest)", name)
    ]
    assert importing == [], "what is shared belongs into tests/harness/"


def test_no_fixture_is_written_twice() -> None:
    written: dict[str, list[str]] = {}
    for path in TESTS:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and any(
                "fixture" in ast.unparse(decorator) for decorator in node.decorator_list
            ):
                steps = [ast.unparse(one) for one in node.body if not is_docstring(one)]
                where = f"{path.relative_to(ROOT)}: {node.name}"
                written.setdefault("\n".join(steps), []).append(where)
    assert [places for places in written.values() if len(places) > 1] == []


def is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
