"""Which token version an answer hands out, and which the client says it holds.

Handlers note it for those who count.
"""

import re
from typing import Final, NamedTuple

from aiohttp import web

from broker.tokens.keeper import Keeper

MOST_HELD: Final = 4  # versions of one request
VERSION: Final = re.compile(r"[0-9A-Za-z]{1,32}-[0-9]{1,19}")


class Handed(NamedTuple):
    """What an answer hands out.

    `account` is the account's id, `version` the version in the answer, None if the answer has no
    token, and `held` the versions that the client says it holds.
    """

    account: str
    version: str | None
    held: tuple[str, ...] = ()


HANDED: Final = web.RequestKey("handed", Handed)


def note_handed(request: web.Request, keeper: Keeper, *held: str | None) -> None:
    """Note that a request is answered with the token in force, and what the client holds."""
    tags = [tag.value for tag in request.if_none_match or ()]
    named = [one for one in (*held, *tags) if one is not None and VERSION.fullmatch(one)]
    request[HANDED] = Handed(keeper.account.id, keeper.credential.version, tuple(named[:MOST_HELD]))
