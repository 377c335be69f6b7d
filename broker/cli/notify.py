"""`token-broker notify --test`: tell everyone once, and say what came of it."""

import asyncio
import time
from collections.abc import Mapping
from typing import Final

from broker.config.complaints import ConfigError
from broker.config.settings import NotifySettings
from broker.notify.notifier import trial
from broker.notify.receivers import receivers
from broker.notify.result import SendResult, Trouble

SAID: Final[Mapping[Trouble, str]] = {
    Trouble.UNREACHABLE: "not reached",
    Trouble.TLS: "not reached: its TLS certificate is not one we trust",
    Trouble.TIMEOUT: "no end within its deadline",
    Trouble.HTTP_STATUS: "refused with HTTP status {number}",
    Trouble.REFUSED: "refused with errcode {number}{meaning}",
    Trouble.NO_ANSWER_OF_ITS_KIND: "answered something that is no robot's answer",
    Trouble.EXIT: "ended with {number}",
    Trouble.NOT_STARTED: "could not be started",
    Trouble.NOT_DELIVERED: "not delivered; Apprise does not say why",
}
# What the robots' own documents say of their errcodes; a number may mean something else to another.
MEANINGS: Final[Mapping[tuple[str, int], str]] = {
    ("wecom", 93000): "the key in the URL is no robot's",
    ("wecom", 45009): "more than 20 messages a minute",
    ("dingtalk", 300005): "the access_token in the URL is no robot's",
    ("dingtalk", 310000): "a keyword, a signature or an IP that the robot demands is missing",
    ("dingtalk", 130101): "more than 20 messages a minute",
    ("feishu", 19001): "the hook in the URL is no robot's",
    ("feishu", 19021): "the signature does not match, or our clock is an hour off",
    ("feishu", 19022): "our IP is not among those that the robot takes messages from",
    ("feishu", 19024): "a keyword that the robot demands is missing",
    ("feishu", 11232): "too many messages",
}


async def told(settings: NotifySettings) -> tuple[list[str], bool]:
    """Send the test; return a line for each receiver, and whether all of them took it.

    Raises ConfigError where a URL will not do, or nobody is named.
    """
    everyone = receivers(settings)
    if not everyone:
        raise ConfigError(["notify: names nobody: set notify.hook or notify.urls_file"])
    event = trial(settings, time.time())
    results = await asyncio.gather(*(receiver.send(event) for receiver in everyone))
    pairs = zip(everyone, results, strict=True)
    lines = [f"{receiver.label}: {said(receiver.label, result)}" for receiver, result in pairs]
    return lines, all(result.trouble is None for result in results)


def said(label: str, result: SendResult) -> str:
    """What came of it, in words."""
    if result.trouble is None:
        return "taken"
    known = MEANINGS.get((label.partition(" ")[0], result.number or 0))
    meaning = f" ({known})" if known else ""
    return SAID[result.trouble].format(number=result.number, meaning=meaning)
