"""An SDK's process, told what to do."""

import json
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.harness.places import TESTS
from tests.harness.processes import House
from tests.sdks.recipes import KEY, Recipe

HERE = TESTS / "sdks"
PATIENCE_S = 60.0  # a crowd, or ten megabytes through two processes
# Ways in which an SDK makes its other calls to WeChat itself.
ASKS_WECHAT_TOO: Final = {"adapter", "adapter-login", "drop-in", "kept"}
HARNESS = {
    "python": [sys.executable, str(HERE / "in_python.py")],
    "js": ["node", str(HERE / "in_node.js")],
}


@dataclass
class Sdk:
    """The process."""

    popen: "subprocess.Popen[str]"
    log: Path

    def do(self, *deed: str | int) -> Any:
        """Tell it `call`, `crowd MANY`, `upload PATH` or `download ID`.

        Returns what came of it; an error is an object with `errcode`.
        """
        self.tell(*deed)
        return self.hear()

    def tell(self, *deed: str | int) -> None:
        """Have it begin."""
        assert self.popen.stdin
        self.popen.stdin.write(json.dumps(deed) + "\n")
        self.popen.stdin.flush()

    def hear(self) -> Any:
        """What came of it."""
        assert self.popen.stdout
        ready, _, _ = select.select([self.popen.stdout], [], [], PATIENCE_S)
        assert ready, f"not done within {PATIENCE_S} s"
        line = self.popen.stdout.readline()
        assert line, self.log.read_text()
        return json.loads(line)


@contextmanager
def running(recipe: Recipe, house: House, *, key: str = KEY) -> Iterator[Sdk]:
    """An SDK built by a recipe, for the house's daemon.

    What it asks WeChat itself comes to the sandbox.
    """
    code = house.home / f"{recipe.sdk}-{recipe.way}.{recipe.language}"
    code.write_text(recipe.at(house.daemon, key))
    elsewhere = [house.sandbox] if recipe.way in ASKS_WECHAT_TOO else []
    # node-easywechat keeps its tokens in files of the working directory.
    place = house.home if recipe.language == "js" else None
    log = house.home / "sdk.log"
    with (
        log.open("a") as stderr,
        subprocess.Popen(
            [*HARNESS[recipe.language], str(code), *elsewhere],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=place,
            text=True,
        ) as popen,
    ):
        try:
            yield Sdk(popen, log)
        finally:
            popen.kill()
