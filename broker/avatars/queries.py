"""Query parameters: read strictly, so that a mistake is told and not guessed around."""

from collections.abc import Collection
from typing import Final

from aiohttp import web

from broker.avatars.followers import read_cursor
from broker.avatars.listing import Cursor
from broker.avatars.urls import SIZES
from broker.http.problems import ProblemError

LONGEST: Final = 4  # digits of any number here, and one more


def known(request: web.Request, names: Collection[str]) -> None:
    """Refuse parameters of other names, and any that is given twice. Raises ProblemError."""
    there_are = f"there are: {', '.join(names)}" if names else "there are none here"
    for name in request.query:
        if name not in names:
            raise _bad(f"Unknown query parameter `{name[:40]}`; {there_are}.")
        if len(request.query.getall(name)) > 1:
            raise _bad(f"`{name}` is given twice.")


def limit(request: web.Request, default: int, most: int) -> int:
    """How many. Left empty it is the default."""
    text = request.query.get("limit", "")
    number = _number(text, default)
    if number is None or not 1 <= number <= most:
        raise _bad(f"`limit` is a whole number from 1 to {most}.")
    return number


def size(request: web.Request) -> int | None:
    """Return the side of the square in pixels.

    None means that no size is asked for: WeChat's own URL will do as it is.
    """
    text = request.query.get("size", "")
    number = _number(text, -1)
    if text and number not in SIZES:
        raise _bad(f"`size` is one of {', '.join(map(str, SIZES))}; 0 is the largest, 640 pixels.")
    return number if text else None


def place(request: web.Request) -> Cursor:
    """Where to begin: at the first follower, or where a page before this one ended."""
    text = request.query.get("cursor", "")
    found = read_cursor(text) if text else Cursor()
    if found is None:
        raise _bad(
            "`cursor` is the `next_cursor` of a page before this one, or empty for the first."
        )
    return found


def _number(text: str, default: int) -> int | None:
    if not text:
        return default
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= LONGEST + 1 else None


def _bad(detail: str) -> ProblemError:
    return ProblemError(400, "invalid-parameter", detail)
