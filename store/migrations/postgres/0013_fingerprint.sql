-- +goose Up
-- These fingerprints covered the password of the mail server without a key: whoever read the
-- database could try passwords against them. New ones do not cover it.
update mail_server set fingerprint = null where fingerprint is not null;
-- Until then a mail server takes mail and sends none.
alter table mail_server add column pause_until timestamptz;

-- +goose Down
-- Fingerprints that were taken away stay away.
alter table mail_server drop column pause_until;
