"""A response class for aioresponses 0.7.9.

It passes what aiohttp 3.14's ClientResponse asks for and aioresponses leaves out.
"""

from typing import Any
from unittest.mock import Mock

import aiohttp


class Response(aiohttp.ClientResponse):
    """A ClientResponse that aioresponses can build."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("stream_writer", Mock(output_size=0))
        super().__init__(*args, **kwargs)
