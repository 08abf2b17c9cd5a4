-- +goose Up
-- Counts of both journals. Each statement that writes to a journal appends what it changed to
-- count_delta, by triggers: none can forget it, nor one of an older program. What is appended is
-- added up into the other two tables, in the background.
create table count_delta (
  team text not null,
  mail_server text not null,
  priority integer not null,
  kind text not null,
  status text not null,
  second integer not null,      -- due-out: when it is due, -1 = never; archive: when it was finished
  batch_id text,
  caller text not null,
  doubtful integer not null,
  n integer not null,
  first integer,                -- of the batch: created
  last integer                  -- of the batch: finished
);
create table count_queue (
  team text not null,
  mail_server text not null,
  priority integer not null,
  kind text not null,
  status text not null,
  second integer not null,      -- 0 = it is due
  n integer not null,
  primary key (team, mail_server, priority, kind, status, second)
);
create table count_batch (
  batch_id text not null,
  team text not null,
  caller text not null,
  status text not null,
  waiting integer not null,
  doubtful integer not null,
  n integer not null,
  first integer,
  last integer,
  primary key (batch_id, team, caller, status, waiting, doubtful)
);

-- +goose StatementBegin
create trigger count_due_new after insert on due begin
  insert into count_delta
  select new.team, new.mail_server, new.priority, kind, new.status, coalesce(new.run_at / 1000000, -1), batch_id, coalesce(caller, ''), new.possible_duplicate, 1, create_time, null
  from mail where id = new.id;
end;
-- +goose StatementEnd
-- +goose StatementBegin
create trigger count_due_gone after delete on due begin
  insert into count_delta
  select old.team, old.mail_server, old.priority, kind, old.status, coalesce(old.run_at / 1000000, -1), batch_id, coalesce(caller, ''), old.possible_duplicate, -1, null, null
  from mail where id = old.id;
end;
-- +goose StatementEnd
-- +goose StatementBegin
create trigger count_due_changed after update of status, run_at, mail_server, possible_duplicate on due
when old.status is not new.status or old.run_at is not new.run_at or old.mail_server is not new.mail_server or old.possible_duplicate is not new.possible_duplicate begin
  insert into count_delta
  select old.team, old.mail_server, old.priority, kind, old.status, coalesce(old.run_at / 1000000, -1), batch_id, coalesce(caller, ''), old.possible_duplicate, -1, null, null
  from mail where id = old.id;
  insert into count_delta
  select new.team, new.mail_server, new.priority, kind, new.status, coalesce(new.run_at / 1000000, -1), batch_id, coalesce(caller, ''), new.possible_duplicate, 1, create_time, null
  from mail where id = new.id;
end;
-- +goose StatementEnd
-- +goose StatementBegin
create trigger count_archive_new after insert on archive begin
  insert into count_delta
  select new.team, new.mail_server, priority, kind, new.status, new.done_at / 1000000, batch_id, coalesce(caller, ''), new.possible_duplicate, 1, create_time, new.done_at
  from mail where id = new.id;
end;
-- +goose StatementEnd
-- A mail leaves the archive and its row in any order: the first of them counts.
-- +goose StatementBegin
create trigger count_archive_gone after delete on archive begin
  insert into count_delta
  select old.team, old.mail_server, priority, kind, old.status, old.done_at / 1000000, batch_id, coalesce(caller, ''), old.possible_duplicate, -1, null, null
  from mail where id = old.id;
end;
-- +goose StatementEnd
-- +goose StatementBegin
create trigger count_mail_gone after delete on mail begin
  insert into count_delta
  select team, mail_server, old.priority, old.kind, status, done_at / 1000000, old.batch_id, coalesce(old.caller, ''), possible_duplicate, -1, null, null
  from archive where id = old.id;
  insert into count_delta
  select team, mail_server, priority, old.kind, status, coalesce(run_at / 1000000, -1), old.batch_id, coalesce(old.caller, ''), possible_duplicate, -1, null, null
  from due where id = old.id;
end;
-- +goose StatementEnd

-- counted: what was there before the triggers is counted as well. Until then whoever asks counts.
create table count_state (
  one integer primary key default 1 check (one = 1),
  counted integer not null
);
insert into count_state (counted) select not exists (select 1 from mail);

-- +goose Down
drop trigger count_mail_gone;
drop trigger count_archive_gone;
drop trigger count_archive_new;
drop trigger count_due_changed;
drop trigger count_due_gone;
drop trigger count_due_new;
drop table count_state;
drop table count_batch;
drop table count_queue;
drop table count_delta;
