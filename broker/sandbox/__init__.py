"""A stand-in for WeChat, true to core/WECHAT.md, which shares no code with the rest of ``broker``.

It is meant for development without an account and for tests: it can be told the time, and made to
fail in every way that was ever seen. Start it with `serve`, or put `create_app` behind a test
server; `GET /sandbox` describes the rest.
"""

from .options import SandboxOptions
from .server import create_app, serve

__all__ = ["SandboxOptions", "create_app", "serve"]
