"""Errors as `application/problem+json` (RFC 9457), with a stable `code` and when to come back."""

import json
from http import HTTPStatus

from aiohttp import web


class ProblemError(Exception):
    """A request that is refused: the HTTP status, a stable code and a sentence for people.

    Raise it in a handler; the outermost middleware answers with :attr:`response`.
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(code)
        self.status, self.code, self.detail = status, code, detail
        self.response = problem(status, code, detail)


class Problem(web.Response):
    """An error as an answer. `code` and `detail` are those of its body."""

    def __init__(self, body: dict[str, object], status: int, headers: dict[str, str]) -> None:
        super().__init__(
            status=status,
            text=json.dumps(body, ensure_ascii=False),
            content_type="application/problem+json",
            headers=headers,
        )
        self.code, self.detail = str(body["code"]), str(body["detail"])


def problem(
    status: int, code: str, detail: str, retry_after: int | None = None, **headers: str
) -> Problem:
    """Build the answer.

    `retry_after` is in whole seconds and goes into the header of that name too.

    In the names of further `headers` an underscore stands for a hyphen.
    """
    body: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    fields = {"Cache-Control": "no-store"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    if retry_after is not None:
        body["retry_after"] = retry_after
        fields["Retry-After"] = str(retry_after)
    return Problem(body, status, fields)
