-- +goose Up
-- These fingerprints covered the password of the mail server without a key: whoever read the
-- database could try passwords against them. New ones do not cover it.
update mail_server set fingerprint = null where fingerprint is not null;

-- +goose Down
-- What was taken away stays away.
select 1;
