"""The languages that pages speak: which one a browser asks for, and durations in it."""

import re
from typing import Final

ENGLISH: Final = "en"
CHINESE: Final = "zh-CN"

_AGES: Final = {
    ENGLISH: (
        (86_400, "{} day", "{} days"),
        (3600, "{} hour", "{} hours"),
        (60, "{} minute", "{} minutes"),
        (1, "{} s", "{} s"),
    ),
    CHINESE: (
        (86_400, "{} 天", "{} 天"),
        (3600, "{} 小时", "{} 小时"),
        (60, "{} 分钟", "{} 分钟"),
        (1, "{} 秒", "{} 秒"),
    ),
}
_SPANS: Final = {
    ENGLISH: ((86_400, "{} d"), (3600, "{} h"), (60, "{} min"), (1, "{} s")),
    CHINESE: ((86_400, "{} 天"), (3600, "{} 小时"), (60, "{} 分"), (1, "{} 秒")),
}
_RANGE: Final = re.compile(
    r"\s*([A-Za-z*]{1,8})(?:-[A-Za-z0-9-]*)?\s*(?:;\s*q=([01](?:\.[0-9]{0,3})?))?\s*"
)


def language(accept: str, otherwise: str = ENGLISH) -> str:
    """Return the language to speak, by an `Accept-Language` header.

    `otherwise` is that of those who ask for neither.
    """
    best, most = otherwise, 0.0
    for part in accept.split(",")[:32]:
        found = _RANGE.fullmatch(part)
        if (
            not found
            or (lang := {"en": ENGLISH, "zh": CHINESE, "*": otherwise}.get(found[1].lower()))
            is None
        ):
            continue
        weight = float(found[2] or 1)
        if weight > most:
            best, most = lang, weight
    return best


def age(seconds: float, lang: str) -> str:
    """A duration in its largest unit."""
    for unit, one, more in _AGES[lang]:
        if (count := int(seconds // unit)) or unit == 1:
            return (one if count == 1 else more).format(count)
    raise AssertionError


def span(seconds: float, lang: str) -> str:
    """A duration in its two largest units."""
    said: list[str] = []
    rest = max(0, int(seconds))
    for unit, form in _SPANS[lang]:
        count, rest = divmod(rest, unit)
        if said or count or unit == 1:
            said.append(form.format(count))
    return " ".join(said[:2])
