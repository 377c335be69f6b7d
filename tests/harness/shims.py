"""aioresponses 0.7.9 does not pass what aiohttp 3.14's ClientResponse asks for; this fills it in."""

from typing import Any
from unittest.mock import Mock

import aiohttp


class Response(aiohttp.ClientResponse):
    """A ClientResponse that aioresponses can build."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("stream_writer", Mock(output_size=0))
        super().__init__(*args, **kwargs)
