"""Collects what is wrong with a configuration: one complaint for each key, told all at once."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

LONGEST_KEY_SHOWN: Final = 64
MOST_NAMES_SHOWN: Final = 12
ConfigKey = tuple[str | int, ...]


class ConfigError(Exception):
    """The configuration cannot be used.

    `errors` are sentences that begin with the key they are about. None of them holds a secret or
    the content of a file.
    """

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(self.errors))


class Problems:
    """The complaints so far. Of several about one key only the first is kept."""

    def __init__(self) -> None:
        self._complaints: dict[ConfigKey, str] = {}
        self._around: set[ConfigKey] = set()

    def add(self, key: ConfigKey, complaint: str) -> None:
        """Complain about a key, unless there is a complaint about it already.

        A second complaint would only follow from the first.
        """
        self._complaints.setdefault(key, complaint)
        self._around.update(_way_to(key))

    def about(self, *key: str) -> bool:
        """Return True if there is a complaint about this key, its table, or a key inside it."""
        return key in self._around or any(part in self._complaints for part in _way_to(key))

    def raise_any(self) -> None:
        """Raise one ConfigError with all complaints, if there are any."""
        if self._complaints:
            raise ConfigError(
                f"{_dotted(key)}: {complaint}" for key, complaint in self._complaints.items()
            )


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name.

    It tells the known name that is most like it, and all known names if they are few.
    """
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
    """Write a key as TOML does: `apps."my shop".secret` or `server.listen[0]`.

    A very long part of it is cut.
    """
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
