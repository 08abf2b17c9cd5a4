-- +goose Up
-- What a token may hand over in any 24 hours, all replicas together; 0 = without a limit of its
-- own.
alter table token add column mails_per_day bigint not null default 0;
alter table token add column recipients_per_day bigint not null default 0;

-- +goose Down
alter table token drop column recipients_per_day;
alter table token drop column mails_per_day;
