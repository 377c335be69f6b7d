"""`/openapi.json`: the API for machines. A test compares it with the routes that exist."""

from typing import Any, Final

from aiohttp import web

from broker import __version__
from broker.core.login import LoginKind
from broker.core.serving import Code, ReportOutcome, TokenState
from broker.web.api.status import LOGIN_ONLY
from broker.web.gate import open_to_browsers

Json = dict[str, Any]


def routes() -> list[web.RouteDef]:
    """Return the one route."""
    return [web.get("/openapi.json", get_openapi)]


@open_to_browsers
async def get_openapi(_request: web.Request) -> web.Response:
    """Answer with the document."""
    return web.json_response(DOCUMENT)


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _content(kind: str, schema: Json) -> Json:
    return {"content": {kind: {"schema": schema}}}


def _object(required: list[str] | None = None, **properties: Json) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(properties) if required is None else required,
    }


def _nullable(kind: str) -> Json:
    return {"type": [kind, "null"]}


_TEXT: Final[Json] = {"type": "string"}
_COUNT: Final[Json] = {"type": "integer", "minimum": 0}
_ETAG: Final[Json] = {
    "ETag": {"schema": _TEXT, "description": 'The token\'s version, quoted: "k3f9-42".'}
}
_RETRY: Final[Json] = {
    "Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds."}
}


def _problem(text: str, *, waits: bool = False) -> Json:
    return {
        "description": text,
        **({"headers": _RETRY} if waits else {}),
        **_content("application/problem+json", _ref("Problem")),
    }


_REFUSALS: Final[Json] = {
    "401": _problem("`missing-key`, `invalid-key` (where [clients] are configured)"),
    "403": _problem(
        "`host-not-allowed`, `browser-request`, `forwarded-request`, `missing-request-header`,"
        " `insufficient-scope`"
    ),
    "404": _problem("`unknown-app`, `no-token` (an app that only logs in)"),
}
_NO_TOKEN: Final = _problem("No token now: see `code` and `retry_after`.", waits=True)
_HOST: Final[Json] = {"403": _problem("`host-not-allowed`")}
_BODY: Final[Json] = {
    "400": _problem("`invalid-json`"),
    "413": _problem("`body-too-large`"),
    "415": _problem("`unsupported-media-type`"),
}
_APP: Final[Json] = {
    "name": "app",
    "in": "path",
    "required": True,
    "schema": _TEXT,
    "description": "An app's name or AppID.",
}


def _query(name: str, most: int, text: str) -> Json:
    return {
        "name": name,
        "in": "query",
        "schema": {"type": "number", "minimum": 0, "maximum": most},
        "description": text,
    }


def _token_answer(schema: Json) -> Json:
    return {
        "description": "The token to use.",
        "headers": _ETAG,
        **_content("application/json", schema),
    }


_TOKEN_FIELDS: Final[dict[str, Json]] = {
    "app": _TEXT,
    "appid": _TEXT,
    "access_token": {**_TEXT, "description": "Opaque; reserve at least 512 characters."},
    "expires_in": {**_COUNT, "description": "Whole seconds left now, never more than the truth."},
    "expires_at": {**_TEXT, "format": "date-time"},
    "token_expires_in": {
        **_COUNT,
        "description": "Seconds to WeChat's own end of the token, if nobody replaces it.",
    },
    "version": {**_TEXT, "description": "Changes with the token; not derived from it."},
    "state": {"enum": [state.value for state in TokenState]},
}

_GET_TOKEN: Final[Json] = {
    "operationId": "getToken",
    "summary": "The app's token; with If-None-Match and wait, a watch for the next one.",
    "security": [{"bearer": []}, {"header": []}],
    "parameters": [
        _APP,
        _query("wait", 300, "With If-None-Match: seconds to wait for another version."),
        _query("min_ttl", 86400, "Only a token with at least that many seconds left."),
        {
            "name": "If-None-Match",
            "in": "header",
            "schema": _TEXT,
            "description": "The ETag of the token you hold.",
        },
    ],
    "responses": {
        "200": _token_answer(_ref("Token")),
        "304": {"description": "You hold the current one.", "headers": _ETAG},
        "400": _problem("`invalid-parameter`"),
        **_REFUSALS,
        "503": _NO_TOKEN,
    },
}
_REPORT: Final[Json] = {
    "operationId": "reportToken",
    "summary": "Say that WeChat refused a token. It is verified before it costs anything.",
    "security": [{"bearer": []}, {"header": []}],
    "parameters": [_APP],
    "requestBody": {"required": True, **_content("application/json", _ref("Report"))},
    "responses": {
        "200": _token_answer(_ref("Reported")),
        **_BODY,
        **_REFUSALS,
        "422": _problem("`invalid-body`, `not-a-token-error`"),
        "429": _problem("`report-throttled`", waits=True),
        "503": _NO_TOKEN,
    },
}
_REFRESH: Final[Json] = {
    "operationId": "refreshToken",
    "summary": "Spend a token call now, within min_gap and the quota. Scope: admin.",
    "security": [{"bearer": []}, {"header": []}],
    "parameters": [_APP],
    "requestBody": {"required": False, **_content("application/json", _ref("Refresh"))},
    "responses": {
        "200": _token_answer(_ref("Token")),
        **_BODY,
        **_REFUSALS,
        "422": _problem("`invalid-body`"),
        "429": _problem("`refresh-throttled`", waits=True),
        "503": _NO_TOKEN,
    },
}


