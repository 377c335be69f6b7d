"""What PostgreSQL and libpq complain of, in sentences of ours.

Theirs may hold hosts, users, or what was stored.
"""

from typing import Final

from psycopg import Error, errors

from broker.core.ports import StoreError

GAVE_UP: Final = "the database did not answer in time"
_BY_STATE: Final = {
    "25006": "the database takes no writes (a standby, or set to read-only)",
    "25P03": "a transaction was left open too long: this process was stopped or overloaded",
    "28000": "the database does not let this role in: see pg_hba.conf and store.url",
    "28P01": "the database does not accept the password",
    "3D000": "the database named in store.url does not exist",
    "42501": "the role lacks a right: `token-broker check` says which",
    "42703": "the tables lack a column: `token-broker check` says which",
    "42P01": "the tables are missing: `token-broker check` says more",
    "53100": "the database's disk is full",
    "53300": "the database has no connection left: raise max_connections",
    "55P03": "another process holds the account's row for too long",
    "57014": GAVE_UP,
    "57P01": "the database is being stopped",
    "57P02": "the database has crashed and restarts",
    "57P03": "the database is starting up or shutting down",
}
# Of a connection that was not made, libpq tells no code. What it says is looked for in this order:
# a sentence that holds another's words stands before that one.
_CONNECT: Final = (
    "this role may not connect to the database: as its owner, grant connect on database to it"
)
_BY_WORDS: Final = (
    (
        "no password supplied",
        "the database wants a password: put it into a passfile with mode 600 (PGPASSFILE)",
    ),
    ("password authentication failed", _BY_STATE["28P01"]),
    ("no pg_hba.conf entry", _BY_STATE["28000"]),
    ("authentication failed", _BY_STATE["28000"]),
    (
        "too many connections for role",
        "this role has as many connections as it may: raise its connection limit (alter role)",
    ),
    (
        "too many connections for database",
        "the database has as many connections as it may: raise its limit (alter database)",
    ),
    ("connection slots are reserved", _BY_STATE["53300"]),
    ("too many clients", _BY_STATE["53300"]),
    ("no more connections allowed", _BY_STATE["53300"]),
    ("permission denied for database", _CONNECT),
    ("not currently accepting connections", "the database takes no connections at present"),
    ("not permitted to log in", "the role named in store.url may not log in: alter role … login"),
    ("role ", "the role named in store.url does not exist"),
    ("starting up", _BY_STATE["57P03"]),
    ("shutting down", _BY_STATE["57P03"]),
    ("does not exist", _BY_STATE["3D000"]),
    ("certificate", "the database's certificate is not accepted: see sslmode and sslrootcert"),
    ("ssl", "TLS to the database fails: see sslmode"),
    ("read-only", _BY_STATE["25006"]),
    ("is in hot standby", _BY_STATE["25006"]),
    ("translate host name", "the database's host name cannot be resolved"),
    ("refused", "the database refuses the connection: it is down, or not where store.url says"),
    ("no such file", "the database's socket is not where store.url says"),
    ("timeout", "the database cannot be reached in time"),
    ("timed out", "the database cannot be reached in time"),
    ("route to host", "the database's host cannot be reached"),
    ("unreachable", "the database's host cannot be reached"),
)


def store_error(error: Exception) -> StoreError:
    """Return an error that says the same without a host, a user, or anything that was stored."""
    return StoreError(f"PostgreSQL: {_sentence(error)}")


def _sentence(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return GAVE_UP
    if isinstance(error, Error) and error.sqlstate:
        return _BY_STATE.get(error.sqlstate) or f"error {error.sqlstate} ({_name(error.sqlstate)})"
    said = str(error).lower()
    return next(
        (ours for theirs, ours in _BY_WORDS if theirs in said),
        "the connection to the database broke",
    )


def _name(sqlstate: str) -> str:
    try:
        return errors.lookup(sqlstate).__name__
    except KeyError:
        return "unknown"
