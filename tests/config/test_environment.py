"""Configuration from the environment alone: no file anywhere, and every key."""

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from broker.config.load import ConfigError, load, load_avatars, load_server
from broker.config.schema import TABLES
from broker.config.sources import DEFAULT_PATH
from tests.harness.certificates import Authority
from tests.harness.doubles import APPID
from tests.harness.places import DEPLOY, ROOT
from tests.harness.processes import House, Process, ask, until

MINIMAL = {"TOKEN_BROKER_APPS__MAIN__APPID": "wx1", "TOKEN_BROKER_SECRET_MAIN": "s3cret"}
EXAMPLE = (DEPLOY / "config.example.toml").read_text()


@pytest.fixture(autouse=True)
def _no_file_in_the_usual_place() -> None:
    assert not DEFAULT_PATH.exists()


def test_an_appid_and_a_secret_are_a_whole_configuration() -> None:
    settings = load(None, MINIMAL)
    assert settings.path is None
    assert settings.apps["main"].appid == "wx1"
    assert settings.apps["main"].secret.reveal() == "s3cret"
    assert settings.server == load_server(None, MINIMAL)


def test_the_secret_may_be_a_mounted_file(tmp_path: Path) -> None:
    (tmp_path / "main.secret").write_text("mounted")
    (tmp_path / "main.secret").chmod(0o440)
    environ = {
        "TOKEN_BROKER_APPS__MAIN__APPID": "wx1",
        "CREDENTIALS_DIRECTORY": str(tmp_path),
    }
    settings = load(None, environ)
    assert settings.apps["main"].secret.reveal() == "mounted"
    assert settings.secret_files == {"main": tmp_path / "main.secret"}


def test_without_file_and_variables_the_sentence_names_every_way() -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {"TOKEN_BROKER_SERVICE_HOST": "10.0.0.1"})
    (error,) = caught.value.errors
    for way in ("--config", "$TOKEN_BROKER_CONFIG", "init", "TOKEN_BROKER_APPS__MAIN__APPID"):
        assert way in error


def test_a_file_that_is_named_must_exist() -> None:
    with pytest.raises(ConfigError, match="/nowhere does not exist"):
        load(None, {**MINIMAL, "TOKEN_BROKER_CONFIG": "/nowhere"})
    with pytest.raises(ConfigError, match="/nowhere does not exist"):
        load(Path("/nowhere"), MINIMAL)


def test_who_only_asks_and_the_companion_go_by_the_defaults() -> None:
    assert str(load_server(None, {}).listen[0]) == "127.0.0.1:8765"
    assert load_avatars(None, {"TOKEN_BROKER_AVATARS__APP": "main"}).app == "main"


UNLIKE_THE_DEFAULT = {
    "server.listen": ["127.0.0.1:1", "unix:/run/b.sock"],
    "server.allowed_hosts": ["a_b", "10.0.0.1"],
    "server.trusted_proxies": ["10.0.0.0/8", "fd00::/8"],
    "store.url": "sqlite:///elsewhere/b.db",
    "wechat.api_base": "https://relay.example/weixin",
    "wechat.proxy": "http://proxy:3128",
    "wecom.api_base": "https://relay.example/wecom",
    "apps.secret": "s3cret",
    "apps.endpoint": "stable_token",
    "clients.key_sha256": "a" * 64,
    "clients.scopes": ["read"],
    "proxy.prefixes": ["/cgi-bin/", "/wxa/"],
    "proxy.allow": ["/cgi-bin/openapi/rid/get"],
    "avatars.listen": "127.0.0.1:2",
    "avatars.broker": "unix:/run/b.sock",
    "notify.language": "zh-CN",
}
NEEDED = {"appid", "app", "secret", "secret_file", "key_file", "key_sha256"}
WITHOUT_EFFECT_HERE = {"node", "apps", "allow_plaintext"}
NAMES = {"apps": "main", "clients": "orders"}
# Sinks and consent are tables of their own: see test_reach.py and test_consent.py beside this
KEYS = [
    (section, key)
    for section, table in TABLES.items()
    for key in table.model_fields
    if key not in {"sinks", "consent"}
]
SHOWN = tomllib.loads(re.sub(r"^#(?=[a-z\[])", "", EXAMPLE, flags=re.MULTILINE))


