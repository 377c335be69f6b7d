"""Reads the configuration: a TOML file, and the environment, whose values win.

Each key is checked against schema.py. Without a file, the environment may hold all of it.

`TOKEN_BROKER_POLICY__TICK=2` means `tick = 2` in `[policy]`. In the environment lists are
comma-separated or JSON. An app or client is named in capitals there, with `_` for everything but
letters and digits. A variable without `__` is not a key: Kubernetes sets TOKEN_BROKER_SERVICE_HOST
and others like it for a service named token-broker.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from broker.config.complaints import ConfigError, ConfigKey, Problems, suggestion
from broker.config.schema import TABLES, ConfigDocument, ConsentTable, EnvText, SinkTable, number
from broker.config.secret_files import FileRefused, check_closed, check_not_writable, read

DEFAULT_PATH: Final = Path("/etc/token-broker/config.toml")
PREFIX: Final = "TOKEN_BROKER_"
SECRET_PREFIX: Final = f"{PREFIX}SECRET_"
DELIMITER: Final = "__"
LONGEST_FILE: Final = 8 * 1024 * 1024
LARGEST_SHOWN: Final = 1e15

Tree = dict[str, Any]


class Names(NamedTuple):
    """The names of all apps and clients, also of those whose tables are wrong."""

    apps: frozenset[str]
    clients: frozenset[str]


WHERE_ELSE: Final = (
    "; name another with --config or $TOKEN_BROKER_CONFIG; `token-broker init` writes one"
)
# The reasons of tomllib that quote nothing but an equals sign or a bracket. The others quote keys
# or characters, which may be part of a secret.
_TOML_ERROR: Final = re.compile(
    r"((?:[A-Za-z /-]|'[=\]]+')+) \(at ((?:line \d+, column \d+)|end of document)\)"
)


def find_path(named: Path | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the configuration's path: `named`, $TOKEN_BROKER_CONFIG, or the usual place.

    None means that nobody names a file and none is in the usual place: then the environment holds
    the configuration.
    """
    if named is not None:
        return named
    if variable := environ.get("TOKEN_BROKER_CONFIG"):
        return Path(variable)
    return DEFAULT_PATH if os.path.lexists(DEFAULT_PATH) else None


def is_in_environment(environ: Mapping[str, str]) -> bool:
    """Return True if a variable sets a key of the configuration."""
    return any(name.startswith(PREFIX) and DELIMITER in name for name in environ)


def read_document(
    path: Path | None, environ: Mapping[str, str], problems: Problems, *, only: str = ""
) -> tuple[ConfigDocument, Names]:
    """Return the valid part of the configuration, and the names of all apps and clients.

    `path` is None where there is no file. What is wrong with single keys goes to `problems`. With
    `only`, wrong values outside of that section are left out without a complaint, but unknown keys
    are complained about everywhere. Raises ConfigError if the file cannot be read at all.
    """
    written = {} if path is None else _read_toml(path, problems)
    from_environ = _read_environ(environ, written)
    tree = _merged(written, from_environ)
    names = Names(
        *(
            frozenset(table) if isinstance(table := tree.get(key), dict) else frozenset()
            for key in ("apps", "clients")
        )
    )
    while True:
        try:
            return ConfigDocument.model_validate(tree), names
        except ValidationError as failure:
            errors = failure.errors(include_url=False)
        for error in errors:
            key = _key(error)
            if only in ("", key[0]) or error["type"] == "extra_forbidden":
                problems.add(key, _complaint(error) + _origin(key, environ))
        # From the back, so that the indices of list items stay right.
        for error in reversed(errors):
            _drop(tree, _key(error))


def env_name(name: str) -> str:
    """Return how an app, a client or a key is written in the name of an environment variable."""
    return re.sub(r"[^A-Z0-9]", "_", name.upper())


# --- reading --------------------------------------------------------------------------------------


def _read_toml(path: Path, problems: Problems) -> Tree:
    try:
        data, info = read(path, LONGEST_FILE)
        tree = tomllib.loads(data.decode("utf-8-sig"))
    except FileRefused as why:
        raise ConfigError([f"configuration: {why}{WHERE_ELSE if why.missing else ''}"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            [f"configuration: {path} is not UTF-8 from byte {error.start} on"]
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"configuration: {path} is not valid TOML{_where(error)}"]) from None
    try:
        check_closed(path, info) if _holds_secret(tree) else check_not_writable(path, info)
    except FileRefused as why:
        problems.add(("configuration",), str(why))
    return tree


