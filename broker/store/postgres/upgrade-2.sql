-- From version 1 to version 2: "emergency minted" and "deposed minted" become "minted", with a column that says the rest.
-- A broker that owns the tables runs this by itself. Where it does not, their owner does:
--   psql -d DATABASE -v ON_ERROR_STOP=1 --single-transaction -f upgrade-2.sql

alter table token_broker.calls
  add column emergency integer not null default 0,   -- made while the store of the time was broken
  add column lease_lost integer not null default 0;  -- another broker had taken the reservation for dead when it was settled
update token_broker.calls set emergency = 1, outcome = substr(outcome, 11) where left(outcome, 10) = 'emergency ';
update token_broker.calls set lease_lost = 1, outcome = substr(outcome, 9) where left(outcome, 8) = 'deposed ';
update token_broker.meta set value = '2' where key = 'schema';
