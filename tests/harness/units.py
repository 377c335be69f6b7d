"""The installer and the systemd units of deploy/, as tests read them."""

from collections import defaultdict

from tests.harness.places import DEPLOY

INSTALL = DEPLOY / "install.sh"


def directives(unit: str) -> dict[str, list[str]]:
    """What a unit says, each key with all its values."""
    found = defaultdict(list)
    for line in (DEPLOY / unit).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found[key].append(value)
    return dict(found)
