"""Signatures that web pages need (WECHAT.md W57, W58).

They are made here so that no ticket has to leave the broker.
"""

import hashlib

from broker.core.secret import Secret


def jsapi(ticket: Secret, nonce: str, timestamp: int, url: str) -> str:
    """Sign a page for the JS-SDK. Return 40 hexadecimal digits.

    `url` is the address as the browser shows it; WeChat ignores what follows a `#`.
    """
    page = url.partition("#")[0]
    return _sha1(
        f"jsapi_ticket={ticket.reveal()}&noncestr={nonce}&timestamp={timestamp}&url={page}"
    )


def card(ticket: Secret, *values: str) -> str:
    """Sign a card. Return 40 hexadecimal digits.

    `values` are the timestamp, nonce, card_id, code and openid that the card has, in any order.
    """
    return _sha1("".join(sorted([ticket.reveal(), *values])))


def _sha1(text: str) -> str:
    return hashlib.sha1(
        text.encode(), usedforsecurity=False
    ).hexdigest()  # WeChat's choice, not ours
