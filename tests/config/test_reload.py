"""SIGHUP: each change alone is applied, or named while the rest is applied."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.config.load import ConfigError, load
from broker.config.reload import needs_restart, reloading
from broker.config.settings import Settings
from broker.system import log
from broker.system.systemd import NOBODY, Supervisor

APP = '[apps.main]\nappid = "wx1"\nsecret_file = "./main.secret"\n'


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], Settings]:
    (tmp_path / "main.secret").write_text("s3cret")
    (tmp_path / "main.secret").chmod(0o600)

    def settings(more: str = "") -> Settings:
        (tmp_path / "config.toml").write_text(f"{APP}{more}")
        return load(tmp_path / "config.toml", {"STATE_DIRECTORY": str(tmp_path)})

    return settings


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ('[server]\nlisten = ["127.0.0.1:1"]', "server.listen"),
        ("[server]\nexpress_lane = false", "server.express_lane"),
        ('[store]\nurl = "sqlite:///b"', "store"),
        ("[wechat]\ntimeout = 3", "wechat"),
        ('[wechat]\nproxy = "http://p:1"', "wechat"),
        ("[compat]\nenabled = true", "compat"),
        ("[proxy]\nrate = 3", "proxy"),
        ("[logins]\nrate = 3", "logins"),
        ('[server]\nallowed_hosts = ["a"]', ""),
        ('[server]\ntrusted_proxies = ["10.0.0.0/8"]', ""),
        ("[policy]\ntick = 3", ""),
        ('[apps.shop]\nappid = "wx2"\nsecret_file = "./main.secret"', ""),
        (f'[clients.orders]\nkey_sha256 = "{"a" * 64}"', ""),
        ("[avatars]", ""),
    ],
)
def test_what_cannot_be_applied_is_named(
    read: Callable[[str], Settings], change: str, key: str
) -> None:
    assert needs_restart(read(""), read(change)) == ([key] if key else [])


def test_another_secret_needs_no_restart(read: Callable[[str], Settings], tmp_path: Path) -> None:
    before = read("")
    (tmp_path / "main.secret").write_text("rolled")
    after = read("")
    assert before.apps["main"].secret != after.apps["main"].secret
    assert needs_restart(before, after) == []


class AppliedTo:
    """What a reload is applied to, and what is said of it."""

    def __init__(self) -> None:
        self.applied: list[Settings] = []
        self.failed: list[str] | None = []  # None: it refuses

    async def apply(self, read: Settings) -> list[str]:
        if self.failed is None:
            raise ConfigError(["clients: needed"])
        self.applied.append(read)
        return self.failed


class Ear(Supervisor):
    """A supervisor that keeps the last status."""

    said: list[str] = []  # noqa: RUF012 -- one test's

    def notify(self, *lines: str) -> bool:
        self.said.extend(line for line in lines if line.startswith("STATUS="))
        return True


@pytest.mark.parametrize(
    ("more", "failed", "status", "event"),
    [
        ("[policy]\ntick = 3", [], "STATUS=configuration read", "reloaded"),
        (
            "[wechat]\ntimeout = 3",
            [],
            "STATUS=configuration read; a restart is needed for: wechat",
            "restart-needed",
        ),
        (
            "",
            ["apps.main.secret (the store: disk full)"],
            "STATUS=configuration read; not applied: apps.main.secret (the store: disk full)",
            "reload-incomplete",
        ),
        (
            "",
            None,
            "STATUS=the configuration is refused, the old one stays: clients: needed",
            "reload-refused",
        ),
        ("[policy]\ntick = -1", [], "STATUS=the configuration is refused", "reload-refused"),
    ],
)
async def test_what_came_of_a_reload_is_told_to_systemd_and_the_log(
    read: Callable[[str], Settings],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    more: str,
    failed: list[str] | None,
    status: str,
    event: str,
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    events: list[str] = []
    monkeypatch.setattr(log, "tell", lambda event, **_: events.append(event))
    settings, daemon, hung_up, ear = read(""), AppliedTo(), asyncio.Event(), Ear()
    ear.said.clear()
    daemon.failed = failed
    async with reloading(settings, hung_up, daemon.apply, ear):
        (tmp_path / "config.toml").write_text(f"{APP}{more}")
        hung_up.set()
        async with asyncio.timeout(20):
            while not ear.said:
                await asyncio.sleep(0.01)
    assert ear.said[0].startswith(status)
    assert events == [event]
    assert len(daemon.applied) == (0 if "refused" in event else 1)
    assert NOBODY.notify("READY=1") is False
