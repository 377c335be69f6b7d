"""What the tests need of the machine, which Debian package has it, and what happens without it.

`python -m tests.harness.tools` installs what is missing, where it can: Debian's packages as root,
npm's packages wherever npm is. A test says what it needs with `@pytest.mark.needs("promtool")`; it
also gets the mark that the table gives to the tool, to be selected or left out by. Where a tool is
missing the test is skipped with a line that says how to get it. With `CI=true` it fails instead.
"""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.harness.places import TESTS

NPM: Final = "npm ci --prefix tests"
POSTGRES: Final = "/usr/lib/postgresql/*/bin/initdb"
_PATH: Final = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # not all in a user's


class Tool(NamedTuple):
    """Where something comes from.

    `package` is Debian's, the same in bookworm and trixie, or `NPM`. `mark` is the mark of the
    tests that need it, if these have one. `where` is its path, as patterns with colons between
    them; without any it is a program on the PATH.
    """

    package: str
    mark: str = ""
    where: str = ""


TOOLS: Final = {
    # the shared store
    "initdb": Tool("postgresql", "postgres", POSTGRES),
    "pgbouncer": Tool("pgbouncer", "postgres"),
    # the pages
    "chromium": Tool("chromium", "browser"),
    "chromedriver": Tool("chromium-driver", "browser"),
    "chinese": Tool("fonts-noto-cjk", "browser", "/usr/share/fonts/*/noto/NotoSansCJK-Regular.*"),
    "axe-core": Tool(NPM, "browser", f"{TESTS}/node_modules/axe-core/axe.min.js"),
    # WeChat's SDKs in JavaScript
    "node": Tool("nodejs", "node"),
    "npm": Tool("npm", "node"),
    "wechat-api": Tool(NPM, "node", f"{TESTS}/node_modules/wechat-api"),
    "co-wechat-api": Tool(NPM, "node", f"{TESTS}/node_modules/co-wechat-api"),
    "node-easywechat": Tool(NPM, "node", f"{TESTS}/node_modules/node-easywechat"),
    "wechat-jssdk": Tool(NPM, "node", f"{TESTS}/node_modules/wechat-jssdk"),
    # who sends alerts to WeCom
    "prometheus-alertmanager": Tool("prometheus-alertmanager"),
    "co-wechat-oauth": Tool(NPM, "node", f"{TESTS}/node_modules/co-wechat-oauth"),
    "wechat-oauth": Tool(NPM, "node", f"{TESTS}/node_modules/wechat-oauth"),
    # the unit's restrictions, tried
    "bwrap": Tool("bubblewrap", "root"),
    "libseccomp": Tool(
        "libseccomp2", "root", "/usr/lib*/libseccomp.so.2:/usr/lib/*/libseccomp.so.2"
    ),
    "setpriv": Tool("util-linux", "root"),
    "unshare": Tool("util-linux", "root"),
    "prlimit": Tool("util-linux", "root"),
    "python3": Tool("python3", "root", "/usr/bin/python3"),  # one that every user may run
    "ensurepip": Tool("python3-venv", "root", "/usr/lib*/python3*/ensurepip"),
    # another Debian
    "mmdebstrap": Tool("mmdebstrap", "root"),
    # a company's way out
    "tinyproxy": Tool("tinyproxy"),
    # the commands of the guides
    "curl": Tool("curl"),
    # what judges the files in deploy/
    "systemd-analyze": Tool("systemd"),
    "systemd-socket-activate": Tool("systemd"),
    "promtool": Tool("prometheus"),
    "shellcheck": Tool("shellcheck"),
    # the benchmark's load, and what it compares with
    "wrk": Tool("wrk"),
    "h2load": Tool("nghttp2-client"),
    "nginx": Tool("nginx-light"),
    "go": Tool("golang-go"),
    "redis-server": Tool("redis-server"),
    "redis-benchmark": Tool("redis-tools"),
    "taskset": Tool("util-linux"),
}
# What no package brings: what the user must be.
RIGHTS: Final = {
    "root": "run the tests as root",
    "mount": "run the tests as root, on a machine that lets root mount a file system",
    "namespaces": "run the tests as root, where / is a mount point, as it is not in a plain chroot",
}