_TICKET_KIND: Final[Json] = {
    "enum": ["jsapi", "wx_card", "agent_config"],
    "description": "WeChat has jsapi and wx_card; WeCom jsapi (a company's) and agent_config.",
}
_TICKET_FIELDS: Final[dict[str, Json]] = {
    "app": _TEXT,
    "appid": _TEXT,
    "type": _TICKET_KIND,
    "ticket": _TEXT,
    **{name: _TOKEN_FIELDS[name] for name in ("expires_in", "expires_at", "version", "state")},
}
_NO_TICKET: Final[Json] = {**_REFUSALS, "404": _problem("`unknown-app`, `unknown-ticket`")}
_GET_TICKET: Final[Json] = {
    **_GET_TOKEN,
    "operationId": "getTicket",
    "summary": (
        "The app's ticket of that type; with If-None-Match and wait, a watch for the next one."
    ),
    "parameters": [
        _APP,
        {"name": "type", "in": "path", "required": True, "schema": _TICKET_KIND},
        *_GET_TOKEN["parameters"][1:],
    ],
    "responses": {**_GET_TOKEN["responses"], **_NO_TICKET, "200": _token_answer(_ref("Ticket"))},
}


def _sign(operation: str, summary: str, asked: Json, answer: Json) -> Json:
    return {
        "operationId": operation,
        "summary": summary,
        "security": [{"bearer": []}, {"header": []}],
        "parameters": [_APP],
        "requestBody": {
            "required": True,
            **_content("application/json", {**asked, "additionalProperties": False}),
        },
        "responses": {
            "200": {"description": "Signed.", **_content("application/json", answer)},
            **_BODY,
            **_NO_TICKET,
            "422": _problem("`invalid-body`"),
            "503": _NO_TOKEN,
        },
    }


_VALUE: Final[Json] = {**_TEXT, "pattern": "^[!-~]{1,256}$"}
_SIGN_PAGE: Final = _sign(
    "signPage",
    "What `wx.config` needs for a page.",
    _object(
        url={
            **_TEXT,
            "pattern": "^https?://[!-~]{1,4096}$",
            "description": "The page's `location.href`; what follows a `#` does not count.",
        }
    ),
    _object(appId=_TEXT, timestamp=_COUNT, nonceStr=_TEXT, signature=_TEXT),
)
_SIGN_AGENT: Final = _sign(
    "signAgentConfig",
    "What `wx.agentConfig` of WeCom needs besides the agentid.",
    _SIGN_PAGE["requestBody"]["content"]["application/json"]["schema"],
    _object(corpid=_TEXT, timestamp=_COUNT, nonceStr=_TEXT, signature=_TEXT),
)
_SIGN_CARD: Final = _sign(
    "signCard",
    "What a card's `cardExt` needs.",
    _object(["card_id"], card_id=_VALUE, code=_VALUE, openid=_VALUE),
    _object(
        ["card_id", "nonce_str", "signature", "timestamp"],
        timestamp=_TEXT,
        nonce_str=_TEXT,
        signature=_TEXT,
        card_id=_TEXT,
    ),
)


