"""The page of recipes, read: what is run is what is shown."""

import re
from dataclasses import dataclass

from tests.harness.places import DEPLOY

PAGE = DEPLOY / "sdk" / "README.md"
BROKER, KEY = "http://127.0.0.1:8765", "the-key-of-this-service"
MARKED = re.compile(
    r"<!-- run: (?P<sdk>[\w-]+) (?P<way>[\w-]+) -->\n```(?P<language>\w+)\n(?P<code>.*?)```",
    re.DOTALL,
)


@dataclass(frozen=True)
class Recipe:
    """How an SDK is pointed at the broker.

    The code leaves a `client` (Python) or an `api` (JavaScript).
    """

    sdk: str
    way: str
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.sdk} {self.way}"

    def at(self, broker: str, key: str) -> str:
        """The code for another address and key than the page's."""
        assert BROKER in self.code, f"{self} does not say where the broker is"
        assert KEY in self.code, f"{self} has no key"
        return self.code.replace(BROKER, broker).replace(KEY, key)


def marked() -> list[Recipe]:
    """Every recipe that the page says is run."""
    return [Recipe(**found.groupdict()) for found in MARKED.finditer(PAGE.read_text())]
