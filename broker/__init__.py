"""token-broker: the one process that fetches WeChat access tokens."""

from typing import Final

__version__: Final = "0.2.0"
