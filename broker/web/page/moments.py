"""Times on the page: in UTC, which the script puts beside the time in the reader's zone."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup


def stamp(iso: str) -> str:
    """Return an ISO time in UTC as people read it."""
    return iso[:16].replace("T", " ") + " UTC"


def moment(iso: str) -> "Markup":
    """Return an ISO time as an element that the script can put into the reader's zone."""
    from markupsafe import Markup  # noqa: PLC0415 -- a daemon that shows no page does not need it

    return Markup('<time datetime="{}">{}</time>').format(iso, stamp(iso))


def sentence(text: str, **facts: object) -> "Markup":
    """Fill a sentence in; facts that are elements stay elements, all else is escaped."""
    from markupsafe import Markup, escape  # noqa: PLC0415 -- the same

    return Markup(escape(text)).format(**facts)  # noqa: S704 -- of what is escaped
