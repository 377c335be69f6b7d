"""The commands `status` and `get`: ask the running daemon, and show its answer."""

import http.client
import json
import socket
from collections.abc import Sequence
from typing import Any, Final

from broker.client.protocol import BrokerAddress
from broker.client.sync import BrokerConnection
from broker.core.text import visible
from broker.system.address import Address

TIMEOUT_S: Final = 30.0


class NoAnswer(Exception):  # noqa: N818 -- said to a person
    """The daemon does not answer, or its answer is an error. The text says why."""


def daemon(addresses: Sequence[Address], path: str, key: str | None) -> Any:
    """GET a path as JSON. A Unix socket is preferred, since its group needs no key.

    Raises NoAnswer, and OSError of the key file.
    """
    reachable = [it for it in addresses if it.kind == "tcp" or hasattr(socket, "AF_UNIX")]
    address = next((it for it in reachable if it.kind == "unix"), (reachable or addresses)[0])
    headers = {
        "Accept": "application/json",
        "X-Token-Broker": "1",
        **({"Authorization": f"Bearer {key}"} if key else {}),
    }
    connection = _connection(address)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = (
            error.strerror
            if isinstance(error, OSError) and error.strerror
            else type(error).__name__
        )
        raise NoAnswer(f"no daemon answers on {address} ({why}): is it running?") from None
    finally:
        connection.close()
    if response.status != http.client.OK:
        why = f"{answer.get('code', response.status)}: {answer.get('detail', response.reason)}"
        raise NoAnswer(visible(why))
    return answer


def _connection(address: Address) -> BrokerConnection:
    if address.kind == "unix":
        return BrokerConnection(BrokerAddress.of_socket(address.path), TIMEOUT_S)
    # A wildcard listens on every address, so on loopback too. It is compared here, not bound.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104
    return BrokerConnection(BrokerAddress("", host, address.port), TIMEOUT_S)


COLUMNS: Final = (
    "app",
    "state",
    "expires in",
    "next call in",
    "calls today",
    "calls 24 h",
    "of",
    "last error",
)


def table(status: dict[str, Any]) -> str:
    """Return /v1/status for people: one line per app, and below them what needs attention."""
    rows = [COLUMNS, *(_row(app) for app in status["apps"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    notes = [line for app in status["apps"] for line in _notes(app)]
    told = status.get("notifications", {}).get("receivers", [])
    notes += [f"{one['receiver']}: not told: {_code(one)}" for one in told if one["trouble"]]
    return "\n".join(map(visible, [*lines, *notes, *map(_node, status.get("nodes", []))]))


def _code(one: dict[str, Any]) -> str:
    """What is wrong with a receiver or a sink."""
    number = one["trouble"].get("number")
    return str(one["trouble"]["code"]) + ("" if number is None else f" {number}")


def _node(node: dict[str, Any]) -> str:
    notified = (
        "never told of a change"
        if node["notified_ago"] is None
        else f"told of a change {node['notified_ago']} s ago"
    )
    versions = ", ".join(f"{app} {version or '-'}" for app, version in node["versions"].items())
    return f"node {node['node']}: seen {node['seen_ago']} s ago, {notified}, serves {versions}"


def _row(app: dict[str, Any]) -> tuple[str, ...]:
    quota, error = app["quota"], app["last_error"]
    times = _duration(app["expires_in"]), _duration(app["next_refresh_in"])
    counts = str(quota["used_today"]), str(quota["used_24h"]), str(quota["limit"])
    return (app["app"], app["state"], *times, *counts, error["reason"] if error else "-")


def _notes(app: dict[str, Any]) -> list[str]:
    notes = [f"{app['app']}: {app['last_error']['advice']}"] if app["last_error"] else []
    if app["second_issuer"]["count"]:
        times, since = app["second_issuer"]["count"], app["second_issuer"]["since"]
        known = (
            "another program calls the token endpoint with this secret"
            if app["second_issuer"]["suspected"]
            else "watching"
        )
        notes.append(
            f"{app['app']}: {times} token(s) died before their time since {since}: {known}."
        )
    if app["store_error"]:
        notes.append(f"{app['app']}: the store: {app['store_error']}")
    if (news := app.get("logins", {}).get("news")) is not None:
        notes.append(f"{app['app']}: WeChat refuses logins: {news['reason']}. {news['advice']}")
    behind = [sink for sink in app.get("sinks", []) if sink["trouble"]]
    notes += [f"{app['app']}: {sink['sink']} is behind: {_code(sink)}" for sink in behind]
    for kind, ticket in app.get("tickets", {}).items():
        if (error := ticket["last_error"]) is not None:
            notes.append(f"{app['app']}: {kind} ticket: {error['reason']}. {error['advice']}")
    return notes


def _duration(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
