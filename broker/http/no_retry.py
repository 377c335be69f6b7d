"""An HTTP client session that puts every request on the wire at most once.

aiohttp repeats an idempotent request by itself when the server drops a kept connection. For us that
is wrong: a token call is counted by WeChat and may replace the token, so it must not be made
without a reservation.
"""

from typing import Any

import aiohttp


def session_without_retries(
    connector: aiohttp.BaseConnector, **options: Any
) -> aiohttp.ClientSession:
    """Return a session that never repeats a request, keeps no cookies and decodes no body.

    `options` are further arguments of `aiohttp.ClientSession`. The caller closes the session, which
    closes the connector.
    """
    session = aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, **options
    )
    # aiohttp has no public switch. tests/web/test_aiohttp_internals.py counts requests on the wire.
    session._retry_connection = False  # noqa: SLF001
    return session
