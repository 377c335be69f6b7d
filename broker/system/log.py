"""One line per transition: for people on a terminal, JSON elsewhere.

Never a token, a secret, or a URL with one.
"""

import logging
import sys
from typing import Final, TextIO

import structlog
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from broker.core.text import visible

# The last: what is left of a body, read after the answer, is not packed as it says.
PEERS_FAULTS: Final = (HttpProcessingError, ConnectionError, RequestPayloadError)
# What a person must see to, and what is merely worth knowing; everything else is a healthy day's
# line.
ERRORS = {"crashed", "store-failed", "reload-refused", "not-well"}
DEBUGS = {"hook-output"}
WARNINGS = {
    "notification-failed",
    "sink-behind",
    "refresh-failed",
    "logins-refused",
    "suspect",
    "second-issuer",
    "quota-spent",
    "abandoned-call-closed",
    "lease-lost",
    "store-mode-corrected",
    "store-set-aside",
    "restart-needed",
    "throttled",
    "dangerous-configuration",
}


def configure(level: str = "", stream: TextIO = sys.stderr) -> None:
    """Set up structlog, and send the standard library's logging (APScheduler, aiohttp) through it.

    `level` is that of $TOKEN_BROKER_LOG_LEVEL (`debug`, `info`, …); unknown ones mean `info`.
    Libraries are heard from WARNING on, and at `debug` from their lowest level on.
    """
    chosen = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _visible,
    ]
    # Plain tracebacks: the pretty ones print local variables, and among those are secrets.
    rendering: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if stream.isatty()
        else [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ]
    )
    structlog.configure(
        processors=[*shared, *rendering],
        logger_factory=structlog.WriteLoggerFactory(stream),
        wrapper_class=structlog.make_filtering_bound_logger(chosen),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[_bare, *rendering]
        )
    )
    logging.basicConfig(
        handlers=[handler], level=chosen if chosen <= logging.DEBUG else logging.WARNING, force=True
    )
    logging.getLogger("aiohttp.server").addFilter(_is_ours)


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a line of aiohttp's is about us.

    It logs malformed requests with what was sent, which may be a key.
    """
    return not (record.exc_info and isinstance(record.exc_info[1], PEERS_FAULTS))


def _bare(
    _logger: object, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return structlog.stdlib.ProcessorFormatter.remove_processors_meta(None, "", event)


def _visible(
    _logger: object, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Keep what others have written from steering the terminal that shows the log."""
    return {key: visible(it) if isinstance(it, str) else it for key, it in event.items()}


def emit(event: str, app: str, **facts: object) -> None:
    """A :class:`broker.core.ports.EventSink` that writes a line."""
    error = facts.pop("error", None)
    known = {name: fact for name, fact in facts.items() if fact is not None}
    structlog.get_logger().log(
        _level(event), event, app=app, **known, **({"exc_info": error} if error else {})
    )


def tell(event: str, **facts: object) -> None:
    """What happened to the daemon as a whole."""
    structlog.get_logger().log(_level(event), event, **facts)


def _level(event: str) -> int:
    named = {logging.ERROR: ERRORS, logging.WARNING: WARNINGS, logging.DEBUG: DEBUGS}
    return next((level for level, events in named.items() if event in events), logging.INFO)


def crash(where: str, error: Exception) -> None:
    """A bug while answering a request: once, with its traceback."""
    structlog.get_logger().error("request-crashed", route=where, exc_info=error)