_LOG_IN: Final[Json] = {
    "operationId": "logIn",
    "summary": "Exchange a login code with the AppSecret that only the broker has. Scope: login.",
    "description": (
        "WeChat's answer as it is, errcode included: `session_key`, a user's token, `unionid`."
        " Nothing of it is kept. A code is good once: whatever the answer, and where there is none,"
        " it counts as used, except on 429 and `stopping`."
    ),
    "security": [{"bearer": []}, {"header": []}],
    "parameters": [_APP],
    "requestBody": {"required": True, **_content("application/json", _ref("Login"))},
    "responses": {
        "200": {
            "description": "WeChat's answer.",
            **_content("application/json", {"type": "object"}),
        },
        **_BODY,
        **_REFUSALS,
        "422": _problem("`invalid-body`; `no-code-exchange` for an app of WeCom"),
        "429": _problem("`login-throttled`: the code is still good.", waits=True),
        "502": _problem("`upstream-unavailable`: WeChat gave no answer; the code counts as used."),
        "503": _problem("`stopping`: the code is still good.", waits=True),
    },
}
_GET_HANDOUTS: Final[Json] = {
    "operationId": "getHandouts",
    "summary": "Which client was first and last handed which version. Scope: admin.",
    "security": [{"bearer": []}, {"header": []}],
    "parameters": [_APP],
    "responses": {
        "200": {
            "description": "The row seen last first, at most 1000.",
            **_content("application/json", _ref("Handouts")),
        },
        "400": _problem("`invalid-parameter`"),
        **_REFUSALS,
        "503": _problem("`store-unavailable`", waits=True),
    },
}


def _get(operation: str, summary: str, kind: str, schema: Json, **more: Json) -> Json:
    good = {"description": "Good.", **_content(kind, schema)}
    return {
        "get": {
            "operationId": operation,
            "summary": summary,
            "responses": {"200": good, **_HOST, **more},
        }
    }


_FAIL: Final[Json] = {
    "description": "It fails; the body says why.",
    **_content("application/health+json", _ref("Health")),
}


def _probe(
    operation: str, summary: str, parameters: list[Json] | None = None, **more: Json
) -> Json:
    """Describe a probe: it answers whatever Host is asked for."""
    health = _content("application/health+json", _ref("Health"))
    return {
        "get": {
            "operationId": operation,
            "summary": summary,
            **({"parameters": parameters} if parameters else {}),
            "responses": {"200": {"description": "Good.", **health}, "503": _FAIL, **more},
        }
    }


