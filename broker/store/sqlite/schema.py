"""The tables of a store file, as each version of token-broker made them."""

from collections.abc import Callable
from typing import Final

from sqlite_utils import Database

from broker.core import epoch
from broker.store.sqlite import side_tables

# A migration is never changed after a release: stores of that version exist.
_FIRST_SCHEMA: Final = """
create table meta (key text primary key, value text) strict;
create table accounts (appid text, endpoint text, token text, token_call integer,
  requested_at real, expires_at real, doubt text, doubt_since real, safe_until real, called_at real,
  reserved_call integer, not_before real, failures integer, failure text, checked_at real,
  rivals integer, rivals_since real, rivals_last real, fingerprint text, boot_id text, boot_at real,
  wall_at real, primary key (appid, endpoint)) strict;
-- autoincrement: a number that was used once names that call for ever, since it is a version.
create table calls (id integer primary key autoincrement, appid text, endpoint text, lane text,
  forced integer, cost integer, outcome text, boot_id text, boot_at real, wall_at real) strict;
create index idx_calls_appid_endpoint_id on calls (appid, endpoint, id);
"""
# "emergency minted" and "deposed minted" become "minted", with a column that says the rest.
_OWN_COLUMNS: Final = """
alter table calls add column emergency integer not null default 0;
alter table calls add column lease_lost integer not null default 0;
update calls set emergency = 1, outcome = substr(outcome, 11) where outcome like 'emergency %';
update calls set lease_lost = 1, outcome = substr(outcome, 9) where outcome like 'deposed %';
"""

_PLAN_AND_CHECKS: Final = """
alter table accounts add column replace_at real;
alter table accounts add column checks integer not null default 0;
alter table accounts add column checks_since real;
alter table accounts add column alive integer not null default 0;
"""


def _first_schema(db: Database) -> None:
    _run_each(db, _FIRST_SCHEMA)
    db.table("meta").insert({"key": "epoch", "value": epoch.drawn()})


def _emergency_and_lease_lost(db: Database) -> None:
    _run_each(db, _OWN_COLUMNS)


def _plan_and_checks(db: Database) -> None:
    _run_each(db, _PLAN_AND_CHECKS)


def _run_each(db: Database, statements: str) -> None:
    """Run statements within the caller's transaction, which `executescript` would commit."""
    for statement in statements.split(";\n"):
        db.execute(statement)


MIGRATIONS: Final[tuple[Callable[[Database], None], ...]] = (
    _first_schema,
    _emergency_and_lease_lost,
    _plan_and_checks,
    side_tables.create,
)
