-- +goose Up
-- A default may be unavailable: system mail is refused then, and the mail server is the default again when it is available again. SQLite has no statement
-- that drops a check; this is the way its documentation describes (lang_altertable, "removing CHECK constraints"). The rows stay as they are.
pragma writable_schema = on;
update sqlite_schema set sql = replace(sql, '(status = ''available'' and delete_time is null)', 'delete_time is null') where type = 'table' and name = 'mail_server';
pragma writable_schema = reset;
-- begun: it is recorded that the owner is at this mail, whose owner died before. The death of an owner that was not at it is no evidence against it.
-- This also tells other connections that the schema has changed.
alter table due add column begun integer not null default 0;

-- +goose Down
update mail_server set is_default = 0 where status <> 'available';
pragma writable_schema = on;
update sqlite_schema set sql = replace(sql, 'not is_default or delete_time is null', 'not is_default or (status = ''available'' and delete_time is null)')
where type = 'table' and name = 'mail_server';
pragma writable_schema = reset;
alter table due drop column begun;
