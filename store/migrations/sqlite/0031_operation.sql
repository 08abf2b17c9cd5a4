-- +goose Up
-- A control call over more mails than one call can take. The process goes on with it.
create table operation (
  id text primary key,
  action text not null,
  scope text not null,              -- what the caller sees
  filter text not null,
  request text not null,            -- the call, for whoever carries it out
  actor text not null,
  reason text not null,
  dry integer not null,             -- only counts
  bound integer not null,           -- takes mails that were created before
  state text not null check (state in ('running', 'done', 'stopped', 'failed')),
  owner integer,                    -- the replica that is at it
  after text not null,              -- how far it has come
  pending text not null,            -- ids behind that which could not be locked
  total integer not null,
  matched integer not null default 0,
  changed integer not null default 0,
  failed integer not null default 0,
  failures text not null,
  error text not null default '',
  create_time integer not null,
  update_time integer not null,
  end_time integer
);
create index operation_running on operation (id) where state = 'running';
-- What operations hold or cancel that go on: no mark is taken for it.
create table operation_brake (
  operation text primary key,
  every_team integer not null,
  teams text not null,
  caller text,
  team text,
  mail_server text,
  kind text,
  batch_id text,
  reference text,
  message_id text,
  request_id text,
  statuses text,
  terms text not null,              -- of recipient and labels
  since integer,
  bound integer not null
);

-- +goose Down
drop table operation_brake;
drop table operation;
