-- +goose Up
-- Every change of a mail's status, for those who watch. One writer: the order of seq is the order of commits. xid is for PostgreSQL's sake.
create table change (
  xid integer not null default 0,
  seq integer primary key autoincrement,
  mail_id text not null,
  status text not null,
  time integer not null
);
create table change_forgotten (xid integer not null, seq integer not null);
insert into change_forgotten values (0, 0);

-- Triggers cost little here; PostgreSQL, where they cost much, logs in the statements themselves.
-- +goose StatementBegin
create trigger change_due_new after insert on due begin
  insert into change (mail_id, status, time)
  values (new.id, case when new.owner is null then new.status else 'sending' end, cast(unixepoch('subsec') * 1000000 as integer));
end;
-- +goose StatementEnd
-- +goose StatementBegin
create trigger change_due after update of status, owner on due
when old.status <> new.status or (old.owner is null) <> (new.owner is null) begin
  insert into change (mail_id, status, time)
  select new.id, case when new.owner is null then new.status else 'sending' end, cast(unixepoch('subsec') * 1000000 as integer)
  where new.owner is null or old.owner is null;
end;
-- +goose StatementEnd
-- +goose StatementBegin
create trigger change_archive after insert on archive begin
  insert into change (mail_id, status, time) values (new.id, new.status, cast(unixepoch('subsec') * 1000000 as integer));
end;
-- +goose StatementEnd

-- +goose Down
drop trigger change_archive;
drop trigger change_due;
drop trigger change_due_new;
drop table change_forgotten;
drop table change;
