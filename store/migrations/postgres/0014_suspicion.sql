-- +goose Up
-- begun: it is recorded that the owner is at this mail, whose owner died before. The death of an owner that was not at it is no evidence against it.
alter table due add column begun boolean not null default false;
-- A default may be unavailable: system mail is refused then, and the mail server is the default again when it is available again.
-- +goose StatementBegin
do $$
declare name text;
begin
  select conname into strict name from pg_constraint
  where conrelid = 'mail_server'::regclass and contype = 'c' and pg_get_constraintdef(oid) like '%is_default%';
  execute format('alter table mail_server drop constraint %I', name);
end $$;
-- +goose StatementEnd
alter table mail_server add constraint mail_server_default_exists check (not is_default or delete_time is null);

-- +goose Down
update mail_server set is_default = false where status <> 'available';
alter table mail_server drop constraint mail_server_default_exists;
alter table mail_server add constraint mail_server_check1 check (not is_default or (status = 'available' and delete_time is null));
alter table due drop column begun;
