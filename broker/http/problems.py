"""Errors as `application/problem+json` (RFC 9457), with a stable `code` and, where waiting helps, when to come back."""

import json
from http import HTTPStatus

from aiohttp import web

from broker.core.serving import Code, Unavailable

# One map from what the core says to what HTTP says.
STATUS = {Code.REPORT_THROTTLED: HTTPStatus.TOO_MANY_REQUESTS, Code.REFRESH_THROTTLED: HTTPStatus.TOO_MANY_REQUESTS}


def problem(status: int, code: str, detail: str, retry_after: int | None = None, **headers: str) -> web.Response:
    """Build the answer. `retry_after`: whole seconds, beside the header of that name."""
    body: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    fields = {"Cache-Control": "no-store", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if retry_after is not None:
        body["retry_after"] = retry_after
        fields["Retry-After"] = str(retry_after)
    text = json.dumps(body, ensure_ascii=False)
    return web.Response(status=status, text=text, content_type="application/problem+json", headers=fields)


def unavailable(why: Unavailable) -> web.Response:
    """The answer where the core says that there is nothing now."""
    return problem(STATUS.get(why.code, HTTPStatus.SERVICE_UNAVAILABLE), why.code.value, why.detail, why.retry_after)
