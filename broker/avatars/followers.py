"""The followers as the routes show them: a page of the list with its profiles, or one of them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from broker.avatars.circuit_breaker import Allowance, Brake, Tell
from broker.avatars.errors import Trouble
from broker.avatars.listing import PATIENCE_S, Listing, Place
from broker.avatars.profiles import Profiles
from broker.avatars.urls import sized
from broker.avatars.wechat_api import DataApi, Profile

OPENID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CURSOR: Final = re.compile(r"([0-9]{1,9})(?:\.([A-Za-z0-9_-]{1,64}))?")


class Status(StrEnum):
    """What there is of a follower's avatar."""

    AVAILABLE = "available"
    WITHHELD = "withheld"
    NOT_FOLLOWING = "not-following"


@dataclass(frozen=True, slots=True)
class Follower:
    """One follower, or somebody who was one."""

    openid: str
    number: int  # in the list, from 1
    profile: Profile

    @property
    def status(self) -> Status:
        """Whether there is an avatar, and if not why."""
        if not self.profile.follows:
            return Status.NOT_FOLLOWING
        return Status.AVAILABLE if self.profile.avatar_url else Status.WITHHELD

    def url(self, size: int | None) -> str | None:
        """Where the picture is, None where there is none to show. Without a size it is WeChat's own URL."""
        found = self.profile.avatar_url if self.status is Status.AVAILABLE else None
        return found if found is None or size is None else sized(found, size)


@dataclass(frozen=True, slots=True)
class Page:
    """Some followers in order. Where `trouble` is set they are older than they should be, and that is why."""

    followers: list[Follower]
    total: int
    start: int
    next: Place | None
    age_s: float
    trouble: Trouble | None


class Followers:
    """The cached list."""

    def __init__(self, api: DataApi, ttl_s: float, clock: Callable[[], float], tell: Tell) -> None:
        self._listing = Listing(api, ttl_s, clock, Allowance(clock), Brake("user/get", clock, tell))
        self._profiles = Profiles(api, ttl_s, clock, Brake("user/info/batchget", clock, tell))

    @property
    def is_known(self) -> bool:
        """Whether there is anything to show without asking."""
        return self._listing.is_known

    async def page(self, place: Place, limit: int) -> Page:
        """Up to `limit` followers. Raises Trouble."""
        window = await self._listing.window(place, limit)
        shown = await self._profiles.of(window.openids, 0 if window.trouble else PATIENCE_S)  # it was waited once
        numbered = enumerate(zip(window.openids, shown.profiles, strict=True), window.start + 1)
        followers = [Follower(openid, number, profile) for number, (openid, profile) in numbered]
        end = None if window.is_end or not followers else Place(followers[-1].number, followers[-1].openid)
        age_s = max(window.age_s, shown.age_s)
        return Page(followers, window.total, window.start, end, age_s, window.trouble or shown.trouble)

    async def one(self, openid: str) -> tuple[Follower, float, Trouble | None]:
        """One of them, how old that is, and why if it is older than it should be. Raises Trouble."""
        shown = await self._profiles.of([openid])
        return Follower(openid, 0, shown.profiles[0]), shown.age_s, shown.trouble

    async def close(self) -> None:
        """End what is under way."""
        await self._listing.close()
        await self._profiles.close()


def cursor(place: Place) -> str:
    """A place, for a URL."""
    return f"{place.position}.{place.anchor}" if place.anchor else str(place.position)


def read_cursor(text: str) -> Place | None:
    """The place a cursor names; None where it is no cursor."""
    found = _CURSOR.fullmatch(text)
    return Place(int(found[1]), found[2] or "") if found else None
