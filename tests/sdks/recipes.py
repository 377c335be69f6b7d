"""The page of recipes, read: what is run is what is shown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

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

    The code leaves a `client` (Python) or an `api` (JavaScript); Alertmanager's is its
    configuration (YAML).
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


def chapters() -> tuple[str, str]:
    """Return what the page says of tokens, and what it says of people who log in."""
    tokens, _, logins = PAGE.read_text().partition("\n## Logins\n")
    return tokens, logins


def sections(text: str) -> list[tuple[str, str]]:
    """Return each SDK that a chapter has a section on, and the section."""
    return re.findall(r"^### (.+)\n((?:(?!^##).*\n)+)", text, re.MULTILINE)


def is_told(recipes: list[Recipe], name: str, text: str) -> bool:
    """Return True if a section says truly which of its recipes are run, and shows those."""
    said = re.search(r"Run by tests(?:, in `[^`]+`)?: (.+?)\.\s", text)
    run = set(re.findall(r"`([^`]+)`", said[1])) if said else set()
    shown = [recipe for recipe in recipes if recipe.sdk == name.lower()]
    languages = re.findall(r"^```(\w+)$", text, re.MULTILINE)
    return (
        run == {str(recipe) for recipe in shown}
        and bool(run) != ("Read, not run: `" in text)
        and (not run or languages == [recipe.language for recipe in shown])
    )


def marked() -> list[Recipe]:
    """Every recipe that the page says is run."""
    return [Recipe(**found.groupdict()) for found in MARKED.finditer(PAGE.read_text())]


def runnable(recipes: Sequence[Recipe]) -> list[Any]:
    """Return recipes as parameters of a test; those in JavaScript need what npm installs."""
    return [
        pytest.param(
            it, marks=pytest.mark.needs("node", it.sdk) if it.language == "js" else (), id=str(it)
        )
        for it in recipes
    ]
