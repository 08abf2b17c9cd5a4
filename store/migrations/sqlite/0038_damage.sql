-- +goose Up
-- Mails that the database cannot read or write, as the service met them last. They are left out
-- of all work. This table is for those who look.
create table damage (
  mail_id text not null primary key,
  found_at integer not null,
  problem text not null
);
-- A claim is no change that anybody is told: what is being sent is known by its owner.
drop trigger change_due;
-- +goose StatementBegin
create trigger change_due after update of status, owner on due
when new.owner is null and (old.owner is not null or old.status <> new.status) begin
  insert into change (mail_id, status, time) values (new.id, new.status, cast(unixepoch('subsec') * 1000000 as integer));
end;
-- +goose StatementEnd

-- +goose Down
drop trigger change_due;
-- +goose StatementBegin
create trigger change_due after update of status, owner on due
when old.status <> new.status or (old.owner is null) <> (new.owner is null) begin
  insert into change (mail_id, status, time)
  select new.id, case when new.owner is null then new.status else 'sending' end, cast(unixepoch('subsec') * 1000000 as integer)
  where new.owner is null or old.owner is null;
end;
-- +goose StatementEnd
drop table damage;
