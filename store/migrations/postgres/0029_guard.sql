-- +goose Up
-- The budget of the guard that has held the mail; null = none has. Only somebody else than the
-- mail's caller may release it.
alter table mail add column guard text;

-- +goose Down
alter table mail drop column guard;
