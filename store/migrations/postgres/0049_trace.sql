-- +goose Up
-- The trace context of the call that brought the mail: version, trace id, span id and flags, as
-- W3C Trace Context has them, 26 bytes. null = nobody follows it. It names no person.
alter table mail add column trace bytea;

-- +goose Down
alter table mail drop column trace;
