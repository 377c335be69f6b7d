"""A changed secret file is noticed without a signal, and at once when a call has failed."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.config.load import load
from broker.config.secret_watch import SecretWatch
from broker.config.settings import Settings
from broker.core.secret import Secret
from broker.system import log
from tests.harness.doubles import CANARY

Told = list[tuple[str, dict[str, object]]]


class Home:
    """A directory with a configuration of two apps, whose secret files may change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for app in ("main", "shop"):
            self.write(app, f"{CANARY}-{app}")
        self.config = path / "config.toml"
        self.config.write_text(
            "".join(
                f'[apps.{app}]\nappid = "wx{app}"\nsecret_file = "./{app}.secret"\n'
                for app in ("main", "shop")
            )
        )
        self.used: list[tuple[str, Secret]] = []
        self.watch = SecretWatch(self.settings)

    def use(self, app: str, secret: Secret) -> None:
        self.used.append((app, secret))

    @property
    def settings(self) -> Settings:
        return load(self.config, {})

    def file(self, app: str) -> Path:
        return self.path / f"{app}.secret"

    def write(self, app: str, secret: str, mode: int = 0o600) -> None:
        """Replace a file as careful programs do."""
        new = self.path / "new"
        new.write_text(secret)
        new.chmod(mode)
        new.replace(self.file(app))

    def took(self) -> list[tuple[str, str]]:
        """What was used since the last time."""
        taken = [(app, secret.reveal()) for app, secret in self.used]
        self.used.clear()
        return taken


@pytest.fixture
async def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    found: Told = []
    monkeypatch.setattr(log, "tell", lambda event, **facts: found.append((event, facts)))
    return found


async def test_only_a_changed_file_is_read_and_used(home: Home) -> None:
    await home.watch.look(home.use)
    assert home.took() == []
    home.write("shop", "new-secret")
    await home.watch.look(home.use)
    assert home.took() == [("shop", "new-secret")]
    await home.watch.look(home.use)
    assert home.took() == []


async def test_a_change_between_the_start_and_the_first_look_is_found(home: Home) -> None:
    home.write("main", "new-secret")
    await home.watch.look(home.use)
    assert home.took() == [("main", "new-secret")]


async def test_a_rolled_volume_of_kubernetes_is_noticed(home: Home) -> None:
    """The platform exchanges a link; the path of the secret stays what it was."""
    for version, secret in (("..1", f"{CANARY}-main"), ("..2", "rolled")):
        (home.path / version).mkdir()
        (home.path / version / "main.secret").write_text(secret)
        (home.path / version / "main.secret").chmod(0o600)
    (home.path / "..data").symlink_to("..1")
    home.file("main").unlink()
    home.file("main").symlink_to("..data/main.secret")
    await home.watch.look(home.use)
    (home.path / "..new").symlink_to("..2")
    (home.path / "..new").rename(home.path / "..data")
    await home.watch.look(home.use)
    assert home.took() == [("main", "rolled")]


async def test_a_file_that_cannot_be_used_is_told_of_once_and_the_secret_stays(
    home: Home, told: Told
) -> None:
    await home.watch.look(home.use)
    home.write("main", "s3cret", mode=0o644)
    for _ in range(3):
        await home.watch.look(home.use)
    home.file("main").unlink()
    for _ in range(3):
        await home.watch.look(home.use)
    assert home.took() == []
    assert [event for event, _ in told] == ["secret-refused", "secret-refused"]
    assert "chmod 600" in str(told[0])
    assert "does not exist" in str(told[1])
    home.write("main", "cured")
    await home.watch.look(home.use)
    assert home.took() == [("main", "cured")]
    assert "cured" not in str(told)


async def test_a_doubted_file_is_read_at_once_even_if_it_looks_unchanged(home: Home) -> None:
    """A file system may keep times to the second only."""
    await home.watch.look(home.use)
    info = home.file("main").stat()
    async with home.watch.watching(home.use, every_s=3600):
        with home.file("main").open("w") as file:
            file.write("in-place")
        os.utime(home.file("main"), ns=(info.st_atime_ns, info.st_mtime_ns))
        home.watch.doubt("nobody")
        home.watch.doubt("main")
        await _until(lambda: bool(home.used))
    assert home.took() == [("main", "in-place")]


async def test_after_a_reload_other_files_are_followed(home: Home) -> None:
    await home.watch.look(home.use)
    home.config.write_text(home.config.read_text().replace("apps.shop", "apps.store"))
    home.watch.follow(home.settings)
    home.write("shop", "new-secret")
    await home.watch.look(home.use)
    assert home.took() == [("store", "new-secret")]


async def test_a_look_that_a_reload_overtook_changes_nothing(home: Home) -> None:
    home.write("main", "new-secret")
    look = asyncio.create_task(home.watch.look(home.use))
    await asyncio.sleep(0)
    home.watch.follow(home.settings)
    await look
    assert home.took() == []


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)
