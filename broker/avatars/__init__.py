"""The avatar companion: an application of its own, a client of the daemon like any other service.

It holds no secret and keeps no token: :mod:`broker.client` asks the daemon, reports refused tokens
and retries once. Where to look: `urls.py` what an avatar URL is, `listing.py` and `profiles.py`
what is asked of WeChat and how long it is kept, `errors.py` and `messages.py` what is said when
that fails, `api.py` and `gallery.py` the routes.
"""

from broker.avatars.companion import CompanionOptions
from broker.avatars.server import create_app, serve

__all__ = ["CompanionOptions", "create_app", "serve"]
