-- From version 2 to version 3: the plan of a token is stored with it, and verifications are counted.
-- A broker that owns the tables runs this by itself. Where it does not, their owner does:
--   psql -d DATABASE -v ON_ERROR_STOP=1 --single-transaction -f upgrade-3.sql

alter table token_broker.accounts
  add column replace_at double precision,        -- when the token's replacement was planned as it was minted
  add column checks integer not null default 0,  -- verifications since checks_since
  add column checks_since double precision,
  add column alive integer not null default 0;   -- how often WeChat has accepted this token
update token_broker.meta set value = '3' where key = 'schema';
