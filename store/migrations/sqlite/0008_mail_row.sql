-- +goose Up
-- For PostgreSQL's sake; SQLite keeps a mail in its row and the pages behind it.
select 1;

-- +goose Down
select 1;
