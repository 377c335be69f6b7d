"""[notify] and [[apps.NAME.sinks]]: what is taken, and what lets others act with our rights."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.config.load import ConfigError, load
from broker.config.schema import SinkFormat
from broker.config.settings import FileSinkSettings, NotifySettings, RedisSinkSettings, Settings
from tests.harness.doubles import CANARY

APP = '[apps.main]\nappid = "wx0123456789abcdef"\nsecret = "s3cret"\n'
FILE = APP + '[[apps.main.sinks]]\nkind = "file"\n'
REDIS = APP + '[[apps.main.sinks]]\nkind = "redis"\n'
Read = Callable[[str], Settings]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def settings(text: str) -> Settings:
        path = tmp_path / "config.toml"
        path.write_text(text)
        path.chmod(0o600)
        return load(path, {})

    return settings


def complaint(read: Read, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert CANARY not in str(caught.value)
    assert len(caught.value.errors) == 1, caught.value.errors
    return caught.value.errors[0]


def program(path: Path, mode: int = 0o700) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


# --- [notify] -------------------------------------------------------------------------------------


def test_nobody_is_told_unless_somebody_is_named(read: Read) -> None:
    assert read(APP).notify == NotifySettings()


def test_urls_are_secrets_with_the_number_of_their_line(read: Read, tmp_path: Path) -> None:
    urls = tmp_path / "urls"
    urls.write_text(f"# robots\n\nhttps://example.org/{CANARY}\n  https://b.example/x\n")
    urls.chmod(0o600)
    notify = read(f'{APP}[notify]\nurls_file = "./urls"\nhold = 1\nlanguage = "zh-CN"\n').notify
    assert [(line, url.reveal()) for line, url in notify.urls] == [
        (3, f"https://example.org/{CANARY}"),
        (4, "https://b.example/x"),
    ]
    assert CANARY not in repr(notify)
    assert (notify.hold, notify.remind, notify.language) == (1, 86400, "zh-CN")


@pytest.mark.parametrize("mode", [0o604, 0o666])
def test_a_file_of_urls_that_others_may_read_is_refused(
    read: Read, tmp_path: Path, mode: int
) -> None:
    (tmp_path / "urls").write_text("https://example.org/x\n")
    (tmp_path / "urls").chmod(mode)
    said = complaint(read, f'{APP}[notify]\nurls_file = "./urls"\n')
    assert said.startswith("notify.urls_file: ")
    assert "chmod 600" in said


def test_a_url_with_a_blank_in_it_is_named_by_its_line(read: Read, tmp_path: Path) -> None:
    (tmp_path / "urls").write_text(f"https://example.org/x\nhttps://example.org/ {CANARY}\n")
    (tmp_path / "urls").chmod(0o600)
    assert "line 2" in complaint(read, f'{APP}[notify]\nurls_file = "./urls"\n')


@pytest.mark.parametrize(
    ("mode", "directory", "says"),
    [
        (0o722, 0o700, "may be written by others"),
        (0o770, 0o700, "may be written by others"),
        (0o700, 0o777, "may be written by others"),
        (0o600, 0o700, "chmod +x"),
    ],
)
def test_a_hook_that_others_may_write_to_or_nobody_may_run_is_refused(
    read: Read, tmp_path: Path, mode: int, directory: int, says: str
) -> None:
    place = tmp_path / "hooks"
    place.mkdir()
    program(place / "notify", mode)
    place.chmod(directory)
    said = complaint(read, f'{APP}[notify]\nhook = "./hooks/notify"\n')
    assert said.startswith("notify.hook: ")
    assert says in said


def test_a_hook_that_is_missing_is_said(read: Read) -> None:
    assert "No such file" in complaint(read, f'{APP}[notify]\nhook = "./none"\n')


# --- file -----------------------------------------------------------------------------------------


def test_a_file_is_json_and_readable_by_the_group(read: Read, tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    (sink,) = read(FILE + 'path = "./main.json"\n').sinks["main"]
    assert sink == FileSinkSettings(tmp_path / "main.json", SinkFormat.JSON, 0o640, None)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702])
def test_a_directory_that_others_may_write_to_is_refused(
    read: Read, tmp_path: Path, mode: int
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    said = complaint(read, FILE + 'path = "./open/main.json"\n')
    assert said.startswith("apps.main.sinks[0].path: others may write")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_is_refused(read: Read, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(0o700)
    os.chown(tmp_path / "theirs", 65534, 65534)
    assert "belongs to uid 65534" in complaint(read, FILE + 'path = "./theirs/main.json"\n')


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("", "sinks[0].path: is needed"),
        ('path = "./x"\nmode = "0644"', "sinks[0].mode: lets others"),
        ('path = "./x"\nmode = "0660"', "sinks[0].mode: lets others"),
        ('path = "./x"\nmode = "640"', "sinks[0].mode: must be four octal digits"),
        ('path = "./x"\ngroup = "no-such-group-here"', "sinks[0].group: names no group"),
        ('path = "./x"\nformat = "wechatpy"', 'sinks[0].format: of a file is "json" or "token"'),
        ('path = "./x"\nkey = "k"', "sinks[0].key: is not a key of a sink of kind file"),
        ('path = "./none/x"', "sinks[0].path: the directory"),
        ('path = "./x"\npat = "y"', 'unknown key; did you mean "path"?'),
    ],
)
def test_what_a_file_cannot_be_is_said_by_key(read: Read, more: str, says: str) -> None:
    assert says in complaint(read, FILE + more + "\n")


# --- redis ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format_", "key"),
    [
        ("text", "token-broker:main"),
        ("wechatpy", "wechatpy:wx0123456789abcdef_access_token"),
        ("wxjava", "wx:access_token:wx0123456789abcdef"),
        ("silenceper", "gowechat_officialaccount__access_token_wx0123456789abcdef"),
        (
            "easywechat",
            "official_account.access_token.wx0123456789abcdef.token-broker.0",
        ),
    ],
)
def test_each_format_has_its_sdks_key(read: Read, format_: str, key: str) -> None:
    text = f'{REDIS}url = "redis://127.0.0.1/3"\nformat = "{format_}"\n'
    (sink,) = read(text).sinks["main"]
    assert isinstance(sink, RedisSinkSettings)
    assert (sink.key, sink.format.value) == (key, format_)
    (sink,) = read(f'{text}key = "mine:{{}}"\n').sinks["main"]
    assert isinstance(sink, RedisSinkSettings)
    assert sink.key == "mine:{}"


def test_a_password_stands_in_a_file_of_its_own(read: Read, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"redis://:{CANARY}@127.0.0.1:6379/0\n")
    (tmp_path / "url").chmod(0o600)
    (sink,) = read(REDIS + 'url_file = "./url"\n').sinks["main"]
    assert isinstance(sink, RedisSinkSettings)
    assert CANARY in sink.url.reveal()
    assert CANARY not in repr(sink)
    for url in (f"redis://:{CANARY}@h/0", f"redis://h/0?password={CANARY}"):
        assert "holds a password" in complaint(read, f'{REDIS}url = "{url}"\n')


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("", "sinks[0].url: exactly one of this and url_file"),
        ('url = "http://h"', "sinks[0].url: must look like redis://"),
        ('url = "redis://"', "sinks[0].url: must look like redis://"),
        ('url = "redis://h:x"', "sinks[0].url: is no URL"),
        ('url = "redis://h"\nformat = "json"', "sinks[0].format: of Redis is one of"),
        ('url = "redis://h"\nmode = "0600"', "sinks[0].mode: is not a key of a sink of kind redis"),
        ('url = "redis://h"\nkey = "a b"', "sinks[0].key: must be 1 to 256"),
    ],
)
def test_what_redis_cannot_be_is_said_by_key(read: Read, more: str, says: str) -> None:
    assert says in complaint(read, REDIS + more + "\n")


def test_an_sdk_of_wecom_names_its_key(read: Read) -> None:
    text = REDIS.replace("wx0", "ww0").replace("secret =", 'endpoint = "wecom"\nsecret =')
    text += 'url = "redis://h"\nformat = "wxjava"\n'
    assert "sinks[0].key: is needed" in complaint(read, text)
    (sink,) = read(text + 'key = "k"\n').sinks["main"]
    assert isinstance(sink, RedisSinkSettings)


def test_two_sinks_on_one_place_are_refused(read: Read) -> None:
    sink = '[[apps.main.sinks]]\nkind = "redis"\nurl = "redis://h"\nkey = "k"\n'
    said = complaint(read, f"{APP}{sink}{sink}")
    assert said == "apps.main.sinks[1]: writes what apps.main.sinks[0] writes"
