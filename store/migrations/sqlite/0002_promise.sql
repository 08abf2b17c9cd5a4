-- +goose Up
-- What all replicas know about a mail server's health. version: of the configuration it is about; a changed one starts afresh.
create table breaker (
  mail_server text primary key,
  version integer not null,
  failures integer not null default 0, -- in a row; 0 = well
  reason text not null default '',
  retry_at integer,                -- left alone until then, then one probe
  probe_until integer,             -- somebody is probing
  healed_at integer,               -- the session that ended the failures: connections ramp up from here
  success_at integer,
  failure_at integer,
  last_failure text not null default ''
);

-- One row a connection, for mail servers that limit theirs over all replicas. A dead replica's rows are free.
create table connection_slot (
  mail_server text not null,
  n integer not null,
  replica integer not null,
  primary key (mail_server, n)
);

-- How much of its limits per minute and per day a mail server has used.
create table quota (
  mail_server text primary key,
  tokens real not null,
  refilled_at integer not null,
  day text not null,
  day_used integer not null
);

-- Claims are fair over teams: the team stands before the priority.
drop index due_ready;
create index due_ready on due (mail_server, team, priority, run_at) where owner is null and run_at is not null;

-- +goose Down
drop index due_ready;
create index due_ready on due (mail_server, priority desc, run_at) where owner is null and run_at is not null;
drop table quota;
drop table connection_slot;
drop table breaker;
