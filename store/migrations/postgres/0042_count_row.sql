-- +goose Up
-- A row of a journal has with it all that it is counted by, so that counting it reads no other
-- table: what is settled was written by another connection, and a look at its mail costs more
-- than all else of the count. A row of before, or of an older program, has no kind; for such a
-- row the mail is asked as before.
alter table due add column kind text, add column batch_id text, add column caller text, add column create_time timestamptz;
alter table archive add column priority smallint, add column kind text, add column batch_id text, add column caller text, add column create_time timestamptz;

-- offset: one probe for each row, whatever the statistics said when the plan was made, and none
-- where the row has its kind
-- +goose StatementBegin
create or replace function count_due_new() returns trigger language plpgsql as $$ begin
  insert into count_delta (team, mail_server, priority, kind, status, second, batch_id, caller, doubtful, n, first)
  select d.team, d.mail_server, d.priority, coalesce(d.kind, m.kind), d.status, count_second(d.run_at), coalesce(d.batch_id, m.batch_id), coalesce(d.caller, m.caller, ''), d.possible_duplicate,
    count(*), min(coalesce(d.create_time, m.create_time))
  from new_rows d left join lateral (select x.kind, x.batch_id, x.caller, x.create_time from mail x where d.kind is null and x.id = d.id offset 0) m on true
  where coalesce(d.kind, m.kind) is not null group by 1, 2, 3, 4, 5, 6, 7, 8, 9;
  return null;
end $$;
-- +goose StatementEnd
-- +goose StatementBegin
create or replace function count_due_gone() returns trigger language plpgsql as $$ begin
  insert into count_delta (team, mail_server, priority, kind, status, second, batch_id, caller, doubtful, n)
  select d.team, d.mail_server, d.priority, coalesce(d.kind, m.kind), d.status, count_second(d.run_at), coalesce(d.batch_id, m.batch_id), coalesce(d.caller, m.caller, ''), d.possible_duplicate, -count(*)
  from old_rows d left join lateral (select x.kind, x.batch_id, x.caller from mail x where d.kind is null and x.id = d.id offset 0) m on true
  where coalesce(d.kind, m.kind) is not null group by 1, 2, 3, 4, 5, 6, 7, 8, 9;
  return null;
end $$;
-- +goose StatementEnd
-- +goose StatementBegin
create or replace function count_due_changed() returns trigger language plpgsql as $$ begin
  insert into count_delta (team, mail_server, priority, kind, status, second, batch_id, caller, doubtful, n, first)
  select v.team, v.mail_server, v.priority, coalesce(new.kind, m.kind), v.status, v.second, coalesce(new.batch_id, m.batch_id), coalesce(new.caller, m.caller, ''), v.doubtful, v.n, coalesce(new.create_time, m.create_time)
  from (values (old.team, old.mail_server, old.priority, old.status, count_second(old.run_at), old.possible_duplicate, -1),
    (new.team, new.mail_server, new.priority, new.status, count_second(new.run_at), new.possible_duplicate, 1)) v(team, mail_server, priority, status, second, doubtful, n)
  left join lateral (select x.kind, x.batch_id, x.caller, x.create_time from mail x where new.kind is null and x.id = new.id offset 0) m on true
  where coalesce(new.kind, m.kind) is not null;
  return null;
end $$;
-- +goose StatementEnd
-- +goose StatementBegin
create or replace function count_archive_new() returns trigger language plpgsql as $$ begin
  insert into count_delta (team, mail_server, priority, kind, status, second, batch_id, caller, doubtful, n, first, last)
  select a.team, a.mail_server, coalesce(a.priority, m.priority), coalesce(a.kind, m.kind), a.status, count_done(a.done_at), coalesce(a.batch_id, m.batch_id), coalesce(a.caller, m.caller, ''),
    a.possible_duplicate, count(*), min(coalesce(a.create_time, m.create_time)), max(a.done_at)
  from new_rows a left join lateral (select x.priority, x.kind, x.batch_id, x.caller, x.create_time from mail x where a.kind is null and x.id = a.id offset 0) m on true
  where coalesce(a.kind, m.kind) is not null group by 1, 2, 3, 4, 5, 6, 7, 8, 9;
  return null;
end $$;
-- +goose StatementEnd
-- +goose StatementBegin
create or replace function count_archive_gone() returns trigger language plpgsql as $$ begin
  insert into count_delta (team, mail_server, priority, kind, status, second, batch_id, caller, doubtful, n)
  select a.team, a.mail_server, coalesce(a.priority, m.priority), coalesce(a.kind, m.kind), a.status, count_done(a.done_at), coalesce(a.batch_id, m.batch_id), coalesce(a.caller, m.caller, ''),
    a.possible_duplicate, -count(*)
  from old_rows a left join lateral (select x.priority, x.kind, x.batch_id, x.caller from mail x where a.kind is null and x.id = a.id offset 0) m on true
  where coalesce(a.kind, m.kind) is not null group by 1, 2, 3, 4, 5, 6, 7, 8, 9;
  return null;
