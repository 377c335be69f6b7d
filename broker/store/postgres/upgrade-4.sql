-- From version 3 to version 4: who was handed which version, and small texts that all brokers agree on.
-- A broker that owns the tables runs this by itself. Where it does not, their owner does:
--   psql -d DATABASE -v ON_ERROR_STOP=1 --single-transaction -f upgrade-4.sql

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

create table token_broker.documents (
  name text primary key,
  value text not null
);

do $$
begin
  if exists (select from pg_roles where rolname = 'token_broker') then
    grant select, insert, update, delete on token_broker.handouts to token_broker;
    grant select, insert, update on token_broker.documents to token_broker;
  end if;
end $$;

update token_broker.meta set value = '4' where key = 'schema';
