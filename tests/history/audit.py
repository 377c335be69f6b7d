"""What the database itself saw, in its order.

It saw each reservation, each settlement, and each change of an account's row.

Triggers that only tests install write it down in the same transaction; so it is lost exactly where
what it tells is lost.
"""

from dataclasses import dataclass
from typing import Any, Final

from tests.harness.cluster import Cluster

_TABLES: Final = """
create schema audit;
create table audit.events (
  n bigserial primary key,
  at float8 not null default extract(epoch from clock_timestamp()),
  xid bigint not null default txid_current(),
  kind text not null,
  appid text not null,
  epoch text not null,
  call bigint not null,
  node text,
  outcome text,
  lease_lost integer,
  opened bigint,
  called_at float8,
  doubt text,
  token_call bigint,
  sha256 text
);
create function audit.calls() returns trigger language plpgsql security definer as $$
begin
  insert into audit.events (kind, appid, epoch, call, node, outcome, lease_lost, called_at)
  values (case when tg_op = 'INSERT' then 'reserved' else 'settled' end,
    new.appid, new.epoch, new.id, new.node, new.outcome, new.lease_lost, new.at);
  return null;
end $$;
create function audit.accounts() returns trigger language plpgsql security definer as $$
begin
  insert into audit.events (kind, appid, epoch, call, opened, called_at, doubt, token_call, sha256)
  values ('account', new.appid, new.epoch, new.calls, new.reserved_call, new.called_at, new.doubt,
    new.token_call,
    encode(sha256(convert_to(new.token, 'UTF8')), 'hex'));
  return null;
end $$;
create trigger audit after insert or update on token_broker.calls
  for each row execute function audit.calls();
create trigger audit after update on token_broker.accounts
  for each row execute function audit.accounts();
"""


@dataclass(frozen=True)
class Event:
    """One row that the triggers wrote.

    `reserved` and `settled` are about a row of the ledger, `account` about the account's row after
    a change.

    `n` orders them; `at` is unix time. `opened`: the reservation that is open then. `sha256`: of
    the token held then.
    """

    n: int
    at: float
    xid: int
    kind: str
    appid: str
    epoch: str
    call: int
    node: str | None
    outcome: str | None
    lease_lost: int | None
    opened: int | None
    called_at: float | None
    doubt: str | None
    token_call: int | None
    sha256: str | None

    @property
    def version(self) -> str:
        """The version that this call's token has, or would have."""
        return f"{self.epoch}-{self.call}"


def install(cluster: Cluster, database: str) -> None:
    """Watch a database whose tables are there."""
    cluster.sql(_TABLES, database)


def events(cluster: Cluster, database: str) -> list[Event]:
    """All of it."""
    return [Event(*row) for row in cluster.sql("select * from audit.events order by n", database)]


def ledger(cluster: Cluster, database: str) -> list[dict[str, Any]]:
    """The ledger's rows, in the order in which they were made."""
    names = ("appid", "epoch", "id", "lane", "cost", "outcome", "lease_lost", "at", "node")
    rows = cluster.sql(
        f"select {', '.join(names)} from token_broker.calls order by at, id", database
    )
    return [dict(zip(names, row, strict=True)) for row in rows]
