"""What README and guides name exists: commands, keys, routes, events, words of the API, files."""

import ast
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Final, get_args

import click
import pytest
from pydantic import BaseModel

from broker.cli.commands import main
from broker.config.schema import TABLES, ConfigDocument
from broker.core.errcodes import RULES, WECOM_RULES
from broker.core.serving import Code
from broker.notify.events import StateChange
from broker.notify.states import StateKind
from broker.sandbox.control import _ROUTES
from broker.web.api.openapi import DOCUMENT
from broker.web.gate import SCOPES
from tests.bench.__main__ import GROUPS
from tests.harness.guides import CHINESE, DOCS, Page, pages, read
from tests.harness.places import DEPLOY, ROOT

PAGES: Final = pages()
LANGUAGES: Final = [DOCS, CHINESE]
# Paths that are answered, beside those of the API: WeChat's own, the companion's, the sandbox's.
WECHATS: Final = re.compile(
    r"/(cgi-bin|wxa|customservice|card|datacube)/|/sns/(jscode2session|oauth2|userinfo|auth)"
)
OTHERS_PATHS: Final = {
    "/",
    "/avatars",
    "/avatars/{openid}",
    "/v1/avatars",
    "/consent",
    "/sns/",
}
FILES: Final = ("/etc/", "/run/", "/var/", "/opt/", "/dev/", "/root", "/home", "/proc", "/tmp/")  # noqa: S108
# Words of other programs.
FOREIGN: Final = re.compile(
    r"X-|Sec-|If-|Set-|Retry-|Accept-|Content-|NAME|KEY|--|\.|pip |apt|sudo|git |systemd|curl|psql"
    r"|printf|openssl|install -m|docker|podman|kubectl|buildah|helm|dpkg|npm|inotifywait|journalctl"
    r"|\$PATH|export |kill|pool_mode|smallstep|sqlite-utils|uv |pipx"
)


# The sandbox's controls, as it describes them itself.
CONTROLS: Final = {control.partition("?")[0] for control in _ROUTES}


@cache
def source() -> str:
    """Return the text of everything that may define a word."""
    suffixes = {".py", ".sql", ".md", ".j2", ".html", ".js"}
    files = [path for path in (ROOT / "broker").rglob("*") if path.suffix in suffixes]
    files += [path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".md"]
    files += [ROOT / "pyproject.toml", *(ROOT / "tests" / "bench").glob("*.py")]
    return "\n".join(path.read_text(errors="replace") for path in files)


@cache
def keys() -> frozenset[str]:
    """Return every key of the configuration, NAME standing for a name."""
    found: set[str] = set()

    def walk(table: type[BaseModel], prefix: str) -> None:
        for key, value in table.model_fields.items():
            inner = [
                kind
                for kind in (value.annotation, *get_args(value.annotation))
                if isinstance(kind, type) and issubclass(kind, BaseModel)
            ]
            if inner:
                walk(inner[0], f"{prefix}.{key}")
            else:
                found.add(f"{prefix}.{key}")

    for name, table in TABLES.items():
        walk(table, f"{name}.NAME" if name in {"apps", "clients"} else name)
    return frozenset(found)


@cache
def events() -> frozenset[str]:
    """Return the events of the log: what the daemon's source tells or emits by a fixed name."""
    found = set()
    for path in (ROOT / "broker").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            called = node.func.id if isinstance(node.func, ast.Name) else called
            first = node.args[0]
            if called in {"tell", "emit", "_emit"} and isinstance(first, ast.Constant):
                found.add(str(first.value))
    return frozenset(found - {"trouble"})  # the companion's, which says the rest in a sentence


@cache
def metrics() -> frozenset[str]:
    """Return the metrics, as their names are built in the source."""
    text = (ROOT / "broker" / "web" / "api" / "metrics.py").read_text()
    text += "".join(path.read_text() for path in (ROOT / "broker" / "notify").glob("*.py"))
    counters = re.findall(r"self\._counter\(\s*\"(\w+)\"", text)
    families = re.findall(r"CounterMetricFamily\(\s*\"(\w+)\"", text)
    gauges = set(re.findall(r"\"(token_broker_\w+)\"", text)) - set(families)
    return frozenset(
        {f"token_broker_{name}_total" for name in counters}
        | {f"{name}_total" for name in families}
        | gauges
    )


