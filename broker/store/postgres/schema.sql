-- The tables of token-broker in PostgreSQL, version 4. Every instant is unix time on the database's clock, in seconds.
-- A broker that may create a schema in its database runs this by itself. Where it may not, the database's owner does
-- (where tables of version 1 are there already: upgrade-2.sql and what follows it instead):
--   psql -d DATABASE -v ON_ERROR_STOP=1 --single-transaction -f schema.sql
-- and the role token_broker is given what a broker needs, nothing else.

create schema token_broker;

create table token_broker.meta (
  key text primary key,
  value text not null
);
insert into token_broker.meta values ('schema', '4');

-- One row per account: the token in force, and who may call. Locked by whoever changes anything about the account.
create table token_broker.accounts (
  appid text not null,
  endpoint text not null,
  epoch text not null,
  calls bigint not null default 0,    -- the newest call's number
  prior_epoch text,                   -- the epoch before this one, and up to which of its calls the ledger accounts for
  prior_calls bigint not null default 0,
  timeline text,                      -- the server's, on which the epoch began: another after each promotion
  changes bigint not null default 0,  -- how often the row was changed
  token text,
  token_call bigint,
  requested_at double precision,
  expires_at double precision,
  doubt text,
  doubt_since double precision,
  safe_until double precision,
  called_at double precision,
  reserved_call bigint,
  not_before double precision,
  failures integer not null default 0,
  failure text,
  checked_at double precision,
  rivals integer not null default 0,
  rivals_since double precision,
  rivals_last double precision,
  fingerprint text not null default '',
  replace_at double precision,        -- when the token's replacement was planned as it was minted
  checks integer not null default 0,  -- verifications since checks_since
  checks_since double precision,
  alive integer not null default 0,   -- how often WeChat has accepted this token
  primary key (appid, endpoint)
);

-- The ledger. A row is durable before its call is made; `outcome` is null until the call has one.
create table token_broker.calls (
  appid text not null,
  endpoint text not null,
  epoch text not null,
  id bigint not null,
  lane text not null,
  forced integer not null,
  cost integer not null,
  outcome text,
  at double precision not null,
  node text not null,
  emergency integer not null default 0,   -- made while the store of the time was broken
  lease_lost integer not null default 0,  -- another broker had taken the reservation for dead when it was settled
  primary key (appid, endpoint, epoch, id)
);
create index calls_at on token_broker.calls (appid, endpoint, at);

-- The brokers that share this, as they last said.
create table token_broker.nodes (
  name text primary key,
  seen_at double precision not null,
  notified_at double precision,
  versions text not null
);

-- Which client was handed which version of an account's token, and named it; every broker adds to the same rows.
create table token_broker.handouts (
  client text not null,
  account text not null,
  version text not null,
  count bigint not null,
  first_at double precision,
  last_at double precision,
  held bigint not null,
  held_at double precision,
  seen_at double precision not null,
  primary key (client, account, version)
);
create index handouts_seen on token_broker.handouts (account, seen_at);

-- Small texts that all brokers agree on, such as what was notified.
create table token_broker.documents (
  name text primary key,
  value text not null
);

do $$
begin
  if exists (select from pg_roles where rolname = 'token_broker') then
    grant usage on schema token_broker to token_broker;
    grant select on token_broker.meta to token_broker;
    grant select, insert, update on token_broker.accounts to token_broker;
    grant select, insert, update, delete on token_broker.calls, token_broker.nodes to token_broker;
    grant select, insert, update, delete on token_broker.handouts to token_broker;
    grant select, insert, update on token_broker.documents to token_broker;
  end if;
end $$;
