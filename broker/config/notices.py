"""What a configuration permits though it is dangerous: `check`, the log and the status say so."""

from collections.abc import Iterator
from typing import NamedTuple

from broker.config.settings import Settings
from broker.system.address import is_plaintext


class Notice(NamedTuple):
    """A code for programs, and a sentence that begins with the key it is about."""

    code: str
    text: str


def notices(settings: Settings) -> list[Notice]:
    """Return what a person should know about settings that are accepted."""
    return list(_found(settings))


def _found(settings: Settings) -> Iterator[Notice]:
    wechat = settings.wechat
    if settings.compat and not settings.clients:
        yield Notice(
            "compat-without-clients",
            "compat.enabled: without [clients] any program on this machine gets the token by"
            " WeChat's own paths, and so does a request that another server here is tricked into:"
            " give each service a client with a key",
        )
    for key, base in (("wechat", wechat.api_base), ("wecom", wechat.wecom_base)):
        if is_plaintext(base):
            yield Notice(
                "plaintext",
                f"{key}.api_base: http:// to another machine: whoever is on the way reads the"
                " AppSecret and every token",
            )
    if settings.server.trusted_proxies and not settings.clients:
        yield Notice(
            "trusted-proxies-without-clients",
            "server.trusted_proxies: without [clients] whoever such a proxy lets through gets"
            " tokens: give each service a client with a key",
        )
