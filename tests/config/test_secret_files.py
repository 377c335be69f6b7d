"""Secret files as platforms deliver them: whose they may be, with which modes, on which mounts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from broker.config.secret_files import FileRefused, Reader, check_closed

UID, GID, ELSE = 10001, 10001, 54321
US = Reader(UID, frozenset({GID, 2000}))


def closed(path: Path, mode: int, uid: int, gid: int, reader: Reader = US) -> str:
    """Return why a file with such an owner and mode is refused; nothing where it is accepted."""
    numbers = list(path.stat())
    numbers[0], numbers[4], numbers[5] = 0o100000 | mode, uid, gid
    found = os.stat_result(numbers)
    try:
        check_closed(path, found, reader)
    except FileRefused as why:
        return str(why)
    return ""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "main.secret"
    path.write_text("s3cret")
    return path


@pytest.mark.parametrize(
    ("mode", "uid", "gid"),
    [
        (0o600, UID, GID),
        (0o400, 0, 0),
        (0o440, 0, GID),  # Kubernetes with fsGroup
        (0o440, 0, 2000),
        (0o640, 0, ELSE),  # root chose the group
        (0o640, UID, GID),
        (0o660, UID, 2000),
    ],
)
def test_what_is_ours_or_roots_and_closed_to_others_is_accepted(
    file: Path, mode: int, uid: int, gid: int
) -> None:
    assert closed(file, mode, uid, gid) == ""


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "why", "cure"),
    [
        (0o600, ELSE, GID, f"belongs to uid {ELSE}", f"as root: chown {UID} "),
        (0o640, UID, ELSE, "a group have access", "chmod 600 "),
        (0o660, 0, ELSE, "a group have access", f"as root: chown {UID} "),
        (0o444, 0, 0, "others have access", f"as root: chown {UID} "),
        (0o604, UID, GID, "others have access", "chmod 600 "),
    ],
)
def test_what_somebody_else_could_read_is_refused_with_a_cure_for_us(
    file: Path, mode: int, uid: int, gid: int, why: str, cure: str
) -> None:
    said = closed(file, mode, uid, gid)
    assert why in said
    assert f": {cure}" in said


def test_windows_has_no_modes_to_go_by(file: Path) -> None:
    assert closed(file, 0o666, 0, 0, Reader(None, frozenset())) == ""


# --- on real mounts -------------------------------------------------------------------------------

real_mounts = pytest.mark.needs("mount", "unshare", "setpriv")
CONFIG = '[apps.main]\nappid = "wx1"\nsecret_file = "{}"\n[store]\nurl = "sqlite:///run/s/b.db"\n'


def check(tmp_path: Path, secret_file: str, mounts: str) -> str:
    """What `check` says as uid 10001, after a shell script that made mounts as root."""
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(secret_file))
    script = f"""
        set -e
        mount -t tmpfs -o mode=755 none /run
        mkdir /run/c /run/s && cp {config} /run/c/config.toml && chown {UID}:{GID} /run/c /run/s
        {mounts}
        exec setpriv --reuid={UID} --regid={GID} --clear-groups --inh-caps=-all \
            {sys.executable} -m broker check --config /run/c/config.toml
    """
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in {0, 78}, done.stderr
    return "" if done.returncode == 0 else done.stderr


VOLUME = """
    mkdir /run/v && mount -t tmpfs -o mode=1777 none /run/v
    mkdir /run/v/..2026 && printf s3cret > /run/v/..2026/main.secret
    chmod {mode} /run/v/..2026/main.secret && chown 0:{gid} /run/v/..2026/main.secret
    ln -s ..2026 /run/v/..data && ln -s ..data/main.secret /run/v/main.secret
    {then}
"""
READ_ONLY = "mount -o remount,ro /run/v"


@real_mounts
@pytest.mark.parametrize(("mode", "gid"), [("0444", 0), ("0440", GID), ("0644", 0)])
def test_a_secret_volume_of_kubernetes_is_accepted(tmp_path: Path, mode: str, gid: int) -> None:
    mounts = VOLUME.format(mode=mode, gid=gid, then=READ_ONLY)
    assert check(tmp_path, "/run/v/main.secret", mounts) == ""


@real_mounts
def test_the_same_volume_is_refused_while_it_can_be_written(tmp_path: Path) -> None:
    mounts = VOLUME.format(mode="0444", gid=0, then="")
    said = check(tmp_path, "/run/v/..2026/main.secret", mounts)
    assert "others have access (mode 0444)" in said
    cure = re.findall(r"as root: (chown .*)", said)
    assert check(tmp_path, "/run/v/..2026/main.secret", f"{mounts}\n{cure[0]}") == ""


@real_mounts
@pytest.mark.parametrize("options", ["ro", "rw"])
def test_a_file_that_an_engine_mounts_into_run_secrets_is_accepted(
    tmp_path: Path, options: str
) -> None:
    mounts = f"""
        mkdir /run/secrets /run/engine && mount -t tmpfs none /run/engine
        printf s3cret > /run/engine/x && chmod 444 /run/engine/x && touch /run/secrets/main.secret
        mount --bind /run/engine/x /run/secrets/main.secret
        mount -o remount,bind,{options} /run/secrets/main.secret
    """
    assert check(tmp_path, "/run/secrets/main.secret", mounts) == ""


@real_mounts
def test_a_file_of_the_hosts_user_that_compose_mounts_is_accepted(tmp_path: Path) -> None:
    mounts = f"""
        mkdir /run/secrets /run/host && mount -t tmpfs none /run/host
        printf s3cret > /run/host/x && chmod 644 /run/host/x && chown {ELSE} /run/host/x
        touch /run/secrets/main.secret && mount --bind /run/host/x /run/secrets/main.secret
        mount -o remount,bind,ro /run/secrets/main.secret
    """
    assert check(tmp_path, "/run/secrets/main.secret", mounts) == ""


@real_mounts
def test_a_file_in_run_secrets_that_is_no_mount_and_open_to_all_is_refused(tmp_path: Path) -> None:
    plain = "mkdir /run/secrets && printf s3cret > /run/secrets/main.secret"
    mode = "chmod 444 /run/secrets/main.secret"
    assert "others have access" in check(tmp_path, "/run/secrets/main.secret", f"{plain} && {mode}")
    shut = f"{plain} && {mode} && chown {UID} /run/secrets && chmod 700 /run/secrets"
    assert check(tmp_path, "/run/secrets/main.secret", shut) == ""


@real_mounts
def test_a_read_only_root_alone_makes_no_secret_of_a_file(tmp_path: Path) -> None:
    """ProtectSystem=strict shows all of / as read-only, and others read the file all the same."""
    secret = Path("/var/tmp") / f"{tmp_path.name}.secret"  # noqa: S108 -- on the root's own device
    secret.write_text("s3cret")
    secret.chmod(0o644)
    try:
        assert secret.stat().st_dev == Path("/").stat().st_dev
        said = check(tmp_path, str(secret), "mount -o remount,bind,ro /")
    finally:
        secret.unlink()
    assert "read-only file system and not a mount of its own" in said
