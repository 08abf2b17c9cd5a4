-- +goose Up
-- A mail of usual size stays in its row: beyond 2 KB PostgreSQL would cut it up and keep the pieces elsewhere, which costs more than its bytes.
alter table mail set (toast_tuple_target = 4096);

-- +goose Down
alter table mail reset (toast_tuple_target);
