"""What a request says: its app, its query parameters, its JSON body; and the answers where that will not do."""

import asyncio
import json
import re
import time
from http import HTTPStatus
from typing import Any, Final

from aiohttp import hdrs, web

from broker.core.serving import Code, Unavailable
from broker.http.problems import ProblemError, problem
from broker.tokens.keeper import Keeper
from broker.web.connection.fast_path import APP
from broker.web.context import EDGE
from broker.web.gate import CLIENT

LONGEST_WAIT_S: Final = 300
NUMBER: Final = re.compile(r"\d{1,20}(?:\.\d{1,400})?(?:[eE][+-]?\d{1,4})?", re.ASCII)
BODY_DEADLINE_S: Final = 10.0
LONGEST_TTL_S: Final = 86400
NO_STORE: Final = {hdrs.CACHE_CONTROL: "no-store"}


def iso(wall: float) -> str:
    """Unix time for people: UTC, whole seconds, rounded down."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall))


def keeper_of(request: web.Request, scope: str) -> Keeper:
    """The app's keeper, for a client that may; raises Bad.

    Who may not learns nothing of which apps there are.
    """
    client, app = request[CLIENT], request.match_info["app"]
    if scope not in client.scopes:
        raise ProblemError(403, "insufficient-scope", f"This client lacks the scope `{scope}`.")
    keeper = request.app[EDGE].registry.find(app)
    if not client.may_use(keeper.account.name if keeper else app):
        raise ProblemError(403, "insufficient-scope", "This client may not use that app.")
    if keeper is None and request.app[EDGE].keeps_no_token(app):
        raise ProblemError(
            404, "no-token", 'This app only logs in: endpoint = "none" keeps no token.'
        )
    if keeper is None:
        raise ProblemError(
            404, "unknown-app", "No app has this name or AppID; GET /v1/status lists them."
        )
    request[APP] = keeper.account.name
    return keeper


def matches(request: web.Request, version: str) -> bool:
    """Whether the client says that it has this version."""
    tags = request.if_none_match or ()
    return any(tag.value in {version, "*"} for tag in tags)


def numbers(request: web.Request, **most: float) -> list[float]:
    """Query parameters as numbers, 0 where absent; raises Bad for any other parameter, and for values out of range."""
    if not request.query_string:
        return [0.0] * len(most)
    for name in request.query:
        if name not in most:
            raise ProblemError(
                400, "invalid-parameter", f"Unknown query parameter; there are: {', '.join(most)}."
            )
        if len(request.query.getall(name)) > 1:
            raise ProblemError(400, "invalid-parameter", f"`{name}` is given twice.")
    return [_number(name, request.query.get(name, "0"), limit) for name, limit in most.items()]


def _number(name: str, value: str, limit: float) -> float:
    if not (NUMBER.fullmatch(value) and float(value) <= limit):
        raise ProblemError(
            400, "invalid-parameter", f"`{name}` is a number of seconds from 0 to {limit:g}."
        )
    return float(value)


async def fields_of(request: web.Request, known: dict[str, type]) -> dict[str, Any]:
    """A JSON object's fields; raises Bad that says where it is wrong."""
    if request.content_type != "application/json":
        raise ProblemError(
            415, "unsupported-media-type", "Send the body as `Content-Type: application/json`."
        )
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            body = json.loads(await request.read(), object_pairs_hook=_each_once)
    except TimeoutError:
        raise ProblemError(
            408, "request-timeout", f"The body did not come within {BODY_DEADLINE_S:g} s."
        ) from None
    except ConnectionError:
        raise ProblemError(400, "invalid-json", "The body ended early.") from None
    except ValueError as error:
        where = (
            f" at line {error.lineno}, column {error.colno}"
            if isinstance(error, json.JSONDecodeError)
            else ""
        )
        raise ProblemError(400, "invalid-json", f"The body is not JSON{where}.") from None
    except RecursionError:
        raise ProblemError(400, "invalid-json", "The body is nested too deeply.") from None
    if not isinstance(body, dict):
        raise ProblemError(422, "invalid-body", "The body must be a JSON object.")
    wrong = [
        f"`{name}` must be {_TYPES[kind]}"
        for name, kind in known.items()
        if name in body and type(body[name]) is not kind
    ]
    if len(unknown := body.keys() - known.keys()):
        wrong.append(f"{len(unknown)} unknown field(s); there are: {', '.join(known)}")
    if wrong:
        raise ProblemError(422, "invalid-body", "; ".join(wrong) + ".")
    return body


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ProblemError(422, "invalid-body", "A field stands twice.")
    return found


_TYPES: Final = {str: "a string", int: "an integer", bool: "true or false"}


# One map from what the core says to what HTTP says.
STATUS: Final = {
    Code.REPORT_THROTTLED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.REFRESH_THROTTLED: HTTPStatus.TOO_MANY_REQUESTS,
}


def unavailable(why: Unavailable) -> web.Response:
    """Build the answer where the core says that there is nothing now."""
    status = STATUS.get(why.code, HTTPStatus.SERVICE_UNAVAILABLE)
    return problem(status, why.code.value, why.detail, why.retry_after)