DOCUMENT: Final[Json] = {
    "openapi": "3.1.0",
    "info": {
        "title": "token-broker",
        "version": __version__,
        "summary": "One live WeChat access token per app.",
        "description": (
            "Where it is configured, WeChat's own token paths are answered ([compat]), and calls to"
            " WeChat's other interfaces are passed on ([proxy]); both are described by WeChat, not"
            " here."
        ),
    },
    "paths": {
        "/v1/tokens/{app}": {"get": _GET_TOKEN},
        "/v1/tokens/{app}/report": {"post": _REPORT},
        "/v1/tokens/{app}/refresh": {"post": _REFRESH},
        "/v1/tickets/{app}/{type}": {"get": _GET_TICKET},
        "/v1/tickets/{app}/jsapi/signature": {"post": _SIGN_PAGE},
        "/v1/tickets/{app}/wx_card/signature": {"post": _SIGN_CARD},
        "/v1/tickets/{app}/agent_config/signature": {"post": _SIGN_AGENT},
        "/v1/logins/{app}": {"post": _LOG_IN},
        "/v1/handouts/{app}": {"get": _GET_HANDOUTS},
        "/v1/status": _get(
            "getStatus", "Every app without its token.", "application/json", _ref("Status")
        ),
        "/livez": _probe("livez", "Does it live?"),
        "/readyz": _probe(
            "readyz",
            "Has every app, or the one named by `app`, a token?",
            [{**_APP, "in": "query", "required": False}],
            **{"404": _problem("`unknown-app`")},
        ),
        "/health": _probe("health", "How is it?"),
        "/metrics": {
            "get": {
                "operationId": "metrics",
                "summary": "For Prometheus.",
                "responses": {
                    "200": {"description": "Good.", **_content("text/plain", _TEXT)},
                },
            }
        },
        "/openapi.json": _get("openapi", "This document.", "application/json", {"type": "object"}),
    },
    "components": {
        "securitySchemes": {
            "bearer": {
                "type": "http",
                "scheme": "bearer",
                "description": "Where [clients] are configured.",
            },
            "header": {
                "type": "apiKey",
                "in": "header",
                "name": "X-Token-Broker",
                "description": "Elsewhere: the value 1.",
            },
        },
        "schemas": {
            "Token": _object(None, **_TOKEN_FIELDS),
            "Ticket": _object(None, **_TICKET_FIELDS),
            "Reported": _object(
                None,
                **_TOKEN_FIELDS,
                outcome={"enum": [outcome.value for outcome in ReportOutcome]},
            ),
            "Report": {
                **_object(
                    [], version=_TEXT, access_token=_TEXT, errcode={"enum": [40001, 40014, 42001]}
                ),
                "oneOf": [{"required": ["version"]}, {"required": ["access_token"]}],
                "additionalProperties": False,
            },
            "Login": {
                **_object(
                    kind={"enum": [kind.value for kind in LoginKind]},
                    code={**_TEXT, "pattern": "^[!-~]{1,512}$"},
                ),
                "additionalProperties": False,
            },
            "Refresh": {**_object([], force={"type": "boolean"}), "additionalProperties": False},
            "Problem": _object(
                ["type", "title", "status", "detail", "code"],
                type=_TEXT,
                title=_TEXT,
                status=_COUNT,
                detail=_TEXT,
                code={**_TEXT, "examples": [code.value for code in Code]},
                retry_after={"type": "integer", "minimum": 1},
            ),
            "Health": _object(
                ["status"],
                status={"enum": ["pass", "warn", "fail"]},
                output=_TEXT,
                checks={"type": "object"},
            ),
            "Handouts": _object(
                app=_TEXT,
                appid=_TEXT,
                version={**_nullable("string"), "description": "The one in force."},
                kept_days=_COUNT,
                handouts={"type": "array", "items": _ref("Handout")},
            ),
            "Handout": _object(
                client={
                    **_TEXT,
                    "description": "Its name; without [clients], `local` or `socket`.",
                },
                version=_TEXT,
                current={"type": "boolean", "description": "Whether it is the one in force."},
                count={**_COUNT, "description": "How often it was handed out."},
                first={**_nullable("string"), "format": "date-time"},
                last={**_nullable("string"), "format": "date-time"},
                held={**_COUNT, "description": "How often the client said that it holds it."},
                last_held={**_nullable("string"), "format": "date-time"},
            ),
            "Status": _object(
                version=_TEXT,
                uptime=_COUNT,
                stopping={"type": "boolean"},
                apps={"type": "array", "items": _ref("AppStatus")},
                nodes={
                    "type": "array",
                    "items": _ref("Node"),
                    "description": "Who shares the store; nobody shares a file.",
                },
                notifications=_object(
                    receivers={"type": "array", "items": _ref("Receiver")},
                    told={
                        "type": "array",
                        "items": _object(event=_TEXT, app=_TEXT, about=_TEXT, since=_TEXT),
                        "description": "What was told and is not over.",
                    },
                    held_back={"type": "boolean"},
                ),
                notices={
                    "type": "array",
                    "items": _object(code=_TEXT, text=_TEXT),
                    "description": "What the configuration permits though it is dangerous.",
                },
            ),
            "Receiver": _object(
                receiver={**_TEXT, "description": "Its kind and host; never its URL."},
                sent=_COUNT,
                lost=_COUNT,
                waiting=_COUNT,
                last_sent=_nullable("string"),
                trouble=_nullable("object"),
            ),
            "Sink": _object(
                sink={**_TEXT, "description": "The place; never a password."},
                state={"enum": ["current", "behind", "waiting", "empty"]},
                version=_nullable("string"),
                written=_nullable("string"),
                trouble=_nullable("object"),
            ),
            "Node": _object(
                node=_TEXT,
                seen_ago={**_COUNT, "description": "Seconds, by the store's clock."},
                notified_ago=_nullable("integer"),
                versions={
                    "type": "object",
                    "additionalProperties": _nullable("string"),
                    "description": "By app.",
                },
            ),
            "AppStatus": _object(
                app=_TEXT,
                appid=_TEXT,
                endpoint=_TEXT,
                state={"enum": [*(state.value for state in TokenState), "unavailable", LOGIN_ONLY]},
                version=_nullable("string"),
                expires_in=_COUNT,
                token_expires_in=_COUNT,
                next_refresh_in=_COUNT,
                quota=_object(limit=_COUNT, used_today=_COUNT, used_24h=_COUNT, remaining=_COUNT),
                last_error=_nullable("object"),
                second_issuer=_object(
                    suspected={"type": "boolean"}, since=_nullable("string"), count=_COUNT
                ),
                store_error=_nullable("string"),
                logins=_object(
                    outcomes={"type": "object", "additionalProperties": _COUNT},
                    last_at=_nullable("string"),
                    last_failure=_nullable("object"),
                    news={
                        **_nullable("object"),
                        "description": "What a person must see to, as in `last_error`.",
                    },
                ),
                sinks={"type": "array", "items": _ref("Sink")},
                tickets={
                    "type": "object",
                    "description": "By type, those that were asked for within a day.",
                    "additionalProperties": _object(
                        state={"enum": [*(state.value for state in TokenState), "unavailable"]},
                        version=_nullable("string"),
                        expires_in=_COUNT,
                        token_expires_in=_COUNT,
                        next_refresh_in=_COUNT,
                        last_error=_nullable("object"),
                    ),
                },
            ),
        },
    },
}
