"""Notifications, sinks and hand-outs on the status page, in words."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from broker.core.handouts import Handout
from broker.web.gate import LOCAL, LOCAL_SOCKET
from broker.web.page.messages import PAGE
from broker.web.page.moments import moment
from broker.web.params import iso

HANDOUTS_SHOWN: Final = 20


def receivers(notifications: Mapping[str, Any], lang: str) -> list[dict[str, Any]]:
    """Return who is told, and what came of it last."""
    words = PAGE[lang]
    return [
        {
            "name": one["receiver"],
            "sent": one["sent"],
            "last": moment(one["last_sent"]) if one["last_sent"] else words["never"],
            "trouble": trouble(one["trouble"], lang),
            "since": moment(one["trouble"]["since"]) if one["trouble"] else "",
            "lost": one["lost"],
        }
        for one in notifications["receivers"]
    ]


def told(notifications: Mapping[str, Any], lang: str) -> list[dict[str, Any]]:
    """Return what was told and holds still."""
    words = PAGE[lang]
    return [
        {
            "event": words[f"event_{one['event']}"],
            "app": one["app"] or one["about"],
            "since": moment(one["since"]),
            "key": f"{one['event']} {one['app']} {one['about']}",
        }
        for one in notifications["told"]
    ]


def sinks(of: Sequence[Mapping[str, Any]], lang: str) -> list[dict[str, Any]]:
    """Return an app's sinks: the place, how it stands, and why not."""
    words = PAGE[lang]
    return [
        {
            "place": one["sink"],
            "is_behind": one["trouble"] is not None,
            "state": words[f"sink_{one['state']}"],
            "trouble": trouble(one["trouble"], lang),
            "since": moment(one["trouble"]["since"]) if one["trouble"] else "",
        }
        for one in of
    ]


def trouble(of: Mapping[str, Any] | None, lang: str) -> str:
    """Return what is wrong with a receiver or a sink, in words; empty where nothing is."""
    if of is None:
        return ""
    return PAGE[lang][f"trouble_{of['code']}"].format(number=of.get("number"))


def handouts(
    rows: Sequence[Handout] | None, version: str | None, lang: str
) -> list[dict[str, Any]] | None:
    """Return who was handed which version of an app's token; None where that cannot be read."""
    if rows is None:
        return None
    words = PAGE[lang]
    names = {LOCAL.name: words["local"], LOCAL_SOCKET.name: words["socket"]}
    return [
        {
            "key": f"{row.client} {row.version}",
            "client": names.get(row.client, row.client),
            "version": row.version,
            "is_current": row.version == version,
            "count": f"{row.count:,}",
            "first": "–" if row.first_at is None else moment(iso(row.first_at)),
            "last": "–" if row.last_at is None else moment(iso(row.last_at)),
            "held": "–" if row.held_at is None else moment(iso(row.held_at)),
        }
        for row in rows[:HANDOUTS_SHOWN]
    ]
