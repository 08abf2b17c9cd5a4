-- +goose Up
-- A row of a journal has with it all that it is counted by, so that counting it reads no other
-- table: what is settled was written by another connection, and a look at its mail costs more
-- than all else of the count. A row of before, or of an older program, has no kind; for such a
-- row the mail is asked as before.
drop trigger count_mail_gone;
drop trigger count_archive_gone;
drop trigger count_archive_new;
drop trigger count_due_changed;
drop trigger count_due_gone;
drop trigger count_due_new;
alter table due add column kind text;
alter table due add column batch_id text;
alter table due add column caller text;
alter table due add column create_time integer;
alter table archive add column priority integer;
alter table archive add column kind text;
alter table archive add column batch_id text;
alter table archive add column caller text;
alter table archive add column create_time integer;

-- +goose StatementBegin
create trigger count_due_new after insert on due
when new.kind is not null begin
  insert into count_delta values (new.team, new.mail_server, new.priority, new.kind, new.status, coalesce(new.run_at / 1000000, -1), new.batch_id, coalesce(new.caller, ''), new.possible_duplicate, 1, new.create_time, null);
end;
-- +goose StatementEnd
-- +goose StatementBegin
create trigger count_due_gone after delete on due
when old.kind is not null begin
  insert into count_delta values (old.team, old.mail_server, old.priority, old.kind, old.status, coalesce(old.run_at / 1000000, -1), old.batch_id, coalesce(old.caller, ''), old.possible_duplicate, -1, null, null);
end;
-- +goose StatementEnd
-- +goose StatementBegin
create trigger count_due_changed after update of status, run_at, mail_server, possible_duplicate on due
when new.kind is not null and (old.status is not new.status or old.run_at is not new.run_at or old.mail_server is not new.mail_server or old.possible_duplicate is not new.possible_duplicate) begin
  insert into count_delta values (old.team, old.mail_server, old.priority, old.kind, old.status, coalesce(old.run_at / 1000000, -1), old.batch_id, coalesce(old.caller, ''), old.possible_duplicate, -1, null, null);
  insert into count_delta values (new.team, new.mail_server, new.priority, new.kind, new.status, coalesce(new.run_at / 1000000, -1), new.batch_id, coalesce(new.caller, ''), new.possible_duplicate, 1, new.create_time, null);
end;
-- +goose StatementEnd
-- +goose StatementBegin
create trigger count_archive_new after insert on archive
when new.kind is not null begin
  insert into count_delta values (new.team, new.mail_server, new.priority, new.kind, new.status, new.done_at / 1000000, new.batch_id, coalesce(new.caller, ''), new.possible_duplicate, 1, new.create_time, new.done_at);
end;
-- +goose StatementEnd
-- +goose StatementBegin
create trigger count_archive_gone after delete on archive
when old.kind is not null begin
  insert into count_delta values (old.team, old.mail_server, old.priority, old.kind, old.status, old.done_at / 1000000, old.batch_id, coalesce(old.caller, ''), old.possible_duplicate, -1, null, null);
end;
-- +goose StatementEnd
-- +goose StatementBegin
create trigger count_due_new_bare after insert on due
when new.kind is null begin
  insert into count_delta
  select new.team, new.mail_server, new.priority, kind, new.status, coalesce(new.run_at / 1000000, -1), batch_id, coalesce(caller, ''), new.possible_duplicate, 1, create_time, null
  from mail where id = new.id;
end;
-- +goose StatementEnd
-- +goose StatementBegin
create trigger count_due_gone_bare after delete on due
when old.kind is null begin
  insert into count_delta
  select old.team, old.mail_server, old.priority, kind, old.status, coalesce(old.run_at / 1000000, -1), batch_id, coalesce(caller, ''), old.possible_duplicate, -1, null, null
  from mail where id = old.id;
end;
-- +goose StatementEnd
-- +goose StatementBegin
create trigger count_due_changed_bare after update of status, run_at, mail_server, possible_duplicate on due
when new.kind is null and (old.status is not new.status or old.run_at is not new.run_at or old.mail_server is not new.mail_server or old.possible_duplicate is not new.possible_duplicate) begin
  insert into count_delta
  select old.team, old.mail_server, old.priority, kind, old.status, coalesce(old.run_at / 1000000, -1), batch_id, coalesce(caller, ''), old.possible_duplicate, -1, null, null
  from mail where id = old.id;
  insert into count_delta
  select new.team, new.mail_server, new.priority, kind, new.status, coalesce(new.run_at / 1000000, -1), batch_id, coalesce(caller, ''), new.possible_duplicate, 1, create_time, null
  from mail where id = new.id;
end;
-- +goose StatementEnd
-- +goose StatementBegin
create trigger count_archive_new_bare after insert on archive
when new.kind is null begin
  insert into count_delta
  select new.team, new.mail_server, priority, kind, new.status, new.done_at / 1000000, batch_id, coalesce(caller, ''), new.possible_duplicate, 1, create_time, new.done_at
  from mail where id = new.id;
end;
-- +goose StatementEnd
-- +goose StatementBegin
create trigger count_archive_gone_bare after delete on archive
when old.kind is null begin
  insert into count_delta
  select old.team, old.mail_server, priority, kind, old.status, old.done_at / 1000000, batch_id, coalesce(caller, ''), old.possible_duplicate, -1, null, null
  from mail where id = old.id;
end;
-- +goose StatementEnd
-- Rows with their kind count themselves, whichever of the mail and its row goes first.
-- +goose StatementBegin
create trigger count_mail_gone after delete on mail begin
  insert into count_delta
  select team, mail_server, old.priority, old.kind, status, done_at / 1000000, old.batch_id, coalesce(old.caller, ''), possible_duplicate, -1, null, null
  from archive where id = old.id and kind is null;
  insert into count_delta
  select team, mail_server, priority, old.kind, status, coalesce(run_at / 1000000, -1), old.batch_id, coalesce(old.caller, ''), possible_duplicate, -1, null, null
  from due where id = old.id and kind is null;
end;
-- +goose StatementEnd

-- +goose Down
drop trigger count_mail_gone;
drop trigger count_due_new;
drop trigger count_due_new_bare;
drop trigger count_due_gone;
drop trigger count_due_gone_bare;
drop trigger count_due_changed;
drop trigger count_due_changed_bare;
drop trigger count_archive_new;
drop trigger count_archive_new_bare;
drop trigger count_archive_gone;
drop trigger count_archive_gone_bare;
alter table archive drop column create_time;
alter table archive drop column caller;
alter table archive drop column batch_id;
alter table archive drop column kind;
alter table archive drop column priority;
alter table due drop column create_time;
alter table due drop column caller;
alter table due drop column batch_id;
alter table due drop column kind;
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
