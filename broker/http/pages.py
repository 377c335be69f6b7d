"""What pages consist of: templates, and static files whose names change with their content.

All of them are read at the start: an installation may be replaced while it runs.
"""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

if TYPE_CHECKING:
    import jinja2
    import markupsafe

TYPES: Final = {".css": "text/css", ".svg": "image/svg+xml", ".js": "text/javascript"}
FOR_EVER: Final = "public, max-age=31536000, immutable"  # the name changes with the content


class Pages:
    """The `templates/` and `static/` of one directory.

    Templates are given `paths`, which has the address of each static file by its name.
    """

    def __init__(self, here: Path) -> None:
        files = [path for path in sorted((here / "static").iterdir()) if path.suffix in TYPES]
        bodies = [(path, path.read_bytes()) for path in files]
        named = [
            (path, f"{path.stem}.{hashlib.sha256(body).hexdigest()[:12]}{path.suffix}", body)
            for path, body in bodies
        ]
        self._static = {served: (TYPES[path.suffix], body) for path, served, body in named}
        self.paths = {path.name: f"/static/{served}" for path, served, _ in named}
        self._templates = {path.name: path.read_text() for path in (here / "templates").iterdir()}

    @cached_property
    def _jinja(self) -> "jinja2.Environment":
        # A daemon that shows no page does not need it, and starts sooner without.
        import jinja2  # noqa: PLC0415

        environment = jinja2.Environment(
            loader=jinja2.DictLoader(self._templates),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        environment.filters["code"] = _code
        return environment

    def prepare(self) -> None:
        """Import what makes pages of templates. Takes a while: call it on a thread."""
        self._jinja  # noqa: B018 -- which imports it

    async def get_static(self, request: web.Request) -> web.Response:
        """A static file; for the route `/static/{name}`."""
        found = self._static.get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound
        kind, body = found
        return web.Response(body=body, content_type=kind, headers={"Cache-Control": FOR_EVER})

    def render(
        self, template: str, lang: str, words: Mapping[str, str], shown: Mapping[str, Any]
    ) -> str:
        """A page in a language: its words are `t` in the template."""
        return self._jinja.get_template(template).render(
            shown, t=words, lang=lang, paths=self.paths
        )

    def response(
        self,
        template: str,
        lang: str,
        words: Mapping[str, str],
        shown: Mapping[str, Any],
        status: int = HTTPStatus.OK,
    ) -> web.Response:
        """A page as an answer."""
        headers = {"Content-Language": lang, "Vary": "Accept-Language"}
        text = self.render(template, lang, words, shown)
        response = web.Response(status=status, text=text, content_type="text/html", headers=headers)
        response.enable_compression()  # a seventh of it over a phone's network
        return response


def _code(text: str) -> "markupsafe.Markup":
    """Escape a sentence, and set what stands between backticks in it as code."""
    from markupsafe import Markup, escape  # noqa: PLC0415 -- as above

    pieces = [escape(piece) for piece in text.split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if n % 2 else piece
        for n, piece in enumerate(pieces)
    )
