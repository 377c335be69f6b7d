"""The Python of the next Debian: the inner loop passes on it too."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.harness.places import ROOT

SUITE, PYTHON = "trixie", "Python 3.13"
MIRROR: Final = "http://deb.debian.org/debian"
MOST_SECONDS: Final = 1500
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


@pytest.mark.soak
@pytest.mark.needs("namespaces", "mmdebstrap")
def test_the_inner_loop_passes_on_the_python_of_trixie(tmp_path: Path) -> None:
    tree, script = tmp_path / "tree", tmp_path / "inner-loop"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*LEFT_OUT))
    script.write_text(INNER_LOOP)
    hooks = [f"copy-in {tree} /", f"copy-in {script} /", 'chroot "$1" sh /inner-loop']
    if CERTIFICATES.exists():
        hooks[:0] = [f'mkdir -p "$1{CERTIFICATES.parent}"', f"upload {CERTIFICATES} {CERTIFICATES}"]
    done = subprocess.run(
        [
            # In namespaces of its own, so that no process and no mount outlives the time limit.
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            # CI=true would ask for tools that are not in there; these are tried outside.
            *("env", "--unset=CI", f"TMPDIR={tmp_path}"),
            *("mmdebstrap", "--quiet", "--variant=apt", "--include=python3-venv"),
            "--dpkgopt=force-unsafe-io",  # it is thrown away
            *(f"--customize-hook={hook}" for hook in hooks),
            *("--format=null", SUITE, "-", MIRROR),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=MOST_SECONDS,
    )
    shutil.rmtree(tmp_path)  # half a gigabyte if it did not end well
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert PYTHON in done.stdout
    assert " passed" in done.stdout
