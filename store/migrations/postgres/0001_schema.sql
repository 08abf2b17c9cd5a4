-- +goose Up
create table mail_server (
  name text primary key check (name ~ '^[a-z][a-z0-9-]{1,62}$'),
  team text not null,
  display_name text not null,
  type text not null check (type in ('smtp', 'localhost')),
  mode text not null check (mode in ('php', 'daemon')),
  status text not null check (status in ('available', 'unavailable')),
  is_default boolean not null,
  sender text not null,
  smtp json,
  password bytea,
  limits json not null,
  annotations json not null,
  version bigint not null,
  request_id text,
  fingerprint bytea,
  create_time timestamptz not null,
  update_time timestamptz not null,
  delete_time timestamptz,
  check ((type = 'smtp') = (smtp is not null)),
  check (not is_default or (status = 'available' and delete_time is null))
);
-- At most one default per team, and one for the system (team '').
create unique index mail_server_default on mail_server (team) where is_default;
create unique index mail_server_request on mail_server (team, request_id) where request_id is not null;

create table replica (
  id bigint generated always as identity primary key,
  name text not null,
  alive_until timestamptz not null -- epoch: taken for dead
);

-- Shared bytes, in chunks so that no single value is large. Chunks are not compressed: they are base64 of compressed files most of the time.
create table content (hash bytea primary key, size bigint not null, touched date not null);
create table content_chunk (hash bytea not null, n integer not null, data bytea not null, primary key (hash, n));
alter table content_chunk alter column data set storage external;

-- Insert only. raw is the message without its shared pieces, layout says where they go.
create table mail (
  id uuid primary key,
  team text not null,
  mail_server text not null,
  mode text not null check (mode in ('php', 'daemon')),
  kind text not null check (kind in ('agent_message', 'invoice', 'work_order', 'bulk', 'other')),
  priority smallint not null,
  reference text not null,
  sender text not null,
  subject text not null,
  message_id text not null,
  size_bytes bigint not null,
  recipients json not null,
  labels json,
  request_id text,
  fingerprint bytea,
  route text not null,
  utf8 boolean not null,
  create_time timestamptz not null,
  expire_time timestamptz,
  raw bytea not null,
  layout json,
  resent_from uuid,
  batch_id text
);
-- A request_id lives as long as its mail.
create unique index mail_request on mail (team, request_id) where request_id is not null;

-- One row for every unfinished mail. run_at null: parked, not claimable. owner: the replica that is sending it. data_at: the dot may have left.
create table due (
  id uuid primary key,
  team text not null,
  mail_server text not null,
  priority smallint not null,
  status text not null check (status in ('queued', 'deferred', 'held', 'failed', 'unknown', 'partially_sent')),
  run_at timestamptz,
  attempts smallint not null default 0,
  crashes smallint not null default 0,
  owner bigint,
  data_at timestamptz,
  possible_duplicate boolean not null default false,
  progress json,
  last_error text not null default '',
  check (data_at is null or owner is not null),
  check (run_at is not null or status not in ('queued', 'deferred')),
  check (run_at is null or status in ('queued', 'deferred', 'partially_sent'))
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_cost_delay = 0);
create index due_ready on due (mail_server, priority desc, run_at) where owner is null and run_at is not null;
create index due_owner on due (owner) where owner is not null;
create index due_team on due (team, id);
create index due_server on due (mail_server, id);

create table archive (
  id uuid primary key,
  team text not null,
  mail_server text not null,
  done_at timestamptz not null,
  status text not null check (status in ('sent', 'cancelled')),
  attempts smallint not null,
  possible_duplicate boolean not null,
  last_error text not null,
  result json not null
);
create index archive_done on archive (done_at, id);
create index archive_team on archive (team, done_at, id);
create index archive_server on archive (mail_server, done_at, id);

-- Search by recipient, reference and label: a hash of what is searched for, and the mail.
create table term (term bigint not null, mail_id uuid not null, primary key (term, mail_id));

create table audit (
  id bigint generated always as identity primary key,
  time timestamptz not null,
  actor text not null,
  action text not null,
  team text not null,
  target text not null,
  reason text not null,
  detail json
);

-- +goose StatementBegin
do $$ begin
  execute 'alter table mail alter column raw set compression lz4';
exception when others then null; -- a server built without lz4 keeps its default
end $$;
-- +goose StatementEnd

-- +goose Down
drop table audit, term, archive, due, mail, content_chunk, content, replica, mail_server;
