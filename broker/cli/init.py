"""`token-broker init`: writes a first configuration and the secret's file.

It asks for what it needs, or takes it from options where there is no terminal. It never overwrites
a file, and shows no secret.
"""

import hashlib
import json
import os
import secrets
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import click
from pydantic import TypeAdapter, ValidationError

from broker.config.schema import AppId, Name
from broker.config.secret_files import FileRefused, as_secret
from broker.config.sources import DEFAULT_PATH
from broker.core.secret import Secret

T = TypeVar("T")
SERVICE_GROUP: Final = "token-broker"  # made by deploy/install.sh
LOOPBACK: Final = "127.0.0.1:8765"
EVERYWHERE: Final = "0.0.0.0:8765"
KEY_BYTES: Final = 32
KEY_FILE: Final = "services.key"
SERVICES: Final = ("here", "elsewhere")
ENDPOINTS: Final = ("token", "stable_token", "wecom")
ENDPOINT_ADVICE: Final = """\
Which token endpoint?
  token          the classic one: each call makes a new token and ends the one before. Right if this
                 broker is the only program that fetches tokens for this account.
  stable_token   repeats the same token, ends none early, and allows 500000 calls a day. The better
                 choice if other programs still fetch classic tokens: services can move one by one.
  wecom          an app of WeCom (企业微信); the AppID is then the corpid."""
SERVICES_ADVICE: Final = """\
Where are the services that will ask for tokens?
  here           on this machine: no key is needed.
  elsewhere      on other machines, too: they need a key, which is made now."""


class InitRefused(Exception):  # noqa: N818 -- said to a person
    """An answer or a place that will not do. Says why."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the configuration is written from. `services` is `here` or `elsewhere`."""

    name: str
    appid: str
    secret: Secret
    endpoint: str
    services: str


def valid_name(text: str) -> str:
    """Return the name of an app. Raises InitRefused."""
    return _valid(TypeAdapter(Name), text)


def valid_appid(text: str) -> str:
    """Return an AppID or corpid. Raises InitRefused."""
    return _valid(TypeAdapter(AppId), text)


def valid_secret(text: str) -> Secret:
    """Return a secret. Raises InitRefused, without quoting it."""
    try:
        return as_secret(text, "the AppSecret")
    except FileRefused as why:
        raise InitRefused(str(why)) from None


