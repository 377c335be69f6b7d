"""The group robots of 企业微信, 钉钉 and 飞书: their messages, signatures and answers.

All three answer HTTP 200 even where they refuse. A robot that wants signatures has its secret
beside the URL, as `&secret=…` or `?secret=…`, which is taken off before it is asked.
"""

import base64
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from broker.notify.events import Event

LONGEST_TEXT: Final = 2000  # bytes; 企业微信 takes 2048, the others more
SECRET: Final = "secret"  # noqa: S105 -- the name of a parameter


class Request(NamedTuple):
    """What is posted where."""

    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Robot:
    """A kind of robot: known by the path of its URL, so that a relay's URL is known too.

    `number_in` are the members of an answer of which the first that is there is the errcode.
    """

    name: str
    path: str
    number_in: tuple[str, ...]
    build: Callable[[str, str, str | None], Request]

    def request(self, url: str, event: Event) -> Request:
        """Return what to post for an event."""
        bare, secret = without_secret(url)
        return self.build(bare, shortened(f"{event.title}\n{event.text}"), secret)

    def errcode(self, answer: object) -> int | None:
        """Return an answer's errcode; None where it is none of this robot's."""
        if not isinstance(answer, dict):
            return None
        found = next((answer[name] for name in self.number_in if name in answer), None)
        return found if isinstance(found, int) and not isinstance(found, bool) else None


def without_secret(url: str) -> tuple[str, str | None]:
    """Split a robot's URL into what is asked and the secret that signs it."""
    parts = urlsplit(url)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    secret = next((value for name, value in pairs if name == SECRET), None)
    rest = urlencode([(name, value) for name, value in pairs if name != SECRET])
    return urlunsplit(parts._replace(query=rest, fragment="")), secret or None


def shortened(text: str) -> str:
    """Cut a text to the bytes that every robot takes."""
    data = text.encode()
    return text if len(data) <= LONGEST_TEXT else data[:LONGEST_TEXT].decode(errors="ignore") + "…"


def _wecom(url: str, text: str, _secret: str | None) -> Request:
    return Request(url, {"msgtype": "text", "text": {"content": text}})


def _dingtalk(url: str, text: str, secret: str | None) -> Request:
    if secret is not None:
        at = str(round(time.time() * 1000))
        digest = hmac.digest(secret.encode(), f"{at}\n{secret}".encode(), hashlib.sha256)
        signed = urlencode({"timestamp": at, "sign": base64.b64encode(digest).decode()})
        url += ("&" if urlsplit(url).query else "?") + signed
    return Request(url, {"msgtype": "text", "text": {"content": text}})


def _feishu(url: str, text: str, secret: str | None) -> Request:
    body: dict[str, Any] = {"msg_type": "text", "content": {"text": text}}
    if secret is not None:
        at = str(int(time.time()))
        # The other way round than 钉钉: what is signed is nothing, and the key is time and secret.
        digest = hmac.digest(f"{at}\n{secret}".encode(), b"", hashlib.sha256)
        body |= {"timestamp": at, "sign": base64.b64encode(digest).decode()}
    return Request(url, body)


ROBOTS: Final = (
    Robot("wecom", "/cgi-bin/webhook/send", ("errcode",), _wecom),
    Robot("dingtalk", "/robot/send", ("errcode",), _dingtalk),
    Robot("feishu", "/open-apis/bot/v2/hook/", ("code", "StatusCode"), _feishu),
)


def robot_of(url: str) -> Robot | None:
    """Return the robot that a URL belongs to, or None."""
    path = urlsplit(url).path
    return next(
        (
            robot
            for robot in ROBOTS
            if path.endswith(robot.path) or (robot.path.endswith("/") and robot.path in path)
        ),
        None,
    )
