-- +goose Up
-- A control call over more mails than one call can take. A replica that lives goes on with it.
create table operation (
  id uuid primary key,
  action text not null,
  scope json not null,              -- what the caller sees
  filter json not null,
  request text not null,            -- the call, for whoever carries it out
  actor text not null,
  reason text not null,
  dry boolean not null,             -- only counts
  bound timestamptz not null,       -- takes mails that were created before
  state text not null check (state in ('running', 'done', 'stopped', 'failed')),
  owner bigint,                     -- the replica that is at it
  after uuid not null,              -- how far it has come
  pending json not null,            -- ids behind that which could not be locked
  total bigint not null,
  matched bigint not null default 0,
  changed bigint not null default 0,
  failed bigint not null default 0,
  failures json not null,
  error text not null default '',
  create_time timestamptz not null,
  update_time timestamptz not null,
  end_time timestamptz
);
create index operation_running on operation (id) where state = 'running';
-- What operations hold or cancel that go on: no mark is taken for it.
create table operation_brake (
  operation uuid primary key,
  every_team boolean not null,
  teams json not null,
  caller text,
  team text,
  mail_server text,
  kind text,
  batch_id text,
  reference text,
  message_id text,
  request_id text,
  statuses json,
  terms json not null,              -- of recipient and labels
  since timestamptz,
  bound timestamptz not null
);
-- +goose StatementBegin
create function braked(mail_id uuid, its_team text, its_server text, its_status text) returns boolean language sql stable as $$
  select exists (select 1 from operation_brake b join mail m on m.id = mail_id
    where (b.every_team or its_team in (select value from json_array_elements_text(b.teams))) and (b.caller is null or m.caller = b.caller) and (b.team is null or its_team = b.team)
      and (b.mail_server is null or its_server = b.mail_server) and (b.kind is null or m.kind = b.kind) and (b.batch_id is null or m.batch_id = b.batch_id)
      and (b.reference is null or m.reference = b.reference) and (b.message_id is null or m.message_id = b.message_id) and (b.request_id is null or m.request_id = b.request_id)
      and (b.statuses is null or its_status in (select value from json_array_elements_text(b.statuses)))
      and m.create_time < b.bound and (b.since is null or m.create_time >= b.since)
      and not exists (select 1 from json_array_elements_text(b.terms) t where not exists (select 1 from term x where x.term = t.value::bigint and x.mail_id = m.id)))
$$;
-- +goose StatementEnd

-- +goose Down
drop function braked;
drop table operation_brake;
drop table operation;