def test_the_events_are_found() -> None:
    assert {"refreshed", "refresh-failed", "second-issuer", "reloaded", "notified"} <= events()


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_exist(page: Page) -> None:
    lines = [code for code in page.code if code.startswith("token-broker ")]
    for block in page.of("sh", "console"):
        lines += re.findall(r"(?:^|[\s/])(token-broker [a-z][^|&;#\n]*)", block.text)
    for line in lines:
        words = shlex.split(line.removesuffix("…"))
        assert words[1] in main.commands, line
        command: click.Command = main.commands[words[1]]
        known = {"--help", "--version"} | options_of(command)
        if isinstance(command, click.Group) and len(words) > 2 and not words[2].startswith("-"):
            assert words[2] in command.commands, line
            known |= options_of(command.commands[words[2]])
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= known, line


def options_of(command: click.Command) -> set[str]:
    """Return the options of a command, and of those below it."""
    below = command.commands.values() if isinstance(command, click.Group) else ()
    own = {
        option
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
    }
    return own.union(*map(options_of, below))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_options_exist(page: Page) -> None:
    known = options_of(main)
    script = (DEPLOY / "install.sh").read_text() + source()
    for code in page.code:
        option = code.split()[0]
        if option.startswith("--"):
            assert option in known or option in script, code


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_keys_exist(page: Page) -> None:
    tables = {key.split(".")[0] for key in keys()}
    last = {key.rpartition(".")[2] for key in keys()} | tables
    for code in page.code:
        if dotted := re.fullmatch(rf"({'|'.join(tables)})\.[a-zNAME_.]+", code):
            known = {key.replace(".NAME", "") for key in keys()}
            assert dotted[0].replace(".NAME", "") in known or dotted[0] in source(), code
        if assigned := re.match(r"([a-z_0-9]+) = ", code):
            assert assigned[1] in last or FOREIGN.match(code), code
        if table := re.match(r"\[([a-z]+)(?:\.[\w…]+)*\]$", code):
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())
            optional = extras["project"]["optional-dependencies"]
            assert table[1] in tables or table[1] in optional, code
        for extra in re.findall(r"(?:wechat-token-broker|'\.)\[(\w+)\]", code):
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())
            assert extra in extras["project"]["optional-dependencies"], code


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_routes_exist(page: Page) -> None:
    known = set(DOCUMENT["paths"]) | OTHERS_PATHS
    for code in page.code:
        found = re.fullmatch(r"(?:(?:GET|POST|DELETE) )?(/[^\s`]*)", code)
        if not found:
            continue
        path = found[1].partition("?")[0].replace("…", "")
        plain = re.sub(r"/(tokens|tickets|logins|handouts)/main", r"/\1/{app}", path)
        is_known = plain in known or WECHATS.match(path) or path.startswith(FILES)
        is_control = path == "/sandbox" or path.startswith("/sandbox/")
        if is_control:
            assert path in {control.split()[1] for control in CONTROLS}, code
        assert is_known or is_control or path in source(), code


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_variables_exist(page: Page) -> None:
    known = {
        f"TOKEN_BROKER_{'__'.join(key.split('.')).upper()}" for key in keys() if ".NAME" not in key
    }
    for name in set(re.findall(r"TOKEN_BROKER_[A-Z_0-9]+[A-Z0-9]", page.text)):
        is_apps = name.startswith(("TOKEN_BROKER_APPS__", "TOKEN_BROKER_SECRET_"))
        assert name in known or is_apps or name in source(), name


# The words on the pages of SDKs are the SDKs'.
OURS: Final = [page for page in PAGES if "sdk" not in str(page)]


@pytest.mark.parametrize("page", OURS, ids=str)
def test_words_of_the_api_exist(page: Page) -> None:
    for code in page.code:
        if code.startswith("token_broker_"):
            assert code.partition("{")[0] in metrics(), code
        elif re.fullmatch(r"[a-z][a-z0-9]*([_-][a-z0-9]+)+", code) and not FOREIGN.match(code):
            assert re.search(rf"(?<![\w-]){re.escape(code)}(?![\w-])", source()), code


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_errcodes_are_known(page: Page) -> None:
    known = source()
    for number in set(re.findall(r"(?<![\d.,:/#-])([4-9]\d{4})(?![\d,.]?\d)", page.text)):
        assert number in known, number


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_exist(page: Page) -> None:
    for code in page.code:
        if re.fullmatch(r"(broker|tests|deploy)/[\w./-]+", code):
            assert (ROOT / code).exists(), code


@pytest.mark.parametrize("path", [*(one.path for one in PAGES), *DEPLOY.glob("*/README.md"),
    DEPLOY / "README.md", ROOT / "CHANGELOG.md", ROOT / ".github" / "CONTRIBUTING.md",
    ROOT / ".github" / "SECURITY.md", ROOT / "broker" / "ARCHITECTURE.md"], ids=str)  # fmt: skip
def test_links_lead_somewhere(path: Path) -> None:
    for target in read(path).links:
        where, _, anchor = target.partition("#")
        if ":" in where:
            assert where.startswith(("https://", "http://", "mailto:")), target
            continue
        there = (path.parent / where).resolve() if where else path
        assert there.exists(), target
        if anchor:
            assert anchor in {heading.slug for heading in read(there).headings}, target


