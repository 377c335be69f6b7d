"""Errors as `application/problem+json` (RFC 9457), as the daemon's."""

import json
from http import HTTPStatus

from aiohttp import web

from broker.avatars import messages as words
from broker.avatars.errors import Trouble


class Bad(Exception):  # noqa: N818 -- an answer to the client, not a fault of ours
    """The request will not do: said to whoever sent it, as JSON or as a page."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(code)
        self.status, self.code, self.detail = status, code, detail


def problem(status: int, code: str, detail: str, retry_after: int | None = None, **headers: str) -> web.Response:
    """Build the answer. `retry_after`: whole seconds, beside the header of that name."""
    body: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    fields = {"Cache-Control": "no-store", **headers}
    if retry_after is not None:
        body["retry_after"] = retry_after
        fields["Retry-After"] = str(retry_after)
    text = json.dumps(body, ensure_ascii=False)
    return web.Response(status=status, text=text, content_type="application/problem+json", headers=fields)


def of_trouble(trouble: Trouble) -> web.Response:
    """The answer where there is nothing to show, not even from yesterday."""
    return problem(trouble.status, trouble.code, words.sentence(trouble.code, trouble.facts), trouble.retry_after)
