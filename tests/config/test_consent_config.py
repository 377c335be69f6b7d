"""[avatars.consent]: without who, why, how long and where, nobody is asked for anything."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker.config.load import ConfigError, load, load_avatars
from broker.core.secret import Secret
from broker.system.address import Address
from tests.harness.processes import run

GOOD = {
    "operator": "示例公司",
    "purpose": "在关注者墙上显示头像",
    "keep_days": 365,
    "contact": "privacy@example.com",
    "public_url": "https://consent.example.com",
    "listen": "127.0.0.1:8767",
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    for name, word in {
        "main.secret": "s3cret",
        "key": "k" * 32,
        "older": "o" * 32,
        "token": "messagetoken",
        "aes": "a" * 43,
    }.items():
        (tmp_path / name).write_text(word)
        (tmp_path / name).chmod(0o600)

    def written(more: str = "", app: str = "main", **keys: Any) -> Path:
        lines = [f"{name} = {_toml(value)}" for name, value in {**GOOD, **keys}.items() if value]
        path = tmp_path / "config.toml"
        path.write_text(
            '[apps.main]\nappid = "wx0123456789abcdef"\nsecret_file = "./main.secret"\n'
            f'[avatars]\napp = "{app}"\n[avatars.consent]\n' + "\n".join([*lines, more])
        )
        path.chmod(0o600)
        return path

    return written


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | list) else f'"{value}"'


def errors(path: Path) -> tuple[str, ...]:
    """Both the daemon's side and the companion's refuse, with the same sentences."""
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    with pytest.raises(ConfigError) as also:
        load_avatars(path, {})
    assert also.value.errors == caught.value.errors
    return caught.value.errors


def test_it_is_off_by_default(tmp_path: Path, write: Write) -> None:
    path = write()
    path.write_text(path.read_text().partition("[avatars.consent]")[0])
    assert load_avatars(path, {}).consent is None
    assert not (tmp_path / "consent.db").exists()


def test_all_that_is_needed_is_enough(tmp_path: Path, write: Write) -> None:
    consent = load_avatars(write(), {"STATE_DIRECTORY": "/var/lib/x:/y"}).consent
    assert consent is not None
    assert (consent.operator, consent.operator_en) == ("示例公司", "示例公司")
    assert (consent.keep_days, consent.public_url) == (365, "https://consent.example.com")
    assert consent.listen == Address("tcp", "127.0.0.1", 8767)
    assert consent.appid == "wx0123456789abcdef"
    assert consent.store == Path("/var/lib/x/consent.db")
    assert not consent.renew
    assert consent.authorize_url == "https://open.weixin.qq.com/connect/oauth2/authorize"
    named = load_avatars(write(store="./people.db"), {}).consent
    assert named is not None
    assert named.store == tmp_path / "people.db"


def test_every_key_that_is_missing_is_named_at_once(write: Write) -> None:
    found = errors(write(**dict.fromkeys(GOOD)))
    assert [error.partition(":")[0] for error in found] == [f"avatars.consent.{it}" for it in GOOD]
    assert all("is needed" in error for error in found)


@pytest.mark.parametrize("name", GOOD)
def test_each_of_them_is_needed(write: Write, name: str) -> None:
    (error,) = errors(write(**{name: None}))
    assert error.startswith(f"avatars.consent.{name}: is needed")


def test_check_and_the_companion_end_with_78_and_name_the_keys(write: Write) -> None:
    config = str(write(operator=None, contact=None))
    for command in ("check", "avatars", "serve"):
        done = run(command, "--config", config)
        assert done.returncode == 78
        for name in ("operator", "contact"):
            assert f"avatars.consent.{name}: is needed" in done.stderr


@pytest.mark.parametrize(
    "url",
    [
        "http://consent.example.com",
        "https://consent.example.com:8443",
        "https://consent.example.com/consent",
        "https://192.0.2.1",
        "https://[2001:db8::1]",
        "https://localhost",
        "https://intranet",
        "https://u:p@consent.example.com",
        "https://consent.example.com?x",
        "consent.example.com",
        "ftp://consent.example.com",
        "https://",
    ],
)
def test_the_public_address_is_https_and_a_bare_host(write: Write, url: str) -> None:
    (error,) = errors(write(public_url=url))
    assert error.startswith("avatars.consent.public_url: must be https:// and a bare host name")


def test_a_loopback_address_will_do_for_the_sandbox(write: Write) -> None:
    consent = load_avatars(write(public_url="http://127.0.0.1:8767"), {}).consent
    assert consent is not None
    assert consent.public_url == "http://127.0.0.1:8767"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("keep_days", 0, ""),
        ("keep_days", -1, "greater than or equal to 1"),
        ("keep_days", 4000, "less than or equal to 3650"),
        ("operator", "x" * 301, "1 to 300 characters"),
        ("purpose", "   ", "1 to 300 characters"),
        ("listen", "127.0.0.1:8766", "must not be avatars.listen"),
        ("listen", "nonsense", "an address is"),
        ("appid", "nonsense", "an AppID looks like"),
        ("verification_file", "../etc/passwd", "must be the name of the file"),
        ("verification_file", "MP_verify_.txt", "must be the name of the file"),
        ("picture_hosts", [".qlogo.cn", "https://x.example"], "must be a host"),
        ("picture_hosts", [".qlogo.cn", "."], "must be a host"),
        ("picture_hosts", [], "at least 1 item"),
        ("authorize_url", "http://open.weixin.qq.com/x", "must be https"),
        ("renew", True, "needs encryption_key_file"),
        ("renew", "yes", "must be true or false"),
        ("message_key_file", "./aes", "needs message_token_file"),
        ("previous_encryption_key_file", "./older", "needs encryption_key_file"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(write: Write, key: str, value: Any, said: str) -> None:
    more = "picture_hosts = []" if value == [] else ""
    (error,) = errors(write(more, **{key: value}))
    assert error.startswith(f"avatars.consent.{key}")
    assert said in error


def test_an_unknown_key_is_refused_with_the_one_that_is_meant(write: Write) -> None:
    (error,) = errors(write(operater="x"))
    assert error.startswith('avatars.consent.operater: unknown key; did you mean "operator"?')


@pytest.mark.parametrize(
    ("name", "word", "said"),
    [
        ("encryption_key_file", "short", "a key has at least 16 characters"),
        ("message_token_file", "x!", "a message token has 3 to 32"),
        ("message_key_file", "a" * 42, "an EncodingAESKey has 43"),
    ],
)
def test_the_companion_reads_its_secrets_and_judges_them_without_quoting(
    tmp_path: Path, write: Write, name: str, word: str, said: str
) -> None:
    (tmp_path / "word").write_text(word)
    (tmp_path / "word").chmod(0o600)
    keys = {"message_token_file": "./token", name: "./word"}
    with pytest.raises(ConfigError) as caught:
        load_avatars(write(**keys), {})
    (error,) = caught.value.errors
    assert error.startswith(f"avatars.consent.{name}: ")
    assert said in error
    assert word not in error
    assert load(write(**keys), {}).avatars is not None, "the daemon reads none of them"


def test_secrets_that_others_may_read_are_refused(tmp_path: Path, write: Write) -> None:
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(ConfigError, match="others have access"):
        load_avatars(write(encryption_key_file="./key"), {})


def test_secrets_come_with_the_settings(write: Write) -> None:
    keys = {
        "encryption_key_file": "./key",
        "previous_encryption_key_file": "./older",
        "message_token_file": "./token",
        "message_key_file": "./aes",
        "renew": True,
    }
    consent = load_avatars(write(**keys), {}).consent
    assert consent is not None
    assert consent.encryption_key == Secret("k" * 32)
    assert consent.previous_encryption_key == Secret("o" * 32)
    assert consent.message_token == Secret("messagetoken")
    assert consent.message_key == Secret("a" * 43)
    assert consent.renew
    assert "k" * 32 not in repr(consent)


def test_which_app_asks_is_found_or_must_be_said(write: Write) -> None:
    named = load_avatars(write(appid="wxfedcba9876543210"), {}).consent
    assert named is not None
    assert named.appid == "wxfedcba9876543210"
    path = write(app="wx0123456789abcdef")
    path.write_text("[avatars]" + path.read_text().partition("[avatars]")[2])
    alone = load_avatars(path, {}).consent
    assert alone is not None
    assert alone.appid == "wx0123456789abcdef"
    path = write()
    path.write_text("[avatars]" + path.read_text().partition("[avatars]")[2])
    with pytest.raises(ConfigError) as caught:
        load_avatars(path, {})
    (error,) = caught.value.errors
    assert error.startswith("avatars.consent.appid: is needed")


def test_the_environment_can_hold_it() -> None:
    environ = {
        f"TOKEN_BROKER_AVATARS__CONSENT__{name.upper()}": str(value) for name, value in GOOD.items()
    }
    environ["TOKEN_BROKER_AVATARS__APP"] = "wx0123456789abcdef"
    environ["TOKEN_BROKER_AVATARS__CONSENT__PICTURE_HOSTS"] = ".qlogo.cn,pics.example.com"
    consent = load_avatars(None, environ).consent
    assert consent is not None
    assert (consent.keep_days, consent.operator) == (365, "示例公司")
    assert consent.picture_hosts == (".qlogo.cn", "pics.example.com")
