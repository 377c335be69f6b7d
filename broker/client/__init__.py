"""The client library: the current WeChat access token, from memory, kept up to date by the broker.

    client = TokenClient("http://127.0.0.1:8765", "main")
    answer = client.using(lambda token: call_wechat(token))

`using` reports a token that WeChat refuses, and calls once more. AsyncTokenClient is the same for
asyncio. The broker's address may also be "unix:/run/token-broker/broker.sock".

Importing it pulls in neither the daemon nor SQLite; the sync client needs nothing but the standard
library.
"""

from typing import TYPE_CHECKING, Any

from broker.client.protocol import BrokerError, BrokerUnavailable, Token
from broker.client.sync import TokenClient

if TYPE_CHECKING:
    from broker.client.aio import AsyncTokenClient

__all__ = ["AsyncTokenClient", "BrokerError", "BrokerUnavailable", "Token", "TokenClient"]


def __getattr__(name: str) -> Any:
    # aiohttp takes a fifth of a second to import; who uses the sync client does not pay for it.
    if name == "AsyncTokenClient":
        from broker.client.aio import AsyncTokenClient  # noqa: PLC0415 -- that is the point

        return AsyncTokenClient
    raise AttributeError(name)
