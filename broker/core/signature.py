"""The signatures that web pages need: made here, so that a ticket need not leave the broker (WECHAT.md W57, W58)."""

import hashlib

from broker.core.secret import Secret


def jsapi(ticket: Secret, nonce: str, timestamp: int, url: str) -> str:
    """Sign a page for the JS-SDK; `url` as the browser shows it, what follows a `#` does not count. 40 hex digits."""
    page = url.partition("#")[0]
    return _sha1(
        f"jsapi_ticket={ticket.reveal()}&noncestr={nonce}&timestamp={timestamp}&url={page}"
    )


def card(ticket: Secret, *values: str) -> str:
    """Sign a card: its values (timestamp, nonce, card_id, code, openid: those there are) in any order. 40 hex digits."""
    return _sha1("".join(sorted([ticket.reveal(), *values])))


def _sha1(text: str) -> str:
    return hashlib.sha1(
        text.encode(), usedforsecurity=False
    ).hexdigest()  # WeChat's choice, not ours
