-- +goose Up
-- For PostgreSQL only: SQLite updates a row where it is.
select 1;

-- +goose Down
select 1;
