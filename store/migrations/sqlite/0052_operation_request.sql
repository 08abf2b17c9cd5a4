-- +goose Up
-- What an operation that has ended was called with, in a form in which an erasure does not find
-- an address. Nobody needs it any more.
update operation set request = '{}' where state <> 'running';

-- +goose Down
select 1;
