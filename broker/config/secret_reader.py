"""Reads the secrets and other files that a configuration names.

What is wrong with one becomes a complaint about its key.
"""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from broker.config.complaints import ConfigKey, Problems
from broker.config.schema import AppTable
from broker.config.secret_files import (
    FileRefused,
    check_not_writable,
    find_secret,
    read,
    read_secret,
    read_secret_lines,
)
from broker.config.sources import LONGEST_FILE, SECRET_PREFIX, env_name
from broker.core.secret import Secret

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SecretReader:
    """Reads secrets and other files; what goes wrong becomes a complaint about their key.

    Relative paths are relative to `home`. `secret_files` collects the files that apps' secrets were
    read from, by the name of the app.
    """

    home: Path
    environ: Mapping[str, str]
    problems: Problems
    secret_files: dict[str, Path] = field(default_factory=dict)

    def file(self, key: ConfigKey, path: str | Path) -> Secret | None:
        """Return the secret in a file, or None after a complaint."""
        return self._attempt(key, partial(read_secret, self.home / path, self.environ))

    def certificates(self, key: ConfigKey, path: str | Path) -> Path | None:
        """Return the path of a file with certificates, or None after a complaint."""
        file = self.home / path
        try:
            data, info = read(file, LONGEST_FILE)
            check_not_writable(file, info)
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(
                cadata=data.decode("ascii")
            )
        except FileRefused as why:
            self.problems.add(key, str(why))
        except (ssl.SSLError, ValueError):
            self.problems.add(key, f"{file} holds no certificates in PEM form (BEGIN CERTIFICATE)")
        else:
            return file
        return None

    def app_secret(self, name: str, app: AppTable) -> Secret | None:
        """Return an app's secret, or None after a complaint."""
        if self.problems.about("apps", name, "secret_file") or self.problems.about(
            "apps", name, "secret"
        ):
            return None
        if app.secret_file is not None and app.secret is not None:
            self.problems.add(
                ("apps", name, "secret_file"), "there is `secret` as well: keep one of them"
            )
            return None
        key = ("apps", name, "secret_file" if app.secret is None else "secret")
        file = None if app.secret_file is None else self.home / app.secret_file
        found = self._attempt(
            key,
            partial(
                find_secret, name, file, SECRET_PREFIX + env_name(name), app.secret, self.environ
            ),
        )
        if found is None:
            return None
        secret, place = found
        if place is not None:
            self.secret_files[name] = place
        return secret

    def lines(self, key: ConfigKey, path: str | Path) -> tuple[tuple[int, Secret], ...]:
        """Return the lines of a file, each a secret, with their numbers; none after a complaint."""
        return self._attempt(key, partial(read_secret_lines, self.home / path, self.environ)) or ()

    def _attempt(self, key: ConfigKey, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except FileRefused as why:
            self.problems.add(key, str(why))
            return None