def mark_of(name: str) -> str:
    """The mark of tests that need this, or nothing."""
    return "root" if name in RIGHTS else TOOLS[name].mark


def path_of(name: str) -> Path:
    """Where a tool is, the newest of several; the test that asks says that it needs the tool."""
    path = _find(name)
    assert path, f'the test lacks its mark: @pytest.mark.needs("{name}")'
    return path


def _find(name: str) -> Path | None:
    if not TOOLS[name].where:
        return Path(found) if (found := shutil.which(name, path=_PATH)) else None
    patterns = TOOLS[name].where.split(":")
    paths = [path for it in patterns for path in Path("/").glob(it.removeprefix("/"))]
    return max(paths, key=_version, default=None)


def _version(path: Path) -> tuple[float, ...]:
    """The numbers in a path: PostgreSQL 17 is newer than 9."""
    return tuple(float(part) for part in path.parts if part.replace(".", "", 1).isdigit())


def need(*names: str) -> None:
    """Skip the test where one of these is missing; with CI=true, fail it.

    Raises pytest's exceptions of that meaning.
    """
    for name in names:
        if not is_there(name):
            why = f"{name} is missing: {_cure(name)}"
            pytest.fail(why, pytrace=False) if os.environ.get("CI") == "true" else pytest.skip(why)


@cache
def is_there(name: str) -> bool:
    """Return True if the machine has this tool, or the user this right."""
    if name == "root":
        return os.geteuid() == 0
    if name in {"mount", "namespaces"}:  # root of a container often may neither
        how = ["--propagation=unchanged"] if name == "mount" else []
        command = ["unshare", "--mount", *how, "true"]
        done = subprocess.run(command, check=False, capture_output=True)
        return is_there("root") and done.returncode == 0
    if name == "initdb" and os.geteuid() == 0 and not _is_user("postgres"):
        return False  # PostgreSQL refuses to run as root
    return _find(name) is not None


def _is_user(name: str) -> bool:
    return any(entry.pw_name == name for entry in pwd.getpwall())


def _cure(name: str) -> str:
    if name in RIGHTS:
        return RIGHTS[name]
    package = TOOLS[name].package
    return NPM if package == NPM else f"apt-get install {package}"


def main() -> None:
    """Install what is missing and can be installed; say what is missing still."""
    packages = {tool.package for name, tool in TOOLS.items() if not is_there(name)} - {NPM}
    if packages and os.geteuid() == 0 and shutil.which("apt-get"):
        install = ["apt-get", "install", "-qq", "--yes", "--no-install-recommends"]
        with _services_not_started():
            _run("apt-get", "update", "-qq")
            _run(*install, *sorted(packages))
    # `npm ls` fails where a package is missing or is of another version than the lock file's.
    if shutil.which("npm") and not _run("npm", "ls", "--prefix", str(TESTS), "--all", quiet=True):
        _run("npm", "ci", "--prefix", str(TESTS), "--no-audit", "--no-fund", "--silent")
    is_there.cache_clear()
    for cure in sorted({_cure(name) for name in TOOLS if not is_there(name)}):
        names = [name for name in TOOLS if not is_there(name) and _cure(name) == cure]
        print(f"Tests that need {', '.join(names)} are skipped. To have them run: {cure}")


def _run(*command: str, quiet: bool = False) -> bool:
    """Run to the end; return True if it succeeded."""
    if not quiet:
        print("+", *command, flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command,
        env=environment,
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if quiet else None,
    )
    return done.returncode == 0


@contextmanager
def _services_not_started() -> Iterator[None]:
    """Have Debian install services without starting them: the tests start their own."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


if __name__ == "__main__":
    main()
