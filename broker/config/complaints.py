"""What is wrong with a configuration: one complaint for each key, all of them at once."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

LONGEST_KEY_SHOWN: Final = 64
MOST_NAMES_SHOWN: Final = 12
ConfigKey = tuple[str | int, ...]


class ConfigError(Exception):
    """The configuration will not do.

    `errors` are sentences, each led by its key; none holds a secret or a file's content.
    """

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(self.errors))


class Problems:
    """What is wrong with the configuration so far: one complaint for each key, the first."""

    def __init__(self) -> None:
        self._complaints: dict[ConfigKey, str] = {}
        self._around: set[ConfigKey] = set()

    def add(self, key: ConfigKey, complaint: str) -> None:
        """Complain about a key, unless there is a complaint already: the second would follow from the first."""
        self._complaints.setdefault(key, complaint)
        self._around.update(_way_to(key))

    def about(self, *key: str) -> bool:
        """Whether there is a complaint about this key, what it stands in, or anything in it."""
        return key in self._around or any(part in self._complaints for part in _way_to(key))

    def raise_any(self) -> None:
        """Raise all of it as one ConfigError, if there is anything."""
        if self._complaints:
            raise ConfigError(
                f"{_dotted(key)}: {complaint}" for key, complaint in self._complaints.items()
            )


def suggestion(word: str, known: Iterable[str]) -> str:
    """The end of a sentence: the name that may have been meant, and those there are, or nothing."""
    names = sorted(known)
    close = get_close_matches(word, names, n=1)
    meant = f'; did you mean "{close[0]}"?' if close else ""
    return meant + (
        f"; there {'is' if len(names) == 1 else 'are'} {', '.join(names)}"
        if len(names) <= MOST_NAMES_SHOWN
        else ""
    )


def _way_to(key: ConfigKey) -> list[ConfigKey]:
    return [key[:length] for length in range(1, len(key) + 1)]


def _dotted(key: ConfigKey) -> str:
    """Write a key as TOML does, `apps."my shop".secret` or `server.listen[0]`, cut where it is absurdly long."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = part if len(part) <= LONGEST_KEY_SHOWN else part[:LONGEST_KEY_SHOWN] + "…"
            text += "." + (
                shown
                if re.fullmatch(r"[\w…-]+", shown)
                else f'"{shown.encode("unicode_escape").decode()}"'
            )
    return text.removeprefix(".")