def _valid(kind: TypeAdapter[str], text: str) -> str:
    try:
        return kind.validate_python(text)
    except ValidationError as error:
        raise InitRefused(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


# --- asking ---------------------------------------------------------------------------------------


def ask(given: dict[str, str], secret: Secret | None) -> Answers:
    """Ask at the terminal for everything that was not given as an option."""
    name = given.get("name") or _asked(
        "Name of the app, as services will call it", valid_name, "main"
    )
    appid = given.get("appid") or _asked("AppID (or corpid)", valid_appid)
    if secret is None:
        secret = _asked("AppSecret (not shown)", valid_secret, hide=True)
    endpoint = given.get("endpoint") or _chosen(ENDPOINT_ADVICE, "Endpoint", ENDPOINTS)
    services = given.get("services") or _chosen(SERVICES_ADVICE, "Services", SERVICES)
    return Answers(name, appid, secret, endpoint, services)


def _asked(
    question: str, valid: Callable[[str], T], default: str | None = None, *, hide: bool = False
) -> T:
    while True:
        try:
            return valid(click.prompt(question, default=default, hide_input=hide, err=True))
        except InitRefused as why:
            click.echo(f"  {why}", err=True)


def _chosen(advice: str, question: str, choices: tuple[str, ...]) -> str:
    click.echo(f"\n{advice}", err=True)
    answer: str = click.prompt(
        question, type=click.Choice(choices), default=choices[0], show_choices=False, err=True
    )
    return answer


def without_terminal(given: dict[str, str], secret: Secret | None) -> Answers:
    """Take everything from options. Raises InitRefused, naming those that are missing."""
    missing = [f"--{key}" for key in ("appid",) if key not in given]
    missing += [] if secret else ["--secret-from"]
    if missing:
        raise InitRefused(f"there is no terminal to ask at: give {' and '.join(missing)}")
    assert secret is not None  # noqa: S101 -- just looked
    endpoint, services = given.get("endpoint", ENDPOINTS[0]), given.get("services", SERVICES[0])
    return Answers(given.get("name", "main"), given["appid"], secret, endpoint, services)


# --- writing --------------------------------------------------------------------------------------


def write(config: Path, answers: Answers) -> list[Path]:
    """Write configuration, secret and, for services elsewhere, a key; return the paths.

    Raises InitRefused if one of them exists already, and OSError. Nothing is left behind then.
    """
    home, key = config.parent, secrets.token_urlsafe(KEY_BYTES)
    secret_file = home / f"{answers.name}.secret"
    files = {secret_file: f"{answers.secret.reveal()}\n"}
    if answers.services == "elsewhere":
        files[home / KEY_FILE] = f"{key}\n"
    files[config] = _configuration(answers, secret_file, key)
    if taken := [str(path) for path in files if os.path.lexists(path)]:
        raise InitRefused(f"{', '.join(taken)}: there already, and never overwritten")
    made: list[Path] = []
    try:
        if not home.exists():
            home.mkdir(mode=0o750, parents=True)
            _let_service_read(home)
        for path, content in files.items():
            _create(path, content)
            made.append(path)
        _let_service_read(config)
    except BaseException:
        for path in made:
            path.unlink()
        raise
    return list(files)


def _configuration(answers: Answers, secret_file: Path, key: str) -> str:
    listen = LOOPBACK if answers.services == "here" else EVERYWHERE
    lines = [
        "# Written by `token-broker init`. deploy/config.example.toml shows every key.",
        "[server]",
        f"listen = [{json.dumps(listen)}]",
        "",
        f"[apps.{json.dumps(answers.name)}]",
        f"appid = {json.dumps(answers.appid)}",
        f"endpoint = {json.dumps(answers.endpoint)}",
    ]
    # The unit hands the file over as a credential: root's file is not the daemon's to read. It has
    # a directory for the store, too; elsewhere the store stands beside the configuration, so that
    # it is the same one wherever the daemon is started.
    if service_group() is None:
        lines.append(f"secret_file = {json.dumps(f'./{secret_file.name}')}")
        store = secret_file.absolute().with_name("broker.db")
        lines += ["", "[store]", f"url = {json.dumps(f'sqlite://{store}', ensure_ascii=False)}"]
    if answers.services == "elsewhere":
        digest = hashlib.sha256(key.encode()).hexdigest()
        lines += ["", "[clients.services]", f"key_sha256 = {json.dumps(digest)}   # of {KEY_FILE}"]
    return "\n".join([*lines, ""])


def _create(path: Path, content: str) -> None:
    """Write a new file that only its owner reads."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(content)


def _let_service_read(path: Path) -> None:
    """Let the service's group read what root wrote. That group is the clients', too."""
    if (group := service_group()) is not None:
        os.chown(path, -1, group)
        path.chmod(0o750 if path.is_dir() else 0o640)


def service_group() -> int | None:
    """Return the group of the service that deploy/install.sh installs, if root runs this."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    import grp  # noqa: PLC0415 -- Windows has none

    try:
        return grp.getgrnam(SERVICE_GROUP).gr_gid
    except KeyError:
        return None


def next_steps(config: Path, answers: Answers) -> list[str]:
    """Return the three commands to go on with."""
    option = "" if config == DEFAULT_PATH else f" --config {shlex.quote(str(config))}"
    start = f"token-broker serve{option}"
    if service_group() is not None:
        start = "systemctl enable --now token-broker.socket token-broker.service"
    key_file = shlex.quote(str(config.parent / KEY_FILE))
    key = "" if answers.services == "here" else f" --key-file {key_file}"
    return [start, f"token-broker status{option}", f"token-broker get {answers.name}{option}{key}"]


def read_secret_from(source: str) -> Secret:
    """Read the secret from a file, or from standard input where `source` is `-`.

    Raises InitRefused.
    """
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text("utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InitRefused(f"--secret-from: cannot read it: {why}") from None
    return valid_secret(text)
