"""`python -m tests.harness.trixie`: the inner loop on the Python of the next Debian.

It needs root, mmdebstrap and a machine that is otherwise idle, and takes some ten minutes.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.harness.places import ROOT

SUITE: Final = "trixie"
MIRROR: Final = "http://deb.debian.org/debian"
# Not of the tree, and large.
LEFT_OUT: Final = (".git", ".venv", "node_modules", "__pycache__", ".*_cache", ".hypothesis")
# Where the network is reached through a proxy with a certificate of its own, it is in here.
CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
INNER_LOOP: Final = """
set -eu
cd /tree
python3 --version
python3 -m venv /venv
/venv/bin/pip install --quiet --constraint .ci/constraints.txt --editable '.[dev]'
/venv/bin/pytest -n 2 -m 'not soak and not postgres and not browser and not node and not root'
"""


def main() -> int:
    """Run it in a chroot that is thrown away; return the exit code."""
    with tempfile.TemporaryDirectory(prefix="trixie-") as home:
        tree, script = Path(home) / "tree", Path(home) / "inner-loop"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*LEFT_OUT))
        script.write_text(INNER_LOOP)
        hooks = [f"copy-in {tree} /", f"copy-in {script} /", 'chroot "$1" sh /inner-loop']
        if CERTIFICATES.exists():
            place = CERTIFICATES.parent
            hooks[:0] = [f'mkdir -p "$1{place}"', f"upload {CERTIFICATES} {CERTIFICATES}"]
        command = [
            # In namespaces of its own, so that no process and no mount outlives it.
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            # CI=true would ask for tools that are not in there.
            *("env", "--unset=CI", f"TMPDIR={home}"),
            *("mmdebstrap", "--quiet", "--variant=apt", "--include=python3-venv"),
            "--dpkgopt=force-unsafe-io",  # it is thrown away
            *(f"--customize-hook={hook}" for hook in hooks),
            *("--format=null", SUITE, "-", MIRROR),
        ]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
