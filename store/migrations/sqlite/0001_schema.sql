-- +goose Up
create table mail_server (
  name text primary key check (length(name) between 2 and 63),
  team text not null,
  display_name text not null,
  type text not null check (type in ('smtp', 'localhost')),
  mode text not null check (mode in ('php', 'daemon')),
  status text not null check (status in ('available', 'unavailable')),
  is_default integer not null,
  sender text not null,
  smtp text,
  password blob,
  limits text not null,
  annotations text not null,
  version integer not null,
  request_id text,
  fingerprint blob,
  create_time integer not null,
  update_time integer not null,
  delete_time integer,
  check ((type = 'smtp') = (smtp is not null)),
  check (not is_default or (status = 'available' and delete_time is null))
);
-- At most one default per team, and one for the system (team '').
create unique index mail_server_default on mail_server (team) where is_default;
create unique index mail_server_request on mail_server (team, request_id) where request_id is not null;

create table replica (
  id integer primary key autoincrement,
  name text not null,
  alive_until integer not null -- epoch: taken for dead
);

-- Shared bytes, in chunks so that no single value is large. Chunks are not compressed: they are base64 of compressed files most of the time.
create table content (hash blob primary key, size integer not null, touched integer not null);
create table content_chunk (hash blob not null, n integer not null, data blob not null, primary key (hash, n));

-- Insert only. raw is the message without its shared pieces, layout says where they go.
create table mail (
  id text primary key,
  team text not null,
  mail_server text not null,
  mode text not null check (mode in ('php', 'daemon')),
  kind text not null check (kind in ('agent_message', 'invoice', 'work_order', 'bulk', 'other')),
  priority integer not null,
  reference text not null,
  sender text not null,
  subject text not null,
  message_id text not null,
  size_bytes integer not null,
  recipients text not null,
  labels text,
  request_id text,
  fingerprint blob,
  route text not null,
  utf8 integer not null,
  create_time integer not null,
  expire_time integer,
  raw blob not null,
  layout text,
  resent_from text,
  batch_id text
);
-- A request_id lives as long as its mail.
create unique index mail_request on mail (team, request_id) where request_id is not null;

-- One row for every unfinished mail. run_at null: parked, not claimable. owner: the replica that is sending it. data_at: the dot may have left.
create table due (
  id text primary key,
  team text not null,
  mail_server text not null,
  priority integer not null,
  status text not null check (status in ('queued', 'deferred', 'held', 'failed', 'unknown', 'partially_sent')),
  run_at integer,
  attempts integer not null default 0,
  crashes integer not null default 0,
  owner integer,
  data_at integer,
  possible_duplicate integer not null default 0,
  progress text,
  last_error text not null default '',
  check (data_at is null or owner is not null),
  check (run_at is not null or status not in ('queued', 'deferred')),
  check (run_at is null or status in ('queued', 'deferred', 'partially_sent'))
) without rowid;
create index due_ready on due (mail_server, priority desc, run_at) where owner is null and run_at is not null;
create index due_owner on due (owner) where owner is not null;
create index due_team on due (team, id);
create index due_server on due (mail_server, id);

create table archive (
  id text primary key,
  team text not null,
  mail_server text not null,
  done_at integer not null,
  status text not null check (status in ('sent', 'cancelled')),
  attempts integer not null,
  possible_duplicate integer not null,
  last_error text not null,
  result text not null
) without rowid;
create index archive_done on archive (done_at, id);
create index archive_team on archive (team, done_at, id);
create index archive_server on archive (mail_server, done_at, id);

-- Search by recipient, reference and label: a hash of what is searched for, and the mail.
create table term (term integer not null, mail_id text not null, primary key (term, mail_id)) without rowid;

create table audit (
  id integer primary key autoincrement,
  time integer not null,
  actor text not null,
  action text not null,
  team text not null,
  target text not null,
  reason text not null,
  detail text
);

-- +goose Down
drop table audit;
drop table term;
drop table archive;
drop table due;
drop table mail;
drop table content_chunk;
drop table content;
drop table replica;
drop table mail_server;
