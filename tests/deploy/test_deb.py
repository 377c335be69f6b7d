"""The Debian package and the wheel: what is in them, and what installing and removing leaves."""

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from typing import Final

import pytest

from broker import __version__
from tests.harness.debian import Debian, debian
from tests.harness.places import DEPLOY, ROOT
from tests.harness.units import directives

BUILD: Final = DEPLOY / "build-deb.sh"
MOST_SECONDS: Final = 300
# The next revision is the same package with another number and another default configuration.
REVISE: Final = """
dpkg-deb -R /shared/token-broker_*-1_*.deb /shared/next
sed -i 's/^Version: .*/&+next/' /shared/next/DEBIAN/control
echo '# a new line' >> /shared/next/etc/token-broker/config.toml
mv /shared/next/opt/token-broker/*-1 /shared/next/opt/token-broker/next
ln -sfn next /shared/next/opt/token-broker/current
dpkg-deb -Zgzip -z1 --root-owner-group -b /shared/next /shared/next.deb
"""
LOOK: Final = """
cd /
for it in opt/token-broker usr/lib/systemd/system/token-broker.service \
    etc/token-broker/config.toml etc/token-broker/main.secret \
    var/lib/private/token-broker/broker.db; do
    [ ! -e "$it" ] || echo "$it"
done
getent group token-broker | cut -d: -f1
"""


def tracked(*paths: str) -> set[str]:
    """The files of the repository below these paths; in a copy without git, all there are."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", *paths], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return set(done.stdout.splitlines())
    found = (file for path in paths for file in (ROOT / path).rglob("*") if file.is_file())
    return {str(it.relative_to(ROOT)) for it in found if "__pycache__" not in it.parts}


@pytest.mark.soak
def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(tmp_path: Path) -> None:
    command = ["wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True, timeout=MOST_SECONDS)
    (wheel,) = tmp_path.glob("wechat_token_broker-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        entry = archive.read(f"wechat_token_broker-{__version__}.dist-info/entry_points.txt")
    assert names == tracked("broker")
    assert {"broker/py.typed", "broker/store/postgres/schema.sql"} <= names
    assert any("/templates/" in name for name in names)
    assert any("/static/" in name for name in names)
    assert b"token-broker = broker.__main__:main" in entry


@pytest.mark.needs("shellcheck")
def test_shellcheck_has_no_complaint_about_the_script_that_builds() -> None:
    done = subprocess.run(["shellcheck", BUILD], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_supervisor_is_told_what_the_unit_tells_systemd() -> None:
    recipe = ConfigParser(inline_comment_prefixes=(), interpolation=None)
    recipe.read(DEPLOY / "supervisor.conf")
    program, unit = recipe["program:token-broker"], directives("token-broker.service")
    assert [program["command"]] == unit["ExecStart"]
    assert [program["exitcodes"]] == unit["RestartPreventExitStatus"]
    assert [program["stopwaitsecs"]] == unit["TimeoutStopSec"]
    assert [f"0{program['umask']}"] == unit["UMask"]
    named = dict(re.findall(r'(\w+)="([^"]*)"', program["environment"]))
    assert {"STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CREDENTIALS_DIRECTORY"} <= named.keys()


@pytest.fixture
def there() -> Iterator[Debian]:
    with debian() as there:
        there.bring_source()
        yield there


@pytest.mark.soak
@pytest.mark.needs("namespaces", "mmdebstrap", "unshare")
def test_the_package_is_installed_upgraded_removed_and_purged(there: Debian) -> None:
    quickly = "DPKG_DEB_COMPRESSOR_TYPE=gzip DPKG_DEB_COMPRESSOR_LEVEL=1"
    there.must(f"{quickly} sh /shared/src/deploy/build-deb.sh --output /shared")
    # --- installed
    installed = there.must("dpkg -i /shared/token-broker_*-1_*.deb")
    assert "the AppID" in installed
    assert "getent: " not in installed
    assert there.must("token-broker --version").endswith(f"{__version__}\n")
    modes = there.must("stat -c '%a %U:%G' /etc/token-broker /etc/token-broker/config.toml")
    assert modes.split("\n")[:2] == ["750 root:token-broker", "640 root:token-broker"]
    built_in = "grep -rlF /tmp/tmp. /opt/token-broker/current/bin /opt/token-broker/current/*.cfg"
    assert there.run(built_in).stdout == ""
    where = "import broker.app; print(broker.app.serve.__code__.co_filename)"
    found = there.must(f"cd /; /opt/token-broker/current/bin/python -c '{where}'")
    assert found.startswith("/opt/token-broker/")
    # --- put to use
    there.must(
        "cd /etc/token-broker; sed -i 's/wx0123456789abcdef/wxfedcba9876543210/' config.toml;"
        "(umask 077; echo s3cret > main.secret); install -d -m 700 /var/lib/private/token-broker;"
        "export STATE_DIRECTORY=/var/lib/private/token-broker CREDENTIALS_DIRECTORY=$PWD;"
        "touch /var/lib/private/token-broker/broker.db;"
        "chmod 600 /var/lib/private/token-broker/broker.db; token-broker check"
    )
    everything = there.must(LOOK)
    assert everything.count("\n") == 6
    # --- upgraded
    there.must(REVISE)
    there.must("dpkg -i --force-confold /shared/next.deb < /dev/null")
    assert there.must("dpkg-query -W -f '${Version}' token-broker").endswith("-1+next")
    assert there.must("readlink /opt/token-broker/current; ls /opt/token-broker").split() == [
        *("next", "current", "next")
    ]
    assert "wxfedcba9876543210" in there.must("cat /etc/token-broker/config.toml")
    assert "a new line" in there.must("cat /etc/token-broker/config.toml.dpkg-dist")
    assert there.must(LOOK) == everything
    # --- removed: configuration, secret and store stay
    there.must("dpkg -r token-broker")
    assert there.must(LOOK).split() == everything.split()[2:]
    assert there.run("token-broker --version").returncode != 0
    # --- purged
    there.must("dpkg -P token-broker")
    assert there.must(LOOK) == ""
    assert (
        there.must("ls -d /etc/token-broker /var/lib/private/token-broker 2> /dev/null || :") == ""
    )
    # --- not over what the installer put there
    there.must("mkdir -p /opt/token-broker; touch /opt/token-broker/installed.sha256")
    refused = there.run("dpkg -i /shared/token-broker_*-1_*.deb")
    assert refused.returncode != 0
    assert "install.sh --uninstall" in refused.stderr
