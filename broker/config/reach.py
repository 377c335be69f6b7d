"""What [notify] and [[apps.NAME.sinks]] mean: whom the daemon tells, and where it writes tokens."""

import os
import stat
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from broker.config.complaints import ConfigKey
from broker.config.schema import AppTable, ConfigDocument, NotifyTable, SinkFormat, SinkTable
from broker.config.secret_reader import SecretReader
from broker.config.settings import (
    FileSinkSettings,
    NotifySettings,
    RedisSinkSettings,
    SinkSettings,
)
from broker.core.secret import Secret

WRITABLE: Final = stat.S_IWGRP | stat.S_IWOTH
OTHERS: Final = 0o007
FILE_FORMATS: Final = (SinkFormat.JSON, SinkFormat.TOKEN)
REDIS_SCHEMES: Final = ("redis", "rediss", "unix")
# The key under which each SDK looks, as its own source has it: see the guide for where.
KEYS: Final[Mapping[SinkFormat, str]] = MappingProxyType(
    {
        SinkFormat.TEXT: "token-broker:{app}",
        SinkFormat.WECHATPY: "wechatpy:{appid}_access_token",
        SinkFormat.WXJAVA: "wx:access_token:{appid}",
        SinkFormat.SILENCEPER: "gowechat_officialaccount__access_token_{appid}",
        SinkFormat.EASYWECHAT: "official_account.access_token.{appid}.token-broker.0",
    }
)


def notify_settings(table: NotifyTable, reader: SecretReader) -> NotifySettings:
    """Return [notify], with the URLs in hand."""
    hook = None if table.hook is None else reader.home / table.hook
    if hook is not None and (why := why_not_run(hook)):
        reader.problems.add(("notify", "hook"), why)
    key = ("notify", "urls_file")
    urls = () if table.urls_file is None else reader.lines(key, table.urls_file)
    return NotifySettings(hook, urls, table.hold, table.remind, table.language)


def why_not_run(program: Path) -> str:
    """Say why a program must not be run, or nothing.

    Whoever may write to it would act with our rights.
    """
    try:
        info, directory = program.stat(), program.parent.stat()
    except OSError as error:
        return f"{program} cannot be read: {error.strerror}"
    if not stat.S_ISREG(info.st_mode) or not os.access(program, os.X_OK):
        return f"{program} is not a program that this user may run: chmod +x it"
    for path, found in ((program, info), (program.parent, directory)):
        if found.st_uid not in (0, os.geteuid()):
            return f"{path} belongs to uid {found.st_uid}, not to us or root"
        if found.st_mode & WRITABLE:
            return f"{path} may be written by others: chmod go-w it"
    return ""


def sink_settings(
    document: ConfigDocument, reader: SecretReader
) -> dict[str, tuple[SinkSettings, ...]]:
    """Return the sinks of each app that has some."""
    found = {
        name: tuple(_sinks(name, app, reader)) for name, app in document.apps.items() if app.sinks
    }
    _refuse_twice(found, reader)
    return found


def _sinks(name: str, app: AppTable, reader: SecretReader) -> list[SinkSettings]:
    made: list[SinkSettings | None] = []
    for place, table in enumerate(app.sinks):
        key = ("apps", name, "sinks", place)
        foreign = _foreign(table)
        if foreign:
            reader.problems.add((*key, foreign), f"is not a key of a sink of kind {table.kind}")
        elif table.kind == "file":
            made.append(_file(table, key, reader))
        else:
            made.append(_redis(name, app, table, key, reader))
    return [one for one in made if one is not None]


def _foreign(table: SinkTable) -> str:
    """Return a key that is given but belongs to the other kind, or nothing."""
    others = ("url", "url_file", "key") if table.kind == "file" else ("path", "mode", "group")
    return next((name for name in others if name in table.model_fields_set), "")


