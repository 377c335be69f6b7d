"""Reads what a request says: its app, its query parameters, its JSON body."""

import json
import re
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from broker.core.serving import Code, Unavailable
from broker.http.problems import Problem, ProblemError, problem
from broker.tokens.keeper import Keeper
from broker.tokens.registry import Registry
from broker.web.connection.connections import BODY_DEADLINE_S, read_body
from broker.web.connection.fast_path import APP
from broker.web.dialect import ErrcodeError
from broker.web.gate import CLIENT, JUDGE
from broker.web.words import english

LONGEST_WAIT_S: Final = 300
LONGEST_TTL_S: Final = 86400
NUMBER: Final = re.compile(r"\d{1,20}(?:\.\d{1,400})?(?:[eE][+-]?\d{1,4})?", re.ASCII)
NO_STORE: Final[Mapping[str, str]] = {hdrs.CACHE_CONTROL: "no-store"}
TYPES: Final = {str: "a string", int: "an integer", bool: "true or false"}
# All other codes are 503.
STATUS: Final = {
    Code.REPORT_THROTTLED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.REFRESH_THROTTLED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.UNKNOWN_APP: HTTPStatus.NOT_FOUND,
}


def iso(wall: float) -> str:
    """Format unix time for people: UTC, whole seconds, rounded down."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall))


def keeper_of(request: web.Request, registry: Registry, scope: str) -> Keeper:
    """Return the keeper of the app in the path, for a client that has the scope and the app.

    Raises ProblemError. A client that may not use an app does not learn whether there is one.
    """
    client, app = request[CLIENT], request.match_info["app"]
    if scope not in client.scopes:
        raise ProblemError(403, "insufficient-scope", f"This client lacks the scope `{scope}`.")
    keeper = registry.find(app)
    name = keeper.account.name if keeper is not None else app
    if not client.may_use(name):
        raise ProblemError(403, "insufficient-scope", "This client may not use that app.")
    if keeper is None and registry.is_login_only(app):
        raise ProblemError(
            404, "no-token", 'This app only logs in: endpoint = "none" keeps no token.'
        )
    if keeper is None:
        raise ProblemError(
            404, "unknown-app", "No app has this name or AppID; GET /v1/status lists them."
        )
    request[APP] = name
    request[JUDGE] = lambda again: keeper_of(again, registry, scope)
    return keeper


def matches(request: web.Request, version: str) -> bool:
    """Return True if the client says in If-None-Match that it has this version."""
    tags = request.if_none_match or ()
    return any(tag.value in {version, "*"} for tag in tags)


def numbers(request: web.Request, **most: float) -> list[float]:
    """Return query parameters as numbers, 0 if absent; `most` maps each name to its largest value.

    Raises ProblemError for any other parameter, for one given twice, and for values out of range.
    """
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
    """Return the fields of the JSON object in the body; `known` maps each field to its type.

    Raises ProblemError, which says where the body is wrong.
    """
    body = await _json(request)
    if not isinstance(body, dict):
        raise ProblemError(422, "invalid-body", "The body must be a JSON object.")
    wrong = [
        f"`{name}` must be {TYPES[kind]}"
        for name, kind in known.items()
        if name in body and type(body[name]) is not kind
    ]
    if unknown := body.keys() - known.keys():
        wrong.append(f"{len(unknown)} unknown field(s); there are: {', '.join(known)}")
    if wrong:
        raise ProblemError(422, "invalid-body", "; ".join(wrong) + ".")
    return body


async def _json(request: web.Request) -> Any:
    if request.content_type != "application/json":
        raise ProblemError(
            415, "unsupported-media-type", "Send the body as `Content-Type: application/json`."
        )
    try:
        return json.loads(await body_of(request), object_pairs_hook=_each_once)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ProblemError(400, "invalid-json", f"The body is not JSON at {where}.") from None
    except ValueError:  # bytes that are no UTF-8, integers too long to convert
        raise ProblemError(400, "invalid-json", "The body is not JSON.") from None
    except RecursionError:
        raise ProblemError(400, "invalid-json", "The body is nested too deeply.") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ProblemError(422, "invalid-body", "A field stands twice.")
    return found


async def body_of(request: web.Request) -> bytes:
    """Return the body, unpacked.

    Raises ProblemError if it does not come, and if it is not packed as its headers say. Raises
    HTTPRequestEntityTooLarge.
    """
    try:
        return await read_body(request)
    except TimeoutError:
        raise ProblemError(
            408, "request-timeout", f"The body did not come within {BODY_DEADLINE_S:g} s."
        ) from None
    except ConnectionError:
        raise ProblemError(400, "invalid-json", "The body ended early.") from None
    except (HttpProcessingError, RequestPayloadError):
        detail = "The body is not packed as its Content-Encoding says."
        raise ProblemError(400, "invalid-json", detail) from None


async def sdk_params(request: web.Request) -> list[tuple[str, Any]]:
    """Return the parameters in query and body, JSON or form, whatever the content type says.

    Raises ErrcodeError if the body is neither, and what :func:`body_of` raises.
    """
    given: list[tuple[str, Any]] = list(request.query.items())
    if request.method != hdrs.METH_POST or not request.can_read_body:
        return given
    body = await body_of(request)
    try:
        if body.lstrip()[:1] != b"{":
            return [*given, *parse_qsl(body.decode())]
        objects: list[list[tuple[str, Any]]] = []
        json.loads(body, object_pairs_hook=objects.append)
    except (ValueError, RecursionError):
        raise ErrcodeError(47001) from None
    return [*given, *objects[-1]]  # the outermost object is closed last


def unavailable(answer: Unavailable, thing: str = english.FAILURES.token) -> Problem:
    """Build the answer that says why there is no `thing` now, and when to ask again."""
    status = STATUS.get(answer.code, HTTPStatus.SERVICE_UNAVAILABLE)
    detail = english.unavailable(answer, thing)
    # To ask again does not help where the app is gone.
    retry_after = None if answer.code is Code.UNKNOWN_APP else answer.retry_after
    return problem(status, answer.code.value, detail, retry_after)