# --- nothing is left out ------------------------------------------------------------------------


def table_of(folder: Path, name: str) -> set[str]:
    return read(folder / name).code


@pytest.mark.parametrize("folder", LANGUAGES, ids=["en", "zh-CN"])
def test_every_command_is_told(folder: Path) -> None:
    told = {code.split()[1] for code in table_of(folder, "configuration.md")
            if code.startswith("token-broker ")}  # fmt: skip
    assert main.commands.keys() <= told


@pytest.mark.parametrize("folder", LANGUAGES, ids=["en", "zh-CN"])
def test_every_key_is_told_with_its_default(folder: Path) -> None:
    rows = re.findall(r"^\| `([a-zNAME_.0-9]+)` \| (?:`(.*?)`)? ?\|", text(folder), re.MULTILINE)
    told = {key: default for key, default in rows if "." in key}
    assert told.keys() == keys()
    for key, default in told.items():
        assert default == shown(default_of(key)), key


def text(folder: Path) -> str:
    return (folder / "configuration.md").read_text()


def default_of(key: str) -> Any:
    at: Any = None
    table: Any = ConfigDocument
    for part in key.split("."):
        if part == "NAME":
            continue
        at = table.model_fields[part]
        kinds = [at.annotation, *get_args(at.annotation)]
        table = next(
            (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None
        )
    return None if at.is_required() else at.default


def shown(value: Any) -> str:
    """Return a default as TOML writes it; nothing for none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(shown(one) for one in value)}]"
    if isinstance(value, int | float):
        return f"{value:g}" if abs(value) < 10_000 else str(value)
    return f'"{value}"'


@pytest.mark.parametrize("folder", LANGUAGES, ids=["en", "zh-CN"])
def test_every_route_and_code_is_told(folder: Path) -> None:
    told = table_of(folder, "api.md")
    routes = {code.partition(" ")[2] for code in told if code.startswith(("GET ", "POST "))}
    assert set(DOCUMENT["paths"]) <= routes
    assert {code.value for code in Code} <= told


@pytest.mark.parametrize("folder", LANGUAGES, ids=["en", "zh-CN"])
def test_every_control_of_the_sandbox_is_told(folder: Path) -> None:
    assert table_of(folder, "development.md") >= CONTROLS


@pytest.mark.parametrize("folder", LANGUAGES, ids=["en", "zh-CN"])
def test_every_scope_is_told(folder: Path) -> None:
    assert table_of(folder, "configuration.md") >= SCOPES


@pytest.mark.parametrize("folder", LANGUAGES, ids=["en", "zh-CN"])
def test_every_event_of_the_log_is_told(folder: Path) -> None:
    assert events() <= table_of(folder, "operating.md")


@pytest.mark.parametrize("folder", LANGUAGES, ids=["en", "zh-CN"])
def test_every_notification_is_told(folder: Path) -> None:
    told = table_of(folder, "notifications-and-sinks.md")
    assert {kind.value for kind in StateKind} <= told
    assert {change.value for change in StateChange} <= told


@pytest.mark.parametrize("folder", LANGUAGES, ids=["en", "zh-CN"])
def test_every_metric_is_told(folder: Path) -> None:
    assert metrics() <= table_of(folder, "operating.md")


@pytest.mark.parametrize("folder", LANGUAGES, ids=["en", "zh-CN"])
def test_every_errcode_that_means_something_to_the_broker_is_told(folder: Path) -> None:
    told = (folder / "operating.md").read_text()
    for errcode in RULES.keys() | WECOM_RULES.keys():
        assert str(errcode) in told, errcode


@pytest.mark.parametrize(
    ("readme", "folder"), [("README.md", DOCS), ("README.zh-CN.md", CHINESE)], ids=["en", "zh-CN"]
)
def test_every_guide_is_found_from_the_readme(readme: str, folder: Path) -> None:
    linked = {(ROOT / target).resolve() for target in read(ROOT / readme).links}
    assert set(folder.glob("*.md")) <= linked


def test_what_lies_beside_the_guides_is_told() -> None:
    told = read(DEPLOY / "README.md")
    names = told.code | {target.split("/")[0] for target in told.links}
    there = {path.name for path in DEPLOY.iterdir()} - {"README.md"}
    assert {name.rstrip("/") for name in names} >= there


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_groups_of_the_benchmark_exist(page: Page) -> None:
    for only in re.findall(r"tests\.bench --only ([\w-]+)|`--only ([\w-]+)`", page.text):
        assert any("".join(only) in group for group in GROUPS), only
