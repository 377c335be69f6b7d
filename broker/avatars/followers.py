"""The followers as the routes show them: a page of the list with its profiles, or one of them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from broker.avatars.circuit_breaker import CircuitBreaker, TellEvent, TokenBucket
from broker.avatars.errors import AvatarError
from broker.avatars.listing import PATIENCE_S, Cursor, Listing
from broker.avatars.profiles import Profiles
from broker.avatars.urls import sized
from broker.avatars.wechat_api import BATCH, DataApi, Profile

OPENID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CURSOR: Final = re.compile(r"([0-9]{1,9})(?:\.([A-Za-z0-9_-]{1,64}))?")


class Status(StrEnum):
    """What there is of a follower's avatar."""

    AVAILABLE = "available"
    CONSENTED = "consented"
    WITHHELD = "withheld"
    NOT_FOLLOWING = "not-following"


@dataclass(frozen=True, slots=True)
class Follower:
    """One follower, or somebody who was one.

    `consented_url` is the avatar that the person agreed to show.
    """

    openid: str
    number: int  # in the list, from 1
    profile: Profile
    consented_url: str | None = None

    @property
    def status(self) -> Status:
        """Whether there is an avatar, and if not why."""
        if not self.profile.follows:
            return Status.NOT_FOLLOWING
        if self.profile.avatar_url:
            return Status.AVAILABLE
        return Status.CONSENTED if self.consented_url else Status.WITHHELD

    def url(self, size: int | None) -> str | None:
        """Where the picture is, None where there is none to show.

        Without a size it is WeChat's own URL.
        """
        found = {
            Status.AVAILABLE: self.profile.avatar_url,
            Status.CONSENTED: self.consented_url,
        }.get(self.status)
        return found if found is None or size is None else sized(found, size)


@dataclass(frozen=True, slots=True)
class Page:
    """Some followers in order.

    Where `trouble` is set they are older than they should be, and that is why.
    """

    followers: list[Follower]
    total: int
    start: int
    next: Cursor | None
    age_s: float
    trouble: AvatarError | None


class ConsentedPictures(Protocol):
    """Who knows what people agreed to show."""

    async def pictures(self, openids: Sequence[str]) -> Mapping[str, str]:
        """Return the avatars of those who agreed, by openid. Does not raise."""


class Followers:
    """The cached list, with the pictures that people agreed to show."""

    def __init__(
        self,
        api: DataApi,
        ttl_s: float,
        clock: Callable[[], float],
        tell: TellEvent,
        consents: ConsentedPictures | None = None,
    ) -> None:
        self._api = api
        self._consents = consents
        self._listing = Listing(
            api, ttl_s, clock, TokenBucket(clock), CircuitBreaker("user/get", clock, tell)
        )
        self._profiles = Profiles(
            api, ttl_s, clock, CircuitBreaker("user/info/batchget", clock, tell)
        )

    @property
    def is_known(self) -> bool:
        """True if there is anything to show without asking."""
        return self._listing.is_known

    async def page(self, cursor: Cursor, limit: int) -> Page:
        """Up to `limit` followers. Raises AvatarError."""
        window = await self._listing.window(cursor, limit)
        shown = await self._profiles.of(
            window.openids, 0 if window.trouble else PATIENCE_S
        )  # it was waited once
        numbered = enumerate(zip(window.openids, shown.profiles, strict=True), window.start + 1)
        agreed = await self._agreed(window.openids)
        followers = [
            Follower(openid, number, profile, agreed.get(openid))
            for number, (openid, profile) in numbered
        ]
        end = (
            None
            if window.is_end or not followers
            else Cursor(followers[-1].number, followers[-1].openid)
        )
        age_s = max(window.age_s, shown.age_s)
        return Page(
            followers, window.total, window.start, end, age_s, window.trouble or shown.trouble
        )

    async def one(self, openid: str) -> tuple[Follower, float, AvatarError | None]:
        """One of them, how old that is, and why if it is older than it should be.

        Raises AvatarError.
        """
        shown = await self._profiles.of([openid])
        agreed = await self._agreed([openid])
        follower = Follower(openid, 0, shown.profiles[0], agreed.get(openid))
        return follower, shown.age_s, shown.trouble

    async def following(self, openids: Sequence[str]) -> dict[str, bool]:
        """Return who of these follows, as far as WeChat says. Asks WeChat; raises AvatarError."""
        known: dict[str, bool] = {}
        for start in range(0, len(openids), BATCH):
            described = await self._api.described(openids[start : start + BATCH])
            known |= {openid: profile.follows for openid, profile in described.items()}
        return known

    async def _agreed(self, openids: Sequence[str]) -> Mapping[str, str]:
        return await self._consents.pictures(openids) if self._consents else {}

    async def close(self) -> None:
        """End what is under way."""
        await self._listing.close()
        await self._profiles.close()


def cursor(cursor: Cursor) -> str:
    """Write a cursor for a URL."""
    return f"{cursor.position}.{cursor.anchor}" if cursor.anchor else str(cursor.position)


def read_cursor(text: str) -> Cursor | None:
    """Read a cursor from a URL; None where the text is none."""
    found = _CURSOR.fullmatch(text)
    return Cursor(int(found[1]), found[2] or "") if found else None
