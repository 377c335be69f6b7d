"""Webhooks: robots and plain JSON receivers, asked over HTTP by our own few lines."""

import asyncio
import json
import ssl
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from broker.core.secret import Secret
from broker.notify.events import Event, StateChange, iso
from broker.notify.result import TAKEN, SendResult, Trouble
from broker.notify.robots import Request, Robot

DEADLINE_S: Final = 10.0
LARGEST_ANSWER: Final = 64 * 1024
NEVER: Final = "0001-01-01T00:00:00Z"  # how Alertmanager says that an alert has no end yet


class Webhook:
    """A URL that events are posted to, as its robot wants them, or as Alertmanager posts alerts."""

    def __init__(self, url: Secret, robot: Robot | None) -> None:
        self._url = url
        self._robot = robot
        self.label = f"{robot.name if robot else 'webhook'} {urlsplit(url.reveal()).hostname}"

    async def send(self, event: Event) -> SendResult:
        """See :class:`broker.notify.result.Receiver`."""
        url = self._url.reveal()
        request = Request(url, alert(event))
        if self._robot is not None:
            request = self._robot.request(url, event)
        try:
            status, answer = await _post(request)
        except TimeoutError:
            return SendResult(Trouble.TIMEOUT)
        except (aiohttp.ClientSSLError, ssl.SSLError):
            return SendResult(Trouble.TLS)
        except (aiohttp.ClientError, OSError, ValueError):
            return SendResult(Trouble.UNREACHABLE)
        errcode = None if self._robot is None else _errcode(self._robot, answer)
        if errcode:  # says more than the status, which is 200 as a rule
            return SendResult(Trouble.REFUSED, errcode)
        if not 200 <= status < 300:  # noqa: PLR2004 -- HTTP's good answers
            return SendResult(Trouble.HTTP_STATUS, status)
        if self._robot is not None and errcode is None:
            return SendResult(Trouble.NO_ANSWER_OF_ITS_KIND)
        return TAKEN


def _errcode(robot: Robot, answer: bytes) -> int | None:
    try:
        return robot.errcode(json.loads(answer))
    except (ValueError, RecursionError):
        return None


async def _post(request: Request) -> tuple[int, bytes]:
    """Post once. Nothing is repeated, and no redirect is followed: it would carry the secret on."""
    timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
    async with (
        aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
        session.post(request.url, json=request.body, allow_redirects=False) as response,
    ):
        return response.status, await _read(response)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    try:
        return await response.content.readexactly(LARGEST_ANSWER)
    except asyncio.IncompleteReadError as whole:
        return whole.partial


def alert(event: Event) -> dict[str, Any]:
    """Return an event as Alertmanager's webhook has an alert (version 4), the event beside it."""
    is_over = event.change is StateChange.LEFT
    named = {
        "alertname": event.name,
        "severity": event.severity,
        "app": event.app,
        "about": event.state.about if event.state else "",
        "broker": event.broker,
    }
    labels = {name: value for name, value in named.items() if value}
    annotations = {"summary": event.title, "description": event.text}
    status = "resolved" if is_over else "firing"
    key = event.state.key if event.state else event.name
    return {
        "version": "4",
        "groupKey": f"token-broker/{key}",
        "truncatedAlerts": 0,
        "status": status,
        "receiver": "token-broker",
        "groupLabels": {"alertname": event.name},
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "",
        "alerts": [
            {
                "status": status,
                "labels": labels,
                "annotations": annotations,
                "startsAt": iso(event.since if event.state else event.at),
                "endsAt": iso(event.at) if is_over else NEVER,
                "generatorURL": "",
                "fingerprint": key,
            }
        ],
        "event": event.as_json(),
    }
