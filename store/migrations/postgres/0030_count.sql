-- +goose Up
-- Counts of both journals. Each statement that writes to a journal appends what it changed to
-- count_delta, by triggers: none can forget it, nor one of an older program. What is appended is
-- added up into the other two tables, in the background; no row here is waited for by mail.
create table count_delta (
  team text not null,
  mail_server text not null,
  priority smallint not null,
  kind text not null,
  status text not null,
  second bigint not null,      -- due-out: when it is due, 0 = it is, -1 = never; archive: when it was finished, 0 = long ago
  batch_id text,
  caller text not null,
  doubtful boolean not null,
  n bigint not null,
  first timestamptz,           -- of the batch: created
  last timestamptz             -- of the batch: finished
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
create table count_queue (
  team text not null,
  mail_server text not null,
  priority smallint not null,
  kind text not null,
  status text not null,
  second bigint not null,
  n bigint not null,
  primary key (team, mail_server, priority, kind, status, second)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
create table count_batch (
  batch_id text not null,
  team text not null,
  caller text not null,
  status text not null,
  waiting boolean not null,
  doubtful boolean not null,
  n bigint not null,
  first timestamptz,
  last timestamptz,
  primary key (batch_id, team, caller, status, waiting, doubtful)
) with (fillfactor = 70);

-- +goose StatementBegin
create function count_second(run_at timestamptz) returns bigint language sql stable as $$
  select case when run_at is null then -1 when run_at <= now() then 0 else floor(extract(epoch from run_at))::bigint end
$$;
-- +goose StatementEnd

-- +goose StatementBegin
create function count_done(done_at timestamptz) returns bigint language sql stable as $$
  select case when done_at < now() - interval '2 minutes' then 0 else floor(extract(epoch from done_at))::bigint end
$$;
-- +goose StatementEnd

-- lateral and offset: one probe for each row, whatever the statistics said when the plan was made
-- +goose StatementBegin
create function count_due_new() returns trigger language plpgsql as $$ begin
  insert into count_delta (team, mail_server, priority, kind, status, second, batch_id, caller, doubtful, n, first)
  select d.team, d.mail_server, d.priority, m.kind, d.status, count_second(d.run_at), m.batch_id, coalesce(m.caller, ''), d.possible_duplicate, count(*), min(m.create_time)
  from new_rows d cross join lateral (select x.kind, x.batch_id, x.caller, x.create_time from mail x where x.id = d.id offset 0) m
  group by 1, 2, 3, 4, 5, 6, 7, 8, 9;
  return null;
end $$;
-- +goose StatementEnd
-- +goose StatementBegin
create function count_due_gone() returns trigger language plpgsql as $$ begin
  insert into count_delta (team, mail_server, priority, kind, status, second, batch_id, caller, doubtful, n)
  select d.team, d.mail_server, d.priority, m.kind, d.status, count_second(d.run_at), m.batch_id, coalesce(m.caller, ''), d.possible_duplicate, -count(*)
  from old_rows d cross join lateral (select x.kind, x.batch_id, x.caller from mail x where x.id = d.id offset 0) m
  group by 1, 2, 3, 4, 5, 6, 7, 8, 9;
  return null;
end $$;
-- +goose StatementEnd
-- +goose StatementBegin
create function count_due_changed() returns trigger language plpgsql as $$ begin
  insert into count_delta (team, mail_server, priority, kind, status, second, batch_id, caller, doubtful, n, first)
  select v.team, v.mail_server, v.priority, m.kind, v.status, v.second, m.batch_id, coalesce(m.caller, ''), v.doubtful, v.n, m.create_time
  from mail m, (values (old.team, old.mail_server, old.priority, old.status, count_second(old.run_at), old.possible_duplicate, -1),
    (new.team, new.mail_server, new.priority, new.status, count_second(new.run_at), new.possible_duplicate, 1)) v(team, mail_server, priority, status, second, doubtful, n)
  where m.id = new.id;
  return null;
end $$;
-- +goose StatementEnd
-- +goose StatementBegin
create function count_archive_new() returns trigger language plpgsql as $$ begin
  insert into count_delta (team, mail_server, priority, kind, status, second, batch_id, caller, doubtful, n, first, last)
  select a.team, a.mail_server, m.priority, m.kind, a.status, count_done(a.done_at), m.batch_id, coalesce(m.caller, ''), a.possible_duplicate, count(*),
    min(m.create_time), max(a.done_at)
  from new_rows a cross join lateral (select x.priority, x.kind, x.batch_id, x.caller, x.create_time from mail x where x.id = a.id offset 0) m
  group by 1, 2, 3, 4, 5, 6, 7, 8, 9;
  return null;
end $$;
-- +goose StatementEnd
-- A mail leaves the archive and its row in any order, in two statements: the first of them counts.
-- +goose StatementBegin
create function count_archive_gone() returns trigger language plpgsql as $$ begin
  insert into count_delta (team, mail_server, priority, kind, status, second, batch_id, caller, doubtful, n)
  select a.team, a.mail_server, m.priority, m.kind, a.status, count_done(a.done_at), m.batch_id, coalesce(m.caller, ''), a.possible_duplicate, -count(*)
  from old_rows a cross join lateral (select x.priority, x.kind, x.batch_id, x.caller from mail x where x.id = a.id offset 0) m
  group by 1, 2, 3, 4, 5, 6, 7, 8, 9;
  return null;
end $$;
-- +goose StatementEnd
-- +goose StatementBegin
create function count_mail_gone() returns trigger language plpgsql as $$ begin
  insert into count_delta (team, mail_server, priority, kind, status, second, batch_id, caller, doubtful, n)
  select a.team, a.mail_server, m.priority, m.kind, a.status, count_done(a.done_at), m.batch_id, coalesce(m.caller, ''), a.possible_duplicate, -count(*)
  from old_rows m cross join lateral (select * from archive x where x.id = m.id offset 0) a
  group by 1, 2, 3, 4, 5, 6, 7, 8, 9;
  insert into count_delta (team, mail_server, priority, kind, status, second, batch_id, caller, doubtful, n)
  select d.team, d.mail_server, d.priority, m.kind, d.status, count_second(d.run_at), m.batch_id, coalesce(m.caller, ''), d.possible_duplicate, -count(*)
  from old_rows m cross join lateral (select * from due x where x.id = m.id offset 0) d
  group by 1, 2, 3, 4, 5, 6, 7, 8, 9;
  return null;
end $$;
-- +goose StatementEnd

create trigger count_due_new after insert on due referencing new table as new_rows for each statement execute function count_due_new();
create trigger count_due_gone after delete on due referencing old table as old_rows for each statement execute function count_due_gone();
-- Row by row, since only so a claim and a mark, which change no count, cost nothing but the look.
create trigger count_due_changed after update on due for each row
when (old.status is distinct from new.status or old.run_at is distinct from new.run_at or old.mail_server is distinct from new.mail_server
  or old.possible_duplicate is distinct from new.possible_duplicate)
execute function count_due_changed();
create trigger count_archive_new after insert on archive referencing new table as new_rows for each statement execute function count_archive_new();
create trigger count_archive_gone after delete on archive referencing old table as old_rows for each statement execute function count_archive_gone();
create trigger count_mail_gone after delete on mail referencing old table as old_rows for each statement execute function count_mail_gone();

-- counted: what was there before the triggers is counted as well. Until then whoever asks counts.
create table count_state (
  one smallint primary key default 1 check (one = 1),
  counted boolean not null
);
insert into count_state (counted) select not exists (select 1 from mail);

-- +goose Down
drop trigger count_mail_gone on mail;
drop trigger count_archive_gone on archive;
drop trigger count_archive_new on archive;
drop trigger count_due_changed on due;
drop trigger count_due_gone on due;
drop trigger count_due_new on due;
drop function count_mail_gone, count_archive_gone, count_archive_new, count_due_changed, count_due_gone, count_due_new, count_done, count_second;
drop table count_state, count_batch, count_queue, count_delta;
