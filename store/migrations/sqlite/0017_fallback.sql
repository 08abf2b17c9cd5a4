-- +goose Up
-- The mail server that mail goes on through while this one cannot be used. A deleted one stays in
-- the table, so the reference holds.
alter table mail_server add column fallback text references mail_server (name);
create index mail_server_fallback on mail_server (fallback) where fallback is not null;

-- +goose Down
drop index mail_server_fallback;
alter table mail_server drop column fallback;
