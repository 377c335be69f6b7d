"""What a configuration permits though it is dangerous: `check`, the log and the status say so."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from broker.config.settings import Settings
from broker.core.credential import Endpoint
from broker.core.decision import JITTER, LIFETIME
from broker.system.address import is_plaintext

A_MINUTE: Final = 60.0


class Notice(NamedTuple):
    """A code for programs, and a sentence that begins with the key it is about."""

    code: str
    text: str


def notices(settings: Settings) -> list[Notice]:
    """Return what a person should know about settings that are accepted."""
    return list(_found(settings))


def advice(settings: Settings) -> list[str]:
    """Return what may be better though nothing is wrong. `check` says it, the log does not."""
    classic = [name for name, app in settings.apps.items() if app.endpoint is Endpoint.TOKEN]
    if not classic:
        return []
    return [
        f"apps.{name}.endpoint: `token` is right where this broker alone fetches the account's"
        " tokens. Where other programs still do, or services keep a token longer than they are"
        " told, `stable_token` is the better choice: it ends no token early, a lost answer costs"
        " nothing, and it allows 500000 calls a day"
        for name in classic[:1]
    ] + [f"apps.{name}.endpoint: the same" for name in classic[1:]]


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
    yield from _of_policy(settings)


def _of_policy(settings: Settings) -> Iterator[Notice]:
    """Tell of a policy that is possible and whose consequences may surprise."""
    policy = settings.policy
    if any(app.endpoint is Endpoint.TOKEN for app in settings.apps.values()):
        replaced_after = LIFETIME * policy.refresh_fraction * (1 - JITTER)
        if replaced_after < policy.overlap:
            yield Notice(
                "overlap-longer-than-life",
                f"policy.overlap: {policy.overlap:g} s, but by policy.refresh_fraction a token may"
                f" be replaced after {replaced_after:.0f} s, and WeChat keeps the one before only:"
                " clients are promised no more than that",
            )
        left = LIFETIME * (1 - policy.refresh_fraction * (1 + JITTER))
        if left < A_MINUTE:
            yield Notice(
                "refresh-too-late",
                f"policy.refresh_fraction: leaves {left:.0f} s of a token's life: one failed call"
                " then means that there is no token",
            )
    if policy.verify_quota == 0:
        yield Notice(
            "no-verification",
            "policy.verify_quota: 0: WeChat is never asked whether a token lives, so reports cannot"
            " be answered, and a token that another program has ended is served until its time",
        )
