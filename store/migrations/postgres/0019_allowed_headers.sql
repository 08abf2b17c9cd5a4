-- +goose Up
-- Headers for its provider that mails of the mail server may bring, a JSON list of names.
alter table mail_server add column allowed_headers text not null default '[]';

-- +goose Down
alter table mail_server drop column allowed_headers;
