"""Whom a configuration names: the hook, robots, webhooks, and what Apprise reaches."""

from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

from broker.config.complaints import ConfigError
from broker.config.settings import NotifySettings
from broker.core.secret import Secret
from broker.notify import apprise
from broker.notify.hook import Hook
from broker.notify.result import Receiver
from broker.notify.robots import robot_of
from broker.notify.webhook import Webhook
from broker.system.address import is_loopback


def receivers(settings: NotifySettings) -> list[Receiver]:
    """Return everyone who is to be told.

    Raises ConfigError that names each line that will not do, and quotes none of them.
    """
    found: list[Receiver] = [] if settings.hook is None else [Hook(settings.hook)]
    complaints = []
    for line, url in settings.urls:
        made = _receiver(url)
        if isinstance(made, str):
            complaints.append(f"notify.urls_file: line {line} {made}")
        else:
            found.append(made)
    if complaints:
        raise ConfigError(complaints)
    for receiver, label in zip(found, _told_apart([one.label for one in found]), strict=True):
        receiver.label = label
    return found


def _receiver(secret: Secret) -> Receiver | str:
    """The receiver a URL means, or what is wrong with the URL."""
    url = secret.reveal()
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is no URL"
    if parts.scheme in {"http", "https"}:
        robot = robot_of(url)
        if not host:
            return "names no host"
        if robot and parts.scheme == "http" and not is_loopback(host):
            return "must be https: a robot's key is in its URL"
        return Webhook(secret, robot)
    if not parts.scheme or "://" not in url:
        return "is no URL"
    if not apprise.is_installed():
        return "needs the package apprise: pip install 'wechat-token-broker[notify]'"
    return apprise.receiver(secret) or "is no URL that Apprise knows"


def _told_apart(labels: list[str]) -> Iterator[str]:
    """Number labels that occur more than once."""
    total, so_far = Counter(labels), Counter[str]()
    for label in labels:
        so_far[label] += 1
        yield f"{label} #{so_far[label]}" if total[label] > 1 else label
