"""Notices that an app's secret file was changed, and reads the new secret without a signal.

Platforms replace secret files while programs run: Kubernetes exchanges a link, an operator runs an
editor. The files are looked at every few seconds, and at once when WeChat refuses an app's secret.
A file that cannot be used is told of once, and the secret in force stays until it can.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from broker.config.secret_files import FileRefused, read_secret
from broker.config.settings import Settings
from broker.core.secret import Secret
from broker.system import log

LOOK_EVERY_S: Final = 5.0
Stamp = tuple[int, ...]
UseSecret = Callable[[str, Secret], None]


class SecretWatch:
    """Looks at the files that apps' secrets were read from."""

    def __init__(self, settings: Settings) -> None:
        self._woken = asyncio.Event()
        self._doubted: set[str] = set()
        self.follow(settings)

    def follow(self, settings: Settings) -> None:
        """Look at the files of these settings from now on; their secrets are in force."""
        self._files = dict(settings.secret_files)
        self._secrets = {name: app.secret for name, app in settings.apps.items()}
        self._stamps: dict[str, Stamp | None] = {}
        self._complaints: dict[str, str] = {}

    def doubt(self, app: str) -> None:
        """Read an app's file as soon as possible: WeChat has refused its secret."""
        if app in self._files:
            self._doubted.add(app)
            self._woken.set()

    @asynccontextmanager
    async def watching(self, use: UseSecret, every_s: float = LOOK_EVERY_S) -> AsyncIterator[None]:
        """Look again and again until the context ends.

        `use` is called with the name of an app and its new secret.
        """
        task = asyncio.create_task(self._look_again_and_again(use, every_s), name="secret-watch")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _look_again_and_again(self, use: UseSecret, every_s: float) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._woken.wait()
            self._woken.clear()
            try:
                await self.look(use)
            # A bug here must not end the watch.
            except Exception as error:  # noqa: BLE001
                log.crash("secret-watch", error)

    async def look(self, use: UseSecret) -> None:
        """Read the files that have changed since the last look, and those of doubted apps.

        `use` is called with the name of an app and its new secret.
        """
        files, doubted, self._doubted = self._files, self._doubted, set()
        # On a thread: a disk or a network that is slow must not hold up those who ask.
        found = await asyncio.to_thread(_read_changed, files, dict(self._stamps), doubted)
        if files is not self._files:  # the configuration was read again meanwhile
            return
        for app, (stamp, secret) in found.items():
            self._stamps[app] = stamp
            if isinstance(secret, str):
                self._complain(app, secret)
            else:
                self._replace(app, secret, use)

    def _complain(self, app: str, complaint: str) -> None:
        if self._complaints.get(app) != complaint:
            self._complaints[app] = complaint
            log.tell("secret-refused", app=app, why=complaint)

    def _replace(self, app: str, secret: Secret, use: UseSecret) -> None:
        if secret != self._secrets[app]:
            use(app, secret)
            self._secrets[app] = secret
        self._complaints.pop(app, None)


def _read_changed(
    files: Mapping[str, Path], stamps: Mapping[str, Stamp | None], doubted: set[str]
) -> dict[str, tuple[Stamp | None, Secret | str]]:
    """Return stamp and secret of each file that has another stamp, or why it cannot be used."""
    found: dict[str, tuple[Stamp | None, Secret | str]] = {}
    for app, file in files.items():
        stamp = _stamp(file)
        if app in doubted or app not in stamps or stamps[app] != stamp:
            try:
                found[app] = stamp, read_secret(file, os.environ)
            except FileRefused as why:
                found[app] = stamp, str(why)
    return found


def _stamp(file: Path) -> Stamp | None:
    """Return what differs between two states of a file, None where there is none."""
    try:
        info = file.stat()
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_mode, info.st_uid, info.st_mtime_ns, info.st_ctime_ns