end $$;
-- +goose StatementEnd
-- Rows with their kind count themselves, whichever of the mail and its row goes first.
-- +goose StatementBegin
create or replace function count_mail_gone() returns trigger language plpgsql as $$ begin
  insert into count_delta (team, mail_server, priority, kind, status, second, batch_id, caller, doubtful, n)
  select a.team, a.mail_server, m.priority, m.kind, a.status, count_done(a.done_at), m.batch_id, coalesce(m.caller, ''), a.possible_duplicate, -count(*)
  from old_rows m cross join lateral (select * from archive x where x.id = m.id and x.kind is null offset 0) a
  group by 1, 2, 3, 4, 5, 6, 7, 8, 9;
  insert into count_delta (team, mail_server, priority, kind, status, second, batch_id, caller, doubtful, n)
  select d.team, d.mail_server, d.priority, m.kind, d.status, count_second(d.run_at), m.batch_id, coalesce(m.caller, ''), d.possible_duplicate, -count(*)
  from old_rows m cross join lateral (select * from due x where x.id = m.id and x.kind is null offset 0) d
  group by 1, 2, 3, 4, 5, 6, 7, 8, 9;
  return null;
end $$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
create or replace function count_due_new() returns trigger language plpgsql as $$ begin
  insert into count_delta (team, mail_server, priority, kind, status, second, batch_id, caller, doubtful, n, first)
  select d.team, d.mail_server, d.priority, m.kind, d.status, count_second(d.run_at), m.batch_id, coalesce(m.caller, ''), d.possible_duplicate, count(*), min(m.create_time)
  from new_rows d cross join lateral (select x.kind, x.batch_id, x.caller, x.create_time from mail x where x.id = d.id offset 0) m
  group by 1, 2, 3, 4, 5, 6, 7, 8, 9;
  return null;
end $$;
-- +goose StatementEnd
-- +goose StatementBegin
create or replace function count_due_gone() returns trigger language plpgsql as $$ begin
  insert into count_delta (team, mail_server, priority, kind, status, second, batch_id, caller, doubtful, n)
  select d.team, d.mail_server, d.priority, m.kind, d.status, count_second(d.run_at), m.batch_id, coalesce(m.caller, ''), d.possible_duplicate, -count(*)
  from old_rows d cross join lateral (select x.kind, x.batch_id, x.caller from mail x where x.id = d.id offset 0) m
  group by 1, 2, 3, 4, 5, 6, 7, 8, 9;
  return null;
end $$;
-- +goose StatementEnd
-- +goose StatementBegin
create or replace function count_due_changed() returns trigger language plpgsql as $$ begin
  insert into count_delta (team, mail_server, priority, kind, status, second, batch_id, caller, doubtful, n, first)
  select v.team, v.mail_server, v.priority, m.kind, v.status, v.second, m.batch_id, coalesce(m.caller, ''), v.doubtful, v.n, m.create_time
  from mail m, (values (old.team, old.mail_server, old.priority, old.status, count_second(old.run_at), old.possible_duplicate, -1),
    (new.team, new.mail_server, new.priority, new.status, count_second(new.run_at), new.possible_duplicate, 1)) v(team, mail_server, priority, status, second, doubtful, n)
  where m.id = new.id;
  return null;
end $$;
-- +goose StatementEnd
-- +goose StatementBegin
create or replace function count_archive_new() returns trigger language plpgsql as $$ begin
  insert into count_delta (team, mail_server, priority, kind, status, second, batch_id, caller, doubtful, n, first, last)
  select a.team, a.mail_server, m.priority, m.kind, a.status, count_done(a.done_at), m.batch_id, coalesce(m.caller, ''), a.possible_duplicate, count(*),
    min(m.create_time), max(a.done_at)
  from new_rows a cross join lateral (select x.priority, x.kind, x.batch_id, x.caller, x.create_time from mail x where x.id = a.id offset 0) m
  group by 1, 2, 3, 4, 5, 6, 7, 8, 9;
  return null;
end $$;
-- +goose StatementEnd
-- +goose StatementBegin
create or replace function count_archive_gone() returns trigger language plpgsql as $$ begin
  insert into count_delta (team, mail_server, priority, kind, status, second, batch_id, caller, doubtful, n)
  select a.team, a.mail_server, m.priority, m.kind, a.status, count_done(a.done_at), m.batch_id, coalesce(m.caller, ''), a.possible_duplicate, -count(*)
  from old_rows a cross join lateral (select x.priority, x.kind, x.batch_id, x.caller from mail x where x.id = a.id offset 0) m
  group by 1, 2, 3, 4, 5, 6, 7, 8, 9;
  return null;
end $$;
-- +goose StatementEnd
-- +goose StatementBegin
create or replace function count_mail_gone() returns trigger language plpgsql as $$ begin
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
alter table archive drop column create_time, drop column caller, drop column batch_id, drop column kind, drop column priority;
alter table due drop column create_time, drop column caller, drop column batch_id, drop column kind;