def _where(error: Exception) -> str:
    """Return the place of a syntax error, and its reason if that quotes nothing of the file.

    The line may hold a secret.
    """
    match = _TOML_ERROR.fullmatch(str(error))
    if match:
        return f" at {match[2]}: {match[1]}"
    place = re.search(r"\(at (line \d+, column \d+|end of document)\)$", str(error))
    return f" at {place[1]}" if place else ""


def _holds_secret(tree: Tree) -> bool:
    apps = tree.get("apps")
    return isinstance(apps, dict) and any(
        isinstance(app, dict) and "secret" in app for app in apps.values()
    )


class _Keys(ConfigDocument, BaseSettings):
    """The document's keys, for pydantic-settings to find in the environment."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter=DELIMITER)


class _Environment(EnvSettingsSource):
    """Finds our keys in environment variables.

    Where a list is expected, a value that is not JSON is a comma-separated list.
    """

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            decoded = super().decode_complex_value(field_name, field, value)
        except (ValueError, RecursionError):
            decoded = None
        return (
            decoded
            if isinstance(decoded, list | dict | str)
            else [item.strip() for item in value.split(",")]
        )


def _read_environ(environ: Mapping[str, str], written: Tree) -> Tree:
    ours = {
        name: text
        for name, text in environ.items()
        if name.startswith(PREFIX) and DELIMITER in name
    }
    ours = {
        name.lower(): EnvText(text)
        for name, text in sorted(ours.items())
        if not name.startswith(SECRET_PREFIX)
    }
    source = _Environment(_Keys)
    source.env_vars = ours  # instead of os.environ: what is read is an argument here
    # Every section that is named, so that an unknown one is complained about.
    tree: Tree = {name[len(PREFIX) :].split(DELIMITER)[0]: {} for name in ours}
    tree |= source()
    for section in ("apps", "clients"):
        names = written.get(section)
        if section in tree and isinstance(names, dict):
            known = {env_name(name): name for name in names}
            tree[section] = {
                known.get(env_name(name), name): table for name, table in tree[section].items()
            }
    return tree


def _merged(under: Tree, over: Tree) -> Tree:
    both = {
        key: _merged(under[key], over[key])
        for key in under.keys() & over.keys()
        if _are_tables(under[key], over[key])
    }
    return under | over | both


def _are_tables(*values: object) -> bool:
    return all(isinstance(value, dict) for value in values)


# --- complaining ----------------------------------------------------------------------------------


def _key(error: ErrorDetails) -> ConfigKey:
    return tuple(part for part in error["loc"] if part != "[key]")


def _complaint(error: ErrorDetails) -> str:
    """Return a sentence about one wrong value.

    It quotes nothing but numbers, and these only where a number is expected.
    """
    kind, key, value = error["type"], _key(error), number(error["input"])
    table = TABLES.get(str(key[0])) if len(key) > 1 else ConfigDocument
    if "sinks" in key[2:-1]:
        table = SinkTable
    if key[:2] == ("avatars", "consent") and key[2:]:
        table = ConsentTable
    if kind == "extra_forbidden" and table:
        return f"unknown key{suggestion(str(key[-1]), table.model_fields)}"
    if kind in ("model_type", "dict_type"):
        return "must be a table"
    if kind == "tuple_type":
        return "must be an array"
    sentence = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    sentence = sentence.replace("a valid integer", "a whole number").replace("a valid ", "a ")
    if (
        kind.startswith(("greater_than", "less_than"))
        and isinstance(value, int | float)
        and abs(value) < LARGEST_SHOWN
    ):
        sentence += f", it is {value}"
    field = table.model_fields.get(str(key[-1])) if table else None
    return f"{sentence}; {field.description}" if field and field.description else sentence


def _origin(key: ConfigKey, environ: Mapping[str, str]) -> str:
    """Return the end of a sentence that tells which variable set a value, if one did."""
    variable = PREFIX + DELIMITER.join(env_name(part) for part in key if isinstance(part, str))
    found = next(
        (
            name
            for name in environ
            if name.upper() == variable or name.upper().startswith(variable + DELIMITER)
        ),
        None,
    )
    return f" (set by ${found})" if found else ""


def _drop(tree: Any, key: ConfigKey) -> None:
    """Remove a wrong value from the tree, so that the rest can be checked without it."""
    for part in key[:-1]:
        # Missing in a table where all around it was wrong and went first.
        tree = tree[int(part)] if isinstance(tree, list) else tree.get(part, {})
    if isinstance(tree, dict):
        tree.pop(key[-1], None)
    else:
        del tree[key[-1]]
