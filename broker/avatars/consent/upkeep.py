"""What is done as time passes.

Pictures end, people stop following, and pictures are asked for again.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from broker.avatars.consent.consents import Consents, ConsentStoreError
from broker.avatars.consent.exchange import CodeExchange, ExchangeError
from broker.avatars.consent.store import FOLLOWER, VISITOR, Consent
from broker.avatars.errors import AvatarError
from broker.avatars.followers import Followers

EVERY_S: Final = 3600.0
LOOK_FOR_LEAVERS_S: Final = 6 * 3600  # well within a day (WECHAT.md W46)
RENEW_S: Final = 7 * 86_400
REFRESH_TOKEN_S: Final = 30 * 86_400  # WECHAT.md W82


class ConsentUpkeep:
    """Keeps the consents in order, once an hour. `clock` tells steady seconds."""

    def __init__(
        self,
        consents: Consents,
        followers: Followers,
        exchange: CodeExchange,
        clock: Callable[[], float],
    ) -> None:
        self._consents = consents
        self._followers = followers
        self._exchange = exchange
        self._clock = clock
        self._looked_at: float | None = None

    async def run(self) -> None:
        """Do it until cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(EVERY_S)

    async def once(self) -> None:
        """Delete what must be deleted, and ask again for what may be asked again.

        What fails is left for the next time: deletions that are owed are told by the consents.
        """
        try:
            await self._consents.settle()
            await self._look_who_follows(await self._consents.all())
            await self._renew(await self._consents.all())
        except (ConsentStoreError, AvatarError):
            return

    async def _look_who_follows(self, kept: list[Consent]) -> None:
        """Delete followers who left, of whom no event may have told, and note visitors who came."""
        now = self._clock()
        if self._looked_at is not None and now - self._looked_at < LOOK_FOR_LEAVERS_S:
            return
        follows = await self._followers.following([one.openid for one in kept])
        gone = [
            one.openid
            for one in kept
            if one.source == FOLLOWER and not follows.get(one.openid, True)
        ]
        if gone:
            await self._consents.forget(gone, "unfollowed")
        for one in kept:
            if one.source == VISITOR and follows.get(one.openid, False):
                await self._consents.update(replace(one, source=FOLLOWER))
        self._looked_at = now

    async def _renew(self, kept: list[Consent]) -> None:
        """Ask once a week for the pictures of those whose refresh token is kept."""
        now = self._consents.now()
        for one in kept:
            if one.refresh_token is None:
                continue
            if now - one.agreed_at >= REFRESH_TOKEN_S:
                await self._consents.update(replace(one, refresh_token=None, asked_at=None))
            elif one.asked_at is None or now - one.asked_at >= RENEW_S:
                await self._consents.update(await self._renewed(one, one.refresh_token))

    async def _renewed(self, one: Consent, refresh_token: str) -> Consent:
        """Return a consent with today's picture; without a refresh token that is over."""
        try:
            avatar = await self._exchange.avatar_again(refresh_token)
        except ExchangeError as error:
            # What fails for a while is tried again next week; the picture may live on.
            token = None if error.code == "over" else refresh_token
            return replace(one, refresh_token=token, asked_at=int(self._consents.now()))
        if avatar.openid != one.openid:
            return replace(one, refresh_token=None, asked_at=None)
        return replace(
            one,
            headimgurl=avatar.headimgurl,
            refresh_token=avatar.refresh_token or refresh_token,
            asked_at=int(self._consents.now()),
        )
