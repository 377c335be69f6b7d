"""What a sandbox can be told when it starts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SandboxOptions:
    """How WeChat behaves here.

    Seconds where a time; the defaults are the real platform's (WECHAT.md W4, W7, W9, W10).
    """

    expires_in: int = 7200
    """What a new token's answer says."""
    overlap: int = 300
    """How long the previous token works on."""
    daily_quota: int = 2000
    """Classic token calls per account and Beijing day."""
    followers: int = 24
    """How many followers an account has at first sight."""
    withhold_avatars: bool = False
    """Withhold every nickname and avatar, as WeChat has done since 2021-12-27 (WECHAT.md W44)."""