def another_value(home: Path, section: str, key: str) -> Any:
    """Return a value for a key that is not its default."""
    if (known := UNLIKE_THE_DEFAULT.get(f"{section}.{key}")) is not None:
        return known
    if key.endswith("_file"):
        Authority(home)
        word = "http://me:pw@proxy:3128" if key == "proxy_file" else "k" * 32
        (home / "word").write_text(word)
        (home / "word").chmod(0o600)
        return str(home / ("ca.pem" if key == "ca_file" else "word"))
    if key == "hook":
        (home / "hook").write_text("#!/bin/sh\n")
        (home / "hook").chmod(0o700)
        return str(home / "hook")
    table = SHOWN[section][NAMES[section]] if section in NAMES else SHOWN[section]
    value = table[key]
    if isinstance(value, bool):
        return not value
    return type(value)(value * 1.2) if isinstance(value, int | float) else value


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_every_key_means_the_same_in_the_environment_and_in_a_file(
    tmp_path: Path, section: str, key: str
) -> None:
    tree: dict[str, Any] = {"apps": {"main": {"appid": "wx1"}}, "avatars": {"app": "main"}}
    name = NAMES.get(section)
    place = tree.setdefault(section, {})
    place = place.setdefault(name, {}) if name else place
    place[key] = another_value(tmp_path, section, key)
    if key == "previous_encryption_key_file":
        (tmp_path / "newer").write_text("n" * 32)
        (tmp_path / "newer").chmod(0o600)
        place["encryption_key_file"] = str(tmp_path / "newer")
    if section == "clients" and not key.startswith("key_"):
        place["key_sha256"] = "b" * 64
    config = tmp_path / "config.toml"
    config.write_text(
        "".join(f"{'.'.join(path)} = {json.dumps(leaf)}\n" for path, leaf in leaves(tree))
    )
    config.chmod(0o600)
    secret = {} if key.startswith("secret") else {"TOKEN_BROKER_SECRET_MAIN": "s3cret"}
    variables = {
        f"TOKEN_BROKER_{'__'.join(path)}".upper(): as_text(leaf) for path, leaf in leaves(tree)
    }
    in_file, in_environment = load(config, secret), load(None, {**secret, **variables})
    assert replace(in_environment, path=config) == in_file
    place.pop(key)
    if key not in NEEDED | WITHOUT_EFFECT_HERE:
        variables.pop(f"TOKEN_BROKER_{'__'.join(filter(None, (section, name, key)))}".upper())
        assert load(None, {**secret, **variables}) != in_environment


def leaves(tree: dict[str, Any]) -> list[tuple[tuple[str, ...], Any]]:
    """Return each value of a tree of tables with its path."""
    found: list[tuple[tuple[str, ...], Any]] = []
    for key, value in tree.items():
        inner = leaves(value) if isinstance(value, dict) else [((), value)]
        found += [((key, *path), leaf) for path, leaf in inner]
    return found


def as_text(value: Any) -> str:
    """Write a value as an environment variable."""
    if isinstance(value, list):
        return ",".join(value)
    return value if isinstance(value, str) else json.dumps(value)


def _is_ready(url: str) -> bool:
    return ask("GET", f"{url}/readyz")[0] == 200


@pytest.mark.needs("mount", "bwrap", "setpriv")
def test_the_daemon_runs_without_a_file_in_a_read_only_root_as_a_user_without_a_name(
    tmp_path: Path,
) -> None:
    """Uid 10001 has no entry in /etc/passwd; its secret is a mounted file of mode 0444."""
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", 10001, 10001)
    (tmp_path / "main.secret").write_text("s3cret")
    (tmp_path / "main.secret").chmod(0o444)
    house = House(tmp_path)
    with house.sandboxed():
        environ = {
            "TOKEN_BROKER_APPS__MAIN__APPID": APPID,
            "TOKEN_BROKER_SERVER__LISTEN": "127.0.0.1:0,unix:/run/state/broker.sock",
            "TOKEN_BROKER_STORE__URL": "sqlite:///run/state/broker.db",
            "TOKEN_BROKER_WECHAT__API_BASE": house.sandbox,
            "CREDENTIALS_DIRECTORY": "/run/secrets",
            "PYTHONPATH": str(ROOT),
            "PATH": os.environ["PATH"],
        }
        mounts = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/run"]
        mounts += ["--bind", str(tmp_path / "state"), "/run/state"]
        mounts += ["--perms", "0755", "--dir", "/run/secrets"]
        mounts += ["--ro-bind", str(tmp_path / "main.secret"), "/run/secrets/main.secret"]
        user = ["setpriv", "--reuid=10001", "--regid=10001", "--clear-groups"]
        command = [*mounts, "--chdir", "/", *user, sys.executable, "-m", "broker"]
        for attempt in range(2):  # a second start finds the first one's store
            with (
                (tmp_path / f"log{attempt}").open("w") as log,
                subprocess.Popen(
                    ["bwrap", "--die-with-parent", *command, "serve"],
                    env=environ,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                ) as popen,
            ):
                daemon = Process(popen, tmp_path / f"log{attempt}")
                address = re.search(r"http://[^\s,]+", daemon.first_line())
                assert address
                until(partial(_is_ready, address[0]), "ready")
                children = Path(f"/proc/{popen.pid}/task/{popen.pid}/children").read_text()
                for child in children.split():
                    os.kill(int(child), signal.SIGTERM)
                assert popen.wait(20) == 0
        assert len(house.calls()) == 1