def _file(table: SinkTable, key: ConfigKey, reader: SecretReader) -> FileSinkSettings | None:
    problems, chosen = reader.problems, table.format or SinkFormat.JSON
    if chosen not in FILE_FORMATS:
        problems.add((*key, "format"), 'of a file is "json" or "token"')
    if table.path is None:
        problems.add((*key, "path"), "is needed")
        return None
    path, mode, group = reader.home / table.path, int(table.mode, 8), None
    if mode & OTHERS or mode & stat.S_IWGRP or not mode & stat.S_IRUSR:
        problems.add(
            (*key, "mode"), 'lets others read or write the token: "0640" with a group, or "0600"'
        )
    if why := why_not_here(path.parent):
        problems.add((*key, "path"), why)
    if table.group is not None:
        try:
            import grp  # noqa: PLC0415 -- Windows has none

            group = grp.getgrnam(table.group).gr_gid
        except KeyError:
            problems.add((*key, "group"), "names no group of this machine")
    return FileSinkSettings(path, chosen, mode, group)


def why_not_here(directory: Path) -> str:
    """Say why a token must not be written into a directory, or nothing.

    Whoever may write there may put another file in its place.
    """
    try:
        info = directory.stat()
    except OSError as error:
        return f"the directory {directory} cannot be used: {error.strerror}"
    if not stat.S_ISDIR(info.st_mode):
        return f"{directory} is not a directory"
    if info.st_uid not in (0, os.geteuid()):
        return f"the directory {directory} belongs to uid {info.st_uid}, not to us or root"
    if info.st_mode & WRITABLE:
        return f"others may write to the directory {directory}: chmod go-w it, or choose another"
    return ""


def _redis(
    name: str, app: AppTable, table: SinkTable, key: ConfigKey, reader: SecretReader
) -> RedisSinkSettings | None:
    problems, chosen = reader.problems, table.format or SinkFormat.TEXT
    if chosen in FILE_FORMATS:
        known = ", ".join(f'"{one.value}"' for one in KEYS)
        problems.add((*key, "format"), f"of Redis is one of {known}")
        return None
    if find_spec("redis") is None:
        problems.add(
            (*key, "kind"), "needs the package redis: pip install 'wechat-token-broker[redis]'"
        )
    if (table.url is None) == (table.url_file is None):
        problems.add((*key, "url"), "exactly one of this and url_file is needed")
        return None
    if table.url_file is not None:
        where = (*key, "url_file")
        url = reader.file(where, table.url_file)
    else:
        where, url = (*key, "url"), Secret(table.url or "")
    if url is None:
        return None
    if why := _why_no_redis(url.reveal(), is_guarded=table.url_file is not None):
        problems.add(where, why)
    if table.key is None and app.endpoint == "wecom" and chosen is not SinkFormat.TEXT:
        problems.add(
            (*key, "key"), "is needed: under which key an SDK keeps a token of WeCom's, it says"
        )
    written = table.key or KEYS[chosen].format(app=name, appid=app.appid)
    return RedisSinkSettings(url, written, chosen)


def _why_no_redis(url: str, *, is_guarded: bool) -> str:
    try:
        parts = urlsplit(url)
        has_password, _ = parts.password is not None, parts.port
    except ValueError:
        return "is no URL"
    if parts.scheme not in REDIS_SCHEMES or not (parts.hostname or parts.scheme == "unix"):
        return "must look like redis://host:6379/0, rediss://… or unix:///run/redis.sock"
    if not is_guarded and (has_password or "password=" in parts.query):
        return "holds a password: put the URL into a file, mode 600, and name it in url_file"
    return ""


def _refuse_twice(found: Mapping[str, tuple[SinkSettings, ...]], reader: SecretReader) -> None:
    """Two sinks that write the same place would undo each other's work for ever."""
    owners: dict[object, str] = {}
    for name, sinks in found.items():
        for place, sink in enumerate(sinks):
            where: object = (
                sink.path if isinstance(sink, FileSinkSettings) else (sink.url.reveal(), sink.key)
            )
            first = owners.setdefault(where, f"apps.{name}.sinks[{place}]")
            if first != f"apps.{name}.sinks[{place}]":
                reader.problems.add(("apps", name, "sinks", place), f"writes what {first} writes")
