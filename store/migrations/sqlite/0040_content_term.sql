-- +goose Up
-- The terms of the mail's shared content are written. A mail gets them in the transaction that
-- writes it; what a program of before has written gets them later.
alter table mail add column listed integer not null default 0;
create index mail_unlisted on mail (id) where layout is not null and not listed;
delete from retention where name = 'contents';

-- +goose Down
drop index mail_unlisted;
alter table mail drop column listed;
