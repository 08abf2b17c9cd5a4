-- +goose Up
-- Every kind of mail through this mail server waits for a person when its outcome is unknown.
alter table mail_server add column hold_unknown integer not null default 0;
-- When a held mail would be due, so that its release keeps its time; what it says of any other mail means nothing.
alter table due add column resume_at integer;

-- +goose Down
alter table due drop column resume_at;
alter table mail_server drop column hold_unknown;
