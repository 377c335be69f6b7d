"""A Debian in a directory, where packages are installed so that the machine stays as it is.

It is made once and kept in /var/tmp; what a test changes in it goes into a directory of the test's
own, which is laid over it and thrown away.
"""

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.harness.places import ROOT

SUITE: Final = "bookworm"
MIRROR: Final = "http://deb.debian.org/debian"
PACKAGES: Final = ("buildah", "ca-certificates", "python3-venv")
CACHE: Final = Path("/var/tmp/token-broker-tests")  # noqa: S108 -- only root uses it
# Where the network is reached through a proxy with a certificate of its own, it is in here.
CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
MOST_SECONDS: Final = 360
# The namespaces end with the script, and so does everything that it has started or mounted.
ENTER: Final = """
set -eu
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$OVER/upper,workdir=$OVER/work" "$OVER/root"
mkdir -p "$OVER/root/shared"
mount --bind "$OVER/shared" "$OVER/root/shared"
mount -t proc proc "$OVER/root/proc"
mount --rbind /sys "$OVER/root/sys"
mount --rbind /dev "$OVER/root/dev"
exec chroot "$OVER/root" sh -eu -c "$SCRIPT"
"""


@dataclass(frozen=True)
class Debian:
    """A Debian as it was installed, under what this test has changed in it.

    `shared` is /shared in there, a directory of a real file system.
    """

    base: Path
    over: Path

    @property
    def root(self) -> Path:
        """What was changed: only those files are in here."""
        return self.over / "upper"

    @property
    def shared(self) -> Path:
        return self.over / "shared"

    def bring_source(self) -> None:
        """Copy what image and package are made of to /shared/src."""
        source = self.shared / "src"
        source.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
            shutil.copy(ROOT / name, source)
        for name in ("broker", "deploy"):
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=leave)

    def run(self, script: str) -> "subprocess.CompletedProcess[str]":
        """Run a script of the shell as root in there, to its end."""
        environ = {"BASE": str(self.base), "OVER": str(self.over), "SCRIPT": script}
        path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
        return subprocess.run(
            ["nice", "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER],
            env={**environ, **path, "DEBIAN_FRONTEND": "noninteractive"},
            capture_output=True,
            text=True,
            check=False,
            timeout=MOST_SECONDS,
        )

    def must(self, script: str) -> str:
        """Run a script that has to succeed; its output."""
        done = self.run(script)
        assert done.returncode == 0, f"{script}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout


@contextmanager
def debian() -> Iterator[Debian]:
    """A Debian of one's own. It needs `namespaces` and `mmdebstrap`."""
    base = _base()
    over = Path(tempfile.mkdtemp(prefix="over-", dir=CACHE))
    for name in ("upper", "work", "root", "shared"):
        (over / name).mkdir()
    try:
        yield Debian(base, over)
    finally:
        shutil.rmtree(over)


def _base() -> Path:
    """Return the directory of the Debian, made if there is none yet."""
    names = " ".join((SUITE, *PACKAGES))
    base = CACHE / f"{SUITE}-{hashlib.sha256(names.encode()).hexdigest()[:8]}"
    CACHE.mkdir(mode=0o700, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not base.exists():
            shutil.rmtree(half := base.with_suffix(".half"), ignore_errors=True)
            _install(half)
            half.rename(base)
    return base


def _install(place: Path) -> None:
    hooks = []
    if CERTIFICATES.exists():
        hooks.append(f"upload {CERTIFICATES} {CERTIFICATES}")
    command = [
        *("nice", "mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join(PACKAGES)}"),
        "--dpkgopt=force-unsafe-io",  # it is a cache
        *(f"--customize-hook={hook}" for hook in hooks),
        *(SUITE, str(place), MIRROR),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=MOST_SECONDS
    )
    assert done.returncode == 0, done.stderr[-4000:]
