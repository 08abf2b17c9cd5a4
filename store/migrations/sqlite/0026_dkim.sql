-- +goose Up
-- How mail of the mail server is signed, as JSON: domain, selector, public key, sealed private
-- key. Null = not at all.
alter table mail_server add column dkim text;

-- +goose Down
alter table mail_server drop column dkim;
